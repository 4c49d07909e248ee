// The truth about an inpainting: what the UNet saw, and what changed where nothing was painted.
//
//   value   JSON of ui/inpaint.py's `honesty`: {kind: "none" | "run", ...}

const $ = (selector) => element.querySelector(selector);
const { fill, make } = dom;
const root = $(".honest-view");
let run = {};
let texts = {};

const digits = (x) => x.toFixed(2).replace("-", "−");
const decoded = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));

// --- what the UNet saw --------------------------------------------------------------------------------------------------------------

/** Latents, sent in 16 bits, as maps from -limit to limit. */
function latents({ data, scale, h, w }, limit) {
  const numbers = Float32Array.from(new Int16Array(decoded(data).buffer), (q) => (q === -32768 ? NaN : q * scale));
  return Array.from({ length: numbers.length / (h * w) }, (_, c) => ({ numbers: numbers.subarray(c * h * w, (c + 1) * h * w), h, w, low: -limit, high: limit }));
}

function channel(map, name) {
  const canvas = make("canvas", "pixels");
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", name);
  window.maps.paint(canvas, map, "grey");
  window.maps.point(canvas, () => map, (x, y, v) => ($(".read").textContent = x === null ? texts.hover : `${name}, ${fill(texts.at, { row: y + 1, column: x + 1 })}: ${digits(v)}`));
  return canvas;
}

function moment() {
  const one = run.inputs[Number($(".moment input").value)];
  $(".moment output").textContent = fill(texts.moment, { i: one.i + 1, count: run.count, t: one.t });
  $(".x-in .row").replaceChildren(...latents(one.x, run.limit).map((map, c) => channel(map, fill(texts.channel, { c: c + 1 }))));
}

function seen() {
  const { mask } = run, canvas = $(".latent-mask canvas");
  $(".seen-title").textContent = texts.seen;
  $(".kind").textContent = run.kind_says;
  $(".latent-mask figcaption").textContent = texts.latent_mask;
  $(".latent-mask img").src = run.drawn;
  $(".latent-mask small").textContent = run.marked_says;
  [canvas.width, canvas.height] = [mask.w, mask.h];
  const context = canvas.getContext("2d");
  context.fillStyle = getComputedStyle(element).getPropertyValue("--mask");
  decoded(mask.data).forEach((on, i) => on && context.fillRect(i % mask.w, Math.floor(i / mask.w), 1, 1));
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", run.marked_says);

  $(".x-in figcaption").textContent = texts.x_in;
  $(".known").hidden = !run.known;
  if (run.known) {
    $(".known figcaption").textContent = texts.known;
    const numbers = Float32Array.from(decoded(mask.data));
    const shown = channel({ numbers, h: mask.h, w: mask.w, low: 0, high: 1 }, fill(texts.channel_mask, { c: 5 }));
    $(".known .row").replaceChildren(shown, ...latents(run.known, run.known_limit).map((map, c) => channel(map, fill(texts.channel_known, { c: c + 6 }))));
  }
  $(".moment span").textContent = texts.step;
  [$(".moment input").max, $(".moment input").value] = [run.inputs.length - 1, 0];
  $(".read").textContent = texts.hover;
  moment();
}

$(".moment input").addEventListener("input", moment);

// --- what changed outside the mask ----------------------------------------------------------------------------------------------------

function change(selector, title) {
  const sent = run.changes[selector], canvas = $(`.${selector} canvas`), bytes = decoded(sent.data), hidden = decoded(sent.hidden);
  const map = { numbers: Float32Array.from(bytes), h: sent.h, w: sent.w, low: 0, high: run.most };
  window.maps.paint(canvas, map, "viridis");
  const context = canvas.getContext("2d");
  context.fillStyle = getComputedStyle(element).getPropertyValue("--strong-line");
  hidden.forEach((on, i) => on && context.fillRect(i % sent.w, Math.floor(i / sent.w), 1, 1));
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `${title}: ${sent.says}`);
  const line = $(`.${selector} p`);
  line.textContent = sent.says;
  window.maps.point(canvas, () => map, (x, y, v) => (line.textContent = x === null ? sent.says : hidden[y * sent.w + x] ? texts.in_mask : fill(texts.level, { row: y + 1, column: x + 1, v })));
  $(`.${selector} figcaption`).textContent = title;
}

function changes() {
  $(".outside").textContent = texts.outside;
  $(".note").textContent = run.outside_says;
  change("raw", texts.raw);
  change("composited", texts.composited);
  $(".changes .scale i").style.background = window.maps.scale("viridis");
  $(".changes .scale span").textContent = fill(texts.scale, { most: run.most });
}

function look() {
  run = dom.read(props.value);
  if (run.texts) texts = run.texts;
  root.dataset.kind = run.kind;
  if (run.kind !== "run") return;
  root.style.setProperty("--aspect", `${run.mask.w} / ${run.mask.h}`);
  seen();
  changes();
}
watch("value", look);
look();
