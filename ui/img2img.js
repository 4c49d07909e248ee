// What a strength means, before anything runs. The server sends the schedule's levels, the picture's latents and the noise once; what a
// strength makes of them is worked out here, so the slider asks nobody.
//
//   value   JSON: {kind: "card", ...}, made by card() in ui/img2img.py

const STRENGTH = "img2img-strength-number"; // the box that says it
const MOST = 100; // steps of a schedule
let card = null;
let text = document.getElementById(STRENGTH)?.value ?? "";
let asking = null;

// --- the arithmetic of core/conditioning.py -----------------------------------------------------------------------------------------

const skipped = (steps, strength) => steps - Math.min(Math.trunc(steps * strength), steps);

/** The steps to ask for so that exactly n run; undefined if that takes more than 100. */
function stepsFor(n, strength) {
  for (let steps = n; steps <= MOST; steps++) if (steps - skipped(steps, strength) === n) return steps;
}

/** The shortest strength at which the steps from `start` on run. (steps - start) / steps would be it, if 50 * 0.58 were not 28.999…96. */
function strengthFrom(start, steps) {
  for (const parts of [100, 1000]) {
    const least = Math.ceil((parts * (steps - start)) / steps - 1e-9);
    for (const k of [least, least + 1]) if (k <= parts && skipped(steps, k / parts) === start) return k / parts;
  }
}

// --- drawing ------------------------------------------------------------------------------------------------------------------------

/** Latents as colours, by the linear preview; noise has no brightness of its own. */
function paint(canvas, z, isNoise) {
  const [{ h, w }] = z;
  [canvas.width, canvas.height] = [w, h];
  const image = new ImageData(w, h);
  for (let k = 0; k < h * w; k++) {
    for (let r = 0; r < 3; r++) {
      let v = isNoise ? 0 : card.preview[4][r];
      for (let c = 0; c < 4; c++) v += z[c].numbers[k] * card.preview[c][r];
      image.data[4 * k + r] = 127.5 + 127.5 * v; // clamped by the array
    }
    image.data[4 * k + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

const mixed = (a, b) =>
  card.z.map((map, c) => ({ ...map, numbers: map.numbers.map((v, k) => a * v + b * card.noise[c].numbers[k]) }));

/** One bar a step: the share of noise that it meets. */
function schedule() {
  const bars = Array.from({ length: card.steps }, (_, k) => {
    const [t, , bar] = card.levels[k * card.order];
    const cell = make("i");
    cell.style.setProperty("--share", `${100 * (1 - bar)}%`);
    cell.title = fill(texts.cell, { i: k + 1, t: digits(t, 0) });
    return cell;
  });
  $(".schedule").replaceChildren(...bars);
}

$(".schedule").addEventListener("click", (event) => {
  const k = [...$(".schedule").children].indexOf(event.target.closest("i"));
  const box = document.getElementById(STRENGTH);
  if (k < 0 || !box) return;
  box.value = strengthFrom(k, card.steps);
  box.dispatchEvent(new Event("input", { bubbles: true }));
});

// --- one strength -------------------------------------------------------------------------------------------------------------------

function follow() {
  if (!card) return;
  const strength = text.trim() === "" ? NaN : Number(text.replace(",", "."));
  const valid = strength >= 0 && strength <= 1;
  $(".title").textContent = fill(texts.title, { strength: valid ? strength : "…" });
  if (!valid) return say(texts.no_strength, null);
  if (card.exactly !== null && strength > 0) {
    const needed = stepsFor(card.exactly, strength);
    if (!needed) return say(fill(texts.too_many, { n: card.exactly }), null);
    if (needed !== card.steps) {
      clearTimeout(asking);
      asking = setTimeout(() => trigger("want", { steps: needed }), 100);
      return;
    }
  }
  const start = skipped(card.steps, strength);
  const first = start * card.order;
  const here = card.levels[first];
  if (!strength) return say(texts.nothing, null);
  if (!here) return say(fill(texts.none, { steps: card.steps, least: Math.ceil(1000 / card.steps) / 1000 }), null);
  const what = { left: card.steps - start, steps: card.steps, start, n: card.exactly, t: digits(here[0], 0) };
  const turns = card.levels.length - first;
  const more = turns === what.left ? "" : ` ${fill(texts.turns, { turns })}`;
  say(fill(card.exactly !== null ? texts.runs_exactly : start ? texts.runs : texts.runs_all, what) + more, here, start);
  code(strength, start, here);
}

/** here: [t, sigma, alpha_bar] of the first step that runs; null where none does. */
function say(sentence, here, start = card.steps) {
  $(".said").textContent = sentence;
  for (const part of [".mix", ".facts", "details"]) $(part).hidden = !here;
  [...$(".schedule").children].forEach((cell, k) => {
    cell.classList.toggle("runs", k >= start);
    cell.classList.toggle("first", k === start);
  });
  if (!here) return;
  const [t, sigma, bar] = here;
  const [a, b] = [Math.sqrt(bar), Math.sqrt(1 - bar)];
  paint($(".x canvas"), mixed(a, b));
  $(".operator.signal").textContent = `${digits(a, 3)} ×`;
  $(".operator.noise").textContent = `+ ${digits(b, 3)} ×`;
  $(".numbers").textContent = `t = ${digits(t, 0)}, σ = ${digits(sigma, 3)}, ᾱ = ${digits(bar, 3)}`;
  $(".share i").style.width = `${100 * bar}%`;
  $(".share .signal").textContent = fill(texts.signal, { share: Math.round(100 * bar) });
  $(".share .noise").textContent = fill(texts.noise_share, { share: Math.round(100 * (1 - bar)) });
}

/** The same as a loop over all steps, as the course's notebooks have it. */
function code(strength, start, here) {
  const times = card.order > 1 ? " * scheduler.order" : "";
  $("code").textContent = [
    `steps, strength = ${card.steps}, ${strength}`,
    `start_step = steps - int(steps * strength)`,
    `# ${card.steps} - int(${card.steps} * ${strength}) = ${start}, t = ${digits(here[0], 0)}`,
    `x = scheduler.add_noise(z, noise, timesteps[[start_step${times}]])`,
    `for i, t in enumerate(timesteps):`,
    `    if i >= start_step${times}:`,
    `        ...`,
  ].join("\n");
}

document.addEventListener("number", (event) => {
  if (event.detail.of !== STRENGTH) return;
  text = event.detail.text;
  follow();
});

arrive((value) => {
  card = { ...value, z: channels(value.z, 1), noise: channels(value.noise, 1) };
  text = document.getElementById(STRENGTH)?.value ?? text;
  element.style.setProperty("--aspect", `${card.w} / ${card.h}`);
  $(".clean img").src = card.picture;
  $(".clean figcaption").textContent = texts.clean;
  $(".z figcaption span").textContent = texts.latents;
  $("figure.noise figcaption span").textContent = texts.noise;
  $(".x figcaption span").textContent = texts.noised;
  $(".schedule-note").textContent = texts.schedule;
  $(".unseeded").textContent = texts.unseeded;
  $(".unseeded").hidden = card.seeded;
  $("summary").textContent = texts.loop;
  $("details .note").textContent = texts.loop_says;
  paint($(".z canvas"), card.z);
  paint($("figure.noise canvas"), card.noise, true);
  schedule();
  follow();
});
