// The latents of a run, channel by channel: x_t beside the clean latents it points to, how both changed since the step before, one
// square's numbers in the equation, and how all values are spread. Given a run once; moving through it asks no server.

const slider = $(".step-line input");
const side = { x: $(".noisy"), x0: $(".guess") };
const bins = 48;
let run = null;
let at = 0;
let spot = { c: 0, x: 0, y: 0 };
let playing = null;

const step = () => run.steps[at];
const maps_of = (k, what) => (run.steps[k].maps ??= {})[what] || (run.steps[k].maps[what] = channels(run.steps[k][what], run.limit));

/** How the latents moved since the step before; null at the first step. */
function changes(k, what) {
  if (!k) return null;
  const [now, before] = [maps_of(k, what), maps_of(k - 1, what)];
  return now.map((map, c) => ({ ...map, numbers: map.numbers.map((v, i) => v - before[c].numbers[i]), high: run.change }));
}

const mean = (v) => v.reduce((sum, x) => sum + x, 0) / v.length;
const deviation = (v, m = mean(v)) => Math.sqrt(mean(v.map((x) => (x - m) ** 2)));

// --- maps ------------------------------------------------------------------------------------------------------------------------

function build() {
  for (const [what, box] of Object.entries(side)) {
    for (const [k, row] of [...box.querySelectorAll(".maps")].entries()) {
      row.replaceChildren(
        ...maps_of(0, what).map((_, c) => {
          const figure = make("figure");
          const canvas = make("canvas", "pixels");
          canvas.setAttribute("role", "img");
          figure.append(canvas, make("i", "mark"), make("figcaption"));
          const choose = (x, y) => select({ c, x, y });
          window.maps.point(canvas, () => (k ? changes(at, what) : maps_of(at, what))?.[c] || maps_of(at, what)[c], (x, y) => x !== null && choose(x, y), choose);
          return figure;
        }),
      );
    }
  }
}

function draw() {
  for (const [what, box] of Object.entries(side)) {
    const [values, moved] = box.querySelectorAll(".maps");
    maps_of(at, what).forEach((map, c) => {
      const figure = values.children[c];
      window.maps.paint(figure.querySelector("canvas"), map, "grey");
      figure.querySelector("canvas").setAttribute("aria-label", `${fill(texts.channel, { c: c + 1 })}, ${box.querySelector(".term").textContent}`);
      const outside = map.numbers.filter((v) => !(Math.abs(v) <= run.limit)).length;
      figure
        .querySelector("figcaption")
        .replaceChildren(
          make("span", "", fill(texts.channel, { c: c + 1 })),
          make("span", "", `${digits(mean(map.numbers))} ± ${digits(deviation(map.numbers))}`),
          make("span", "", outside ? fill(texts.outside, { count: outside }) : ""),
        );
    });
    const change = changes(at, what);
    box.querySelector(".change").textContent = change ? texts.change : texts.change_none;
    moved.hidden = !change;
    change?.forEach((map, c) => {
      window.maps.paint(moved.children[c].querySelector("canvas"), map, "signed");
      moved.children[c].querySelector("figcaption").textContent = `± ${digits(Math.sqrt(mean(map.numbers.map((v) => v * v))))}`;
    });
  }
  numbers();
}

// --- the square under the pointer, in the equation -----------------------------------------------------------------------------------

function numbers() {
  const { alpha_bar: bar, t, sigma } = step();
  const [signal, noise] = [Math.sqrt(bar), Math.sqrt(1 - bar)];
  const place = { i: at + 1, count: run.count, c: spot.c + 1, row: spot.y + 1, column: spot.x + 1 };
  $(".where").textContent = fill(texts.where, place);
  $(".numbers").innerHTML = [["t", Math.round(t * 10) / 10], ["σ", digits(sigma)], ["ᾱ", digits(bar, 3)]].map(([name, value]) => `<span><var>${name}</var> = ${value}</span>`).join("");
  slider.value = at;
  slider.setAttribute("aria-valuetext", $(".where").textContent);
  const index = spot.y * maps_of(at, "x")[0].w + spot.x;
  const [x, x0] = ["x", "x0"].map((what) => maps_of(at, what)[spot.c].numbers[index]);
  const eps = (x - signal * x0) / noise;
  const of = (kind, text) => `<b class="${kind}">${text}</b>`;
  $(".formula").innerHTML =
    `<span>${of("x-t", "<var>x<sub>t</sub></var>")} = √<span class="bar">ᾱ</span> ${of("x-0", "<var>x̂<sub>0</sub></var>")} + √<span class="bar">1 − ᾱ</span> ${of("noise", "<var>ε</var>")}</span>` +
    `<span>${of("x-t", digits(x))} = ${digits(signal, 3)} · ${of("x-0", digits(x0))} + ${digits(noise, 3)} · ${of("noise", digits(eps))}</span>`;
  for (const [what, box] of Object.entries(side)) {
    const { w, h } = maps_of(at, what)[0];
    for (const [n, figure] of box.querySelectorAll(".maps figure").entries()) {
      const mark = figure.querySelector(".mark");
      mark.style.cssText = `left:${(100 * spot.x) / w}%;top:${(100 * spot.y) / h}%;width:${100 / w}%;height:${100 / h}%`;
      figure.classList.toggle("chosen", n % maps_of(at, what).length === spot.c);
    }
  }
  spread();
}

