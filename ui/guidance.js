// Guidance taken apart: what the UNet said at one step without the prompt and with it, and what any w makes of that. Everything is worked
// out here, from the predictions that the run kept, in float32 as the loop does it, so a slider needs neither model nor server.
//
//   value    JSON: {kind: "empty" | "run", ...}, made by ui/guidance.py
//   answer   JSON: what was asked for later, {kind: "step"}: numbers of a step of a large run, {kind: "pictures"}: the three x0 decoded

const $ = (selector) => element.querySelector(selector);
const $$ = (selector) => [...element.querySelectorAll(selector)];
const { fill } = dom;
const root = $(".anatomy");
const f = Math.fround;
const ENDS = 3; // of the colour scale of predictions: noise of strength 1 is beyond it once in 370 numbers
let run = null;
let texts = {};
let at = 0; // the step
let w = 7.5;
let channel = 0; // 1 .. 4; 0 = all four as colours
let pinned = null; // the spot that was clicked, {x, y}
let spot = null; // the one under the pointer, or the pinned one
let decoded = null; // the answer with the pictures, for one step and w

const number = (x) => String(Math.round(x * 100) / 100);
const signed = (x) => (Number.isFinite(x) ? (x < 0 ? "−" : "") + Math.abs(x).toFixed(3) : "NaN");
const strength = (z) => Math.sqrt(z.reduce((sum, v) => sum + v * v, 0) / z.length);

// --- the arithmetic ---------------------------------------------------------------------------------------------------------------

/** A step's numbers, (4, h, w) each: the UNet's input and the predictions that were made. null while they are not here. */
function kept(step) {
  if (!step.data) return null;
  const all = maps.values(step), size = 4 * run.h * run.w;
  let from = 0;
  const next = (there) => (there ? all.subarray(from, (from += size)) : null);
  return { x: next(true), uncond: next(step.uncond), cond: next(step.cond) };
}

/** eps = uncond + w (cond - uncond); null where w needs a prediction that was not made. */
function guide({ uncond, cond }, scale) {
  if (scale === 0) return uncond;
  if (scale === 1) return cond;
  return uncond && cond && uncond.map((u, k) => f(u + f(f(scale) * f(cond[k] - u))));
}

/** x0 = (x_in - sqrt(1 - alpha_bar) eps) / sqrt(alpha_bar) */
function clean(x, eps, alphaBar) {
  const noise = f(Math.sqrt(1 - alphaBar)), signal = f(Math.sqrt(alphaBar));
  return eps && eps.map((e, k) => f(f(x[k] - f(noise * e)) / signal));
}

/** |cond - uncond|: of one channel, or the length over all four. */
function distance({ uncond, cond }, which) {
  if (!uncond || !cond) return null;
  const n = run.h * run.w, channels = which ? [which - 1] : [0, 1, 2, 3];
  return Float32Array.from({ length: n }, (_, k) => Math.hypot(...channels.map((c) => cond[c * n + k] - uncond[c * n + k])));
}

// --- pictures ---------------------------------------------------------------------------------------------------------------------

