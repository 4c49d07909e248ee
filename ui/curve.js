// Curves over the steps of a run. The numbers stand in the legend: of the step under the pointer, or else of the one that the tab shows,
// of which it tells with an event: new CustomEvent("step", {detail: {of, at}}) on the document.
// at: how many steps are made; a curve that begins with step 1 has at that place the step being made.
//
//   value   JSON: {kind: "none"} | {kind: "curves", ...}, made by common.curves(), which says what is in it

const $ = (selector) => element.querySelector(selector);
const root = $(".curve");
const drawing = $("svg");
const SPACE = { left: 56, right: 12, top: 12, bottom: 56, height: 280 };
let chart = null;
const steps = {}; // what the tabs show
let under = null; // what is under the pointer

const longest = () => Math.max(...chart.lines.map((line) => line.values.length));
const clamp = (k) => Math.min(longest() - 1, Math.max(0, k));
const digits = (v, by) => v.toFixed(Math.max(0, -Math.floor(Math.log10(by) + 1e-9)));

/** Round distances between ticks: at most `most` of them up to the end. */
function apart(end, most) {
  const power = 10 ** Math.floor(Math.log10(end / most));
  return [1, 2, 5, 10].map((n) => n * power).find((by) => end / by <= most);
}

function scales() {
  const width = Math.max(root.clientWidth, 240);
  const [count, highest] = [longest(), Math.max(...chart.lines.flatMap((line) => line.values)) || 1];
  const by = apart(highest, 5);
  const top = Math.ceil(highest / by - 1e-9) * by;
  const inside = { w: width - SPACE.left - SPACE.right, h: SPACE.height - SPACE.top - SPACE.bottom };
  const x = (k) => SPACE.left + (count > 1 ? (k / (count - 1)) * inside.w : inside.w / 2);
  const y = (v) => SPACE.top + (1 - v / top) * inside.h;
  return { width, count, by, top, x, y, inside };
}

function draw() {
  if (!chart) return;
  const { width, count, by, top, x, y, inside } = scales();
  const made = [];
  for (let v = 0; v <= top + by / 2; v += by) {
    made.push(`<path class="across" d="M${SPACE.left} ${y(v)}h${inside.w}"/>`);
    made.push(`<text x="${SPACE.left - 8}" y="${y(v)}" dy="0.35em" text-anchor="end">${digits(v, by)}</text>`);
  }
  const end = chart.first + count - 1;
  const every = Math.max(1, apart(end, inside.w / 48));
  for (let n = Math.ceil(chart.first / every) * every; n <= end; n += every) {
    made.push(`<text x="${x(n - chart.first)}" y="${SPACE.height - 32}" text-anchor="middle">${n}</text>`);
  }
  made.push(`<text class="axis" x="${SPACE.left + inside.w / 2}" y="${SPACE.height - 8}" text-anchor="middle"></text>`);
  for (const { values, colour, marks } of chart.lines) {
    const points = values.map((v, k) => `${x(k).toFixed(1)} ${y(v).toFixed(1)}`);
    made.push(`<polyline points="${points.join(",")}" style="stroke:${colour}"/>`);
    if (values.length === 1) made.push(`<circle cx="${x(0)}" cy="${y(values[0])}" r="4" style="fill:${colour}"/>`);
    for (const k of marks || []) made.push(`<circle class="mark" cx="${x(k)}" cy="${y(values[k])}" r="6" style="stroke:${colour}"/>`);
  }
  made.push(`<path class="here"/>`, `<g class="dots"></g>`);
  drawing.setAttribute("viewBox", `0 0 ${width} ${SPACE.height}`);
  drawing.style.height = `${SPACE.height}px`;
  drawing.innerHTML = made.join("");
  drawing.querySelector(".axis").textContent = chart.across;
  drawing.setAttribute("aria-label", chart.said);
  mark();
}

/** The rule at a step, and the numbers there. */
function mark() {
  const { x, y, inside } = scales();
  const at = under ?? clamp(steps[chart.of] ?? longest());
  drawing.querySelector(".here").setAttribute("d", `M${x(at)} ${SPACE.top}v${inside.h}`);
  const dots = chart.lines.map(({ values, colour }) =>
    values[at] === undefined ? "" : `<circle cx="${x(at)}" cy="${y(values[at])}" r="4" style="fill:${colour}"/>`,
  );
  drawing.querySelector(".dots").innerHTML = dots.join("");
  [...$(".lines").children].forEach((line, k) => {
    const value = chart.lines[k].values[at];
    line.querySelector("b").textContent = value === undefined ? "–" : value.toFixed(chart.places);
  });
}

drawing.addEventListener("pointermove", (event) => {
  const box = drawing.getBoundingClientRect();
  const { count, inside } = scales();
  under = clamp(Math.round(((event.clientX - box.left - SPACE.left) / inside.w) * (count - 1)));
  mark();
});
drawing.addEventListener("pointerleave", () => {
  under = null;
  mark();
});

function show() {
  const value = dom.read(props.value);
  root.hidden = value.kind === "none";
  if (root.hidden) return void (chart = null);
  $("h3").textContent = value.title;
  $(".note").textContent = value.said;
  drawing.style.display = value.lines.length ? "block" : "none";
  const lines = value.lines.map(({ name, colour }) => {
    const line = document.createElement("li");
    line.style.setProperty("--tone", colour);
    line.append(document.createElement("i"), name, document.createElement("b"));
    return line;
  });
  $(".lines").replaceChildren(...lines);
  chart = value.lines.length ? value : null;
  under = null;
  draw();
}

document.addEventListener("step", (event) => {
  steps[event.detail.of] = event.detail.at;
  if (chart) mark();
});
new ResizeObserver(draw).observe(root);
watch("value", show);
show();