// --- histogram -----------------------------------------------------------------------------------------------------------------------

function spread() {
  const svg = $(".spread svg");
  const count = (v) => {
    const heights = new Array(bins).fill(0);
    for (const x of v) heights[Math.min(bins - 1, Math.max(0, Math.floor(((x / run.limit + 1) / 2) * bins)))] += 1 / v.length;
    return heights;
  };
  const heights = { x: count(maps_of(at, "x")[spot.c].numbers), x0: count(maps_of(at, "x0")[spot.c].numbers) };
  const width = (2 * run.limit) / bins;
  const bell = Array.from({ length: bins }, (_, k) => (width * Math.exp(-((-run.limit + (k + 0.5) * width) ** 2) / 2)) / Math.sqrt(2 * Math.PI));
  const top = Math.max(0.25, ...heights.x, ...heights.x0);
  const y = (share) => 148 - (146 * share) / top;
  const bars = (v, kind) => `<path class="${kind}" d="M0 148 ${v.map((h, k) => `L${k * 10} ${y(h)} L${k * 10 + 10} ${y(h)}`).join(" ")} L480 148Z"/>`;
  const line = `<polyline class="bell" points="${bell.map((h, k) => `${k * 10 + 5},${y(h)}`).join(" ")}"/>`;
  svg.innerHTML = bars(heights.x, "x-t") + bars(heights.x0, "x-0") + line;
  svg.setAttribute("aria-label", fill(texts.spread, { c: spot.c + 1 }));
  $(".spread h4").textContent = fill(texts.spread, { c: spot.c + 1 });
}

// --- selecting -----------------------------------------------------------------------------------------------------------------------

function select(chosen) {
  spot = chosen;
  numbers();
}

$(".sides").addEventListener("keydown", (event) => {
  const { w, h } = run.steps[0].x;
  const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] || [0, 0];
  const c = maps_of(at, "x")[Number(event.key) - 1] ? Number(event.key) - 1 : spot.c;
  if (!dx && !dy && c === spot.c) return;
  event.preventDefault();
  select({ c, x: Math.min(w - 1, Math.max(0, spot.x + dx)), y: Math.min(h - 1, Math.max(0, spot.y + dy)) });
});

function go(k) {
  at = Math.max(0, Math.min(k, run.steps.length - 1));
  draw();
}

function pause() {
  clearInterval(playing);
  playing = null;
  $(".play").textContent = texts.play;
}

slider.addEventListener("input", () => {
  pause();
  go(Number(slider.value));
});
$(".play").addEventListener("click", () => {
  if (playing) return pause();
  if (at === run.steps.length - 1) go(0);
  $(".play").textContent = texts.pause;
  playing = setInterval(() => (at === run.steps.length - 1 ? pause() : go(at + 1)), 200);
});
$(".half").addEventListener("click", () => {
  pause();
  const far = run.steps.map((s) => Math.abs(s.alpha_bar - 0.5));
  go(far.indexOf(Math.min(...far)));
  slider.focus({ preventScroll: true });
});
const amount = $(".shift input");
amount.addEventListener("input", () => ($(".shift output").textContent = digits(Number(amount.value), 1)));
$(".decode").addEventListener("click", () => trigger("shift", { at: String(at), by: amount.value }));

// --- what arrives --------------------------------------------------------------------------------------------------------------------

arrive((value) => {
  pause();
  run = value;
  element.style.setProperty("--aspect", `${run.steps[0].x.w} / ${run.steps[0].x.h}`);
  const name = (box, text, tip) => Object.assign(box.querySelector(".term"), { textContent: text }).setAttribute("data-tip", tip);
  name(side.x, texts.x, texts.x_tip);
  name(side.x0, texts.x0, texts.x0_tip);
  slider.max = run.steps.length - 1;
  slider.setAttribute("aria-label", texts.slider);
  $(".sides").setAttribute("aria-label", texts.keys);
  $(".scales .grey").innerHTML = `<i style="background:${window.maps.scale("grey")}"></i>`;
  $(".scales .grey").append(fill(texts.scale, { limit: run.limit }));
  $(".scales .signed").innerHTML = `<i style="background:${window.maps.scale("signed")}"></i>`;
  $(".scales .signed").append(fill(texts.scale_change, { limit: run.change }));
  $(".scales .under").textContent = texts.under;
  $(".spot h4").textContent = texts.spot;
  $(".spot .note").textContent = texts.spot_note;
  $(".spread .note").textContent = texts.spread_note;
  $(".legend").innerHTML = `<span class="x-t">x<sub>t</sub></span><span class="x-0">x̂<sub>0</sub></span>`;
  $(".legend").append(make("span", "bell", texts.bell));
  const ends = $(".ends").children;
  [ends[0].textContent, ends[2].textContent] = [`−${run.limit}`, `${run.limit}`];
  $(".try p").textContent = texts.try_half;
  $(".half").textContent = texts.try_half_button;
  $(".shift h4").textContent = texts.shift;
  $(".shift .note").textContent = texts.shift_note;
  $(".shift label span").textContent = texts.shift_by;
  $(".decode").textContent = texts.shift_button;
  amount.dispatchEvent(new Event("input"));
  const { w, h } = run.steps[0].x;
  spot = { c: 0, x: w >> 1, y: h >> 1 };
  build();
  go(Math.floor(run.steps.length / 2));
});