/** Four channels as colours, by the linear preview. Answers with the share of values beyond a screen's range. */
function colours(canvas, z, offset) {
  const n = run.h * run.w;
  canvas.width = run.w;
  canvas.height = run.h;
  const image = new ImageData(run.w, run.h);
  let clipped = 0;
  for (let k = 0; k < n; k++) {
    for (let r = 0; r < 3; r++) {
      let v = offset ? run.preview[4][r] : 0;
      for (let c = 0; c < 4; c++) v += z[c * n + k] * run.preview[c][r];
      clipped += Math.abs(v) > 1.0005;
      image.data[4 * k + r] = Math.round(Math.min(1, Math.max(-1, v)) * 127.5 + 127.5);
    }
    image.data[4 * k + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  return clipped / (3 * n);
}

const mapOf = (numbers, high) => ({ numbers, h: run.h, w: run.w, low: 0, high });

function prediction(figure, eps) {
  figure.classList.toggle("absent", !eps);
  figure.querySelector(".strength").textContent = eps ? fill(texts.strength, { strength: strength(eps).toFixed(3) }) : texts.absent;
  if (!eps) return;
  const canvas = figure.querySelector("canvas"), n = run.h * run.w;
  if (channel) maps.paint(canvas, mapOf(eps.subarray((channel - 1) * n, channel * n), ENDS), "signed");
  else colours(canvas, eps, false);
}

function draw() {
  const step = run.steps[at];
  const numbers = kept(step);
  $(".where").textContent = fill(texts.step, { i: at + 1, count: run.count });
  $(".at").value = at;
  $(".at").setAttribute("aria-valuetext", $(".where").textContent);
  $(".strip .here")?.classList.remove("here");
  const here = $(".strip").children[at];
  here?.classList.add("here");
  $(".w").value = w;
  if (document.activeElement !== $(".w-typed")) $(".w-typed").value = number(w);
  $(".own").textContent = fill(texts.own, { w: number(step.w) });
  $(".own").hidden = w === step.w;
  const missing = !step.uncond ? texts.no_uncond : !step.cond ? texts.no_cond : "";
  $(".missing").hidden = !missing;
  $(".missing").textContent = missing && fill(missing, { w: number(step.w) });
  if (!numbers) return ask(at);

  const eps = guide(numbers, w);
  const length = distance(numbers, channel);
  prediction($(".four .uncond"), numbers.uncond);
  prediction($(".four .cond"), numbers.cond);
  prediction($(".four .guided"), eps);
  const figure = $(".four .difference");
  figure.classList.toggle("absent", !length);
  figure.querySelector(".strength").textContent = length ? fill(texts.strength, { strength: step.apart.toFixed(3) }) : texts.absent;
  if (length) maps.paint(figure.querySelector("canvas"), mapOf(length, run.high[channel]));
  $(".four .guided figcaption span").textContent = fill(texts.guided, { w: number(w) });
  legend();

  const same = decoded && decoded.job === run.job && decoded.i === at && Math.abs(decoded.w - w) < 1e-9;
  $(".three .guided b").textContent = number(w);
  $$(".three figure").forEach((one, k) => {
    const x0 = clean(numbers.x, guide(numbers, [0, 1, w][k]), step.alpha_bar);
    const image = one.querySelector("img");
    one.classList.toggle("absent", !x0);
    image.hidden = !(same && decoded.pictures[k]);
    if (!image.hidden) image.src = decoded.pictures[k];
    const clipped = x0 ? Math.round(100 * colours(one.querySelector("canvas"), x0, true)) : 0;
    one.querySelector(".strength").textContent = !x0 ? texts.absent : clipped ? fill(texts.clipped, { share: clipped }) : "";
  });
  $(".decode").disabled = Boolean(same);
  pixel(numbers, eps, length);
}

function legend() {
  const difference = `<span class="scale" style="background:${maps.scale("viridis")}"></span>`;
  const noise = `<span class="scale" style="background:${maps.scale("signed")}"></span>`;
  const predictions = channel ? `<span>${texts.scale_signed}</span><span>−${ENDS} ${noise} ${ENDS}</span>` : `<span>${texts.scale_colours}</span>`;
  $(".scales").innerHTML = `${predictions}<span>${texts.scale_difference}</span><span>0 ${difference} ${run.high[channel].toFixed(2)}</span>`;
  [...$(".channels").children].forEach((button, k) => button.setAttribute("aria-pressed", k === channel));
}

// --- one spot ---------------------------------------------------------------------------------------------------------------------

function pixel(numbers, eps, length) {
  // Before anything was pointed at: where the prompt changes most in this step.
  const farthest = length && length.indexOf(Math.max(...length));
  const place = spot || pinned || (length ? { x: farthest % run.w, y: Math.floor(farthest / run.w) } : { x: run.w >> 1, y: run.h >> 1 });
  root.style.setProperty("--x", place.x);
  root.style.setProperty("--y", place.y);
  $(".at-spot h3").textContent = fill(texts.spot, { row: place.y + 1, column: place.x + 1 });
  const n = run.h * run.w, k = place.y * run.w + place.x;
  const four = [0, 1, 2, 3].map((c) => [numbers.uncond, numbers.cond, eps].map((z) => (z ? z[c * n + k] : NaN)));
  const end = Math.max(ENDS, ...four.flat().filter(Number.isFinite).map(Math.abs));
  const scale = (v) => 100 * (0.5 + v / (2.1 * end));
  $(".lines").innerHTML = four
    .map(([u, c, e], k) => {
      const sum =
        Number.isFinite(u) && Number.isFinite(c)
          ? `<b class="guided">${signed(e)}</b> = <b class="uncond">${signed(u)}</b> + <b class="guided">${number(w)}</b> (<b class="cond">${signed(c)}</b> − <b class="uncond">${u < 0 ? `(${signed(u)})` : signed(u)}</b>)`
          : `<b class="guided">${Number.isFinite(e) ? signed(e) : "?"}</b> = <b class="${Number.isFinite(u) ? "uncond" : "cond"}">${signed(Number.isFinite(u) ? u : c)}</b>`;
      const dots = [["guided", e], ["uncond", u], ["cond", c]].filter(([, v]) => Number.isFinite(v)).map(([name, v]) => `<i class="${name}" style="left:${scale(v)}%"></i>`);
      const known = [u, c, e].filter(Number.isFinite);
      const reach = `<s style="left:${scale(Math.min(...known))}%;right:${100 - scale(Math.max(...known))}%"></s>`;
      return `<div class="line${channel === k + 1 ? " chosen" : ""}"><small>${k + 1}</small><span class="sum">${sum}</span><span class="ruler" aria-hidden="true"><u></u>${reach}${dots.join("")}</span></div>`;
    })
    .join("");
  $(".spot-note").textContent = fill(texts.ruler, { end: number(end) });
}

// --- what is chosen ---------------------------------------------------------------------------------------------------------------

function go(k) {
  at = Math.max(0, Math.min(k, run.steps.length - 1));
  draw();
}

function choose(value) {
  w = Math.min(30, Math.max(0, value));
  draw();
}

function ask(i) {
  if (run.steps[i].asked) return;
  run.steps[i].asked = true;
  trigger("pick", { act: "step", job: run.job, i: String(i) });
}

$(".at").addEventListener("input", (event) => run && go(Number(event.target.value)));
$(".w").addEventListener("input", (event) => run && choose(Number(event.target.value)));
$(".w-typed").addEventListener("input", (event) => {
  const typed = event.target.value.trim() === "" ? NaN : Number(event.target.value.replace(",", "."));
  const wrong = !(typed >= 0 && typed <= 30);
  event.target.setAttribute("aria-invalid", wrong);
  event.target.title = wrong ? "0 – 30" : "";
  if (run && !wrong) choose(typed);
});
$(".w-typed").addEventListener("blur", (event) => {
  event.target.value = number(w);
  event.target.setAttribute("aria-invalid", false);
});
$(".own").addEventListener("click", () => run && choose(run.steps[at].w));
$(".strip").addEventListener("pointerdown", (event) => {
  const cell = event.target.closest(".cell");
  if (cell) go([...$(".strip").children].indexOf(cell));
});
$(".strip").addEventListener("pointermove", (event) => {
  const cell = event.buttons === 1 && event.pointerType !== "touch" && event.target.closest(".cell");
  if (cell) go([...$(".strip").children].indexOf(cell));
});
$(".decode").addEventListener("click", () => {
  if (!run) return;
  $(".decode").disabled = true;
  trigger("pick", { act: "decode", job: run.job, i: String(at), w: String(w) });
});
$(".attempt button").addEventListener("click", () => {
  w = 30;
  go(Math.floor(run.steps.length / 4));
});
$$(".map canvas").forEach((canvas) => {
  maps.point(
    canvas,
    () => mapOf(new Float32Array(run.h * run.w), 1),
    (x, y) => {
      spot = x === null ? null : { x, y };
      draw();
    },
    (x, y) => {
      pinned = { x, y };
      draw();
    },
  );
});
$(".four .uncond canvas").addEventListener("keydown", (event) => {
  const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] || [];
  if (dx === undefined || !run) return;
  event.preventDefault();
  const from = pinned || { x: run.w >> 1, y: run.h >> 1 };
  pinned = { x: Math.min(run.w - 1, Math.max(0, from.x + dx)), y: Math.min(run.h - 1, Math.max(0, from.y + dy)) };
  draw();
});

// --- what arrives -----------------------------------------------------------------------------------------------------------------

function words() {
  const say = (selector, text, tip) => {
    $(selector).textContent = text;
    if (tip) $(selector).dataset.tip = tip;
  };
  say(".empty", texts.empty);
  say(".strip-note", texts.strip);
  say(".dial .term", texts.scale, texts.scale_tip);
  say(".four .uncond .term", texts.uncond, texts.uncond_tip);
  say(".four .cond .term", texts.cond, texts.cond_tip);
  say(".four .difference span", texts.difference);
  say(".points-to h3", texts.points);
  say(".points-to .note", texts.points_note);
  say(".three .uncond span", texts.uncond);
  say(".three .cond span", texts.cond);
  say(".three .guided span", texts.chosen);
  say(".decode", texts.decode);
  say(".attempt p", texts.attempt);
  say(".attempt button", texts.attempt_button);
  $(".at").setAttribute("aria-label", texts.slider);
  $(".w").setAttribute("aria-label", texts.scale);
  $(".w-typed").setAttribute("aria-label", texts.scale);
  $$("figure canvas").forEach((canvas) => {
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", canvas.closest("figure").querySelector("figcaption").textContent.trim());
  });
  $(".four .uncond canvas").setAttribute("aria-label", texts.keys);
  const names = [texts.all, ...[1, 2, 3, 4].map((k) => fill(texts.channel, { k }))];
  const buttons = names.map((name, k) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = name;
    button.addEventListener("click", () => {
      channel = k;
      draw();
    });
    return button;
  });
  $(".channels").replaceChildren(...buttons);
}

function strip() {
  const most = Math.max(...run.steps.map((step) => step.apart || 0)) || 1;
  const cells = run.steps.map((step, k) => {
    const cell = document.createElement("div");
    cell.className = "cell";
    const numbers = kept(step), length = numbers && distance(numbers, 0);
    if (length) {
      const canvas = document.createElement("canvas");
      canvas.className = "pixels";
      maps.paint(canvas, mapOf(length, run.high[0]));
      cell.append(canvas);
    }
    const bar = document.createElement("i");
    bar.style.height = `${(100 * (step.apart || 0)) / most}%`;
    const well = document.createElement("span");
    well.append(bar);
    cell.append(well);
    cell.title = fill(texts.step, { i: k + 1, count: run.count }) + (step.apart === null ? "" : `: ${step.apart.toFixed(3)}`);
    return cell;
  });
  $(".strip").style.setProperty("--cells", cells.length);
  $(".strip").replaceChildren(...cells);
}

function show() {
  const value = dom.read(props.value);
  if (value.kind === "none") return;
  root.dataset.kind = value.kind;
  texts = value.texts || texts;
  words();
  $(".empty").hidden = value.kind !== "empty";
  run = value.kind === "run" ? value : null;
  if (!run) return;
  w = run.guidance;
  at = Math.min(run.first, run.steps.length - 1);
  pinned = spot = decoded = null;
  root.style.setProperty("--aspect", `${run.w} / ${run.h}`);
  root.style.setProperty("--columns", run.w);
  root.style.setProperty("--rows", run.h);
  $(".at").max = run.steps.length - 1;
  strip();
  draw();
}

function answered() {
  const answer = dom.read(props.answer);
  if (!run || answer.job !== run.job) return;
  if (answer.kind === "step") run.steps[answer.i].data = answer.data;
  if (answer.kind === "pictures") decoded = answer;
  draw();
}

watch("value", show);
watch("answer", answered);
show();
