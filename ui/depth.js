// The depth map on the page, and what the UNet sees of it. It is painted on and inverted here, and what stands here is what Run takes:
// the changed map goes back into the component's own value.
//
//   value   JSON: {kind: "map", map, picture, of, origin, width, height, seen: [h, w], said, texts} made by ui/depth.py;
//           {kind: "said", status} while there is no map

const $ = (selector) => element.querySelector(selector);
const { fill, make } = dom;
const maps = window.maps;
const sheet = $(".map canvas");
const ring = $(".ring");
const size = $(".size input");
let value = {};
let texts = {};
let own = ""; // the value that was written here
let map = null; // {numbers, h, w, low, high}, larger = nearer
let seen = null; // the same at the latents' size, -1 .. 1
let first = null; // the numbers as they came
let past = [];
let inverted = false;
let brush = 1; // 1: nearer, -1: farther
let last = null; // where the brush was, in shares of the map's sides, while it paints

const digits = (x) => x.toFixed(Math.abs(x) >= 100 ? 0 : Math.abs(x) >= 10 ? 1 : 2).replace("-", "−");

// --- what the UNet sees: bicubic as torch's (a = -0.75), then stretched from -1 to 1 ---------------------------------------------------

function taps(from, to) {
  const near = (x) => (1.25 * x - 2.25) * x * x + 1;
  const far = (x) => ((-0.75 * x + 3.75) * x - 6) * x + 3;
  return Array.from({ length: to }, (_, i) => {
    const at = ((i + 0.5) * from) / to - 0.5;
    const k = Math.floor(at), t = at - k;
    return [far(t + 1), near(t), near(1 - t), far(2 - t)].map((share, n) => [Math.min(from - 1, Math.max(0, k - 1 + n)), share]);
  });
}

function shrunk({ numbers, h, w }, [rows, columns]) {
  const down = taps(h, rows), across = taps(w, columns), small = new Float32Array(rows * columns);
  down.forEach((ys, r) => across.forEach((xs, c) => {
    for (const [y, a] of ys) for (const [x, b] of xs) small[r * columns + c] += a * b * numbers[y * w + x];
  }));
  const low = Math.min(...small), span = Math.max(...small) - low;
  return { numbers: small.map((v) => (span ? (2 * (v - low)) / span - 1 : NaN)), h: rows, w: columns, low: -1, high: 1, flat: !span };
}

// --- drawing ---------------------------------------------------------------------------------------------------------------------------

function draw() {
  maps.paint(sheet, map, "grey");
  seen = shrunk(map, value.seen);
  maps.paint($(".seen canvas"), seen.flat ? { ...seen, numbers: seen.numbers.fill(0) } : seen, "grey");
  $(".note").textContent = seen.flat ? texts.flat : value.said;
  $(".invert").setAttribute("aria-pressed", inverted);
  $(".undo").disabled = $(".again").disabled = !past.length;
}

const told = (figure, hint) => (x, y, v) =>
  ($(`${figure} small`).textContent = x === null ? hint() : fill(texts.at, { row: y + 1, column: x + 1, value: digits(v) }));

/** What was changed becomes the component's value, which Run reads. */
function keep() {
  const bytes = new Uint8Array(map.numbers.buffer);
  let text = "";
  for (let i = 0; i < bytes.length; i += 8192) text += String.fromCharCode(...bytes.subarray(i, i + 8192));
  own = JSON.stringify({ ...value, map: { data: btoa(text), h: map.h, w: map.w, low: map.low, high: map.high }, changed: past.length > 0 });
  props.value = own;
}

function change(act) {
  past = [...past.slice(-19), { numbers: map.numbers.slice(), inverted }];
  act();
  draw();
  keep();
}

// --- painting --------------------------------------------------------------------------------------------------------------------------

/** A soft dab at (x, y), in shares of the map's sides; nothing becomes nearer than the nearest, or farther than the farthest. */
function dab(x, y) {
  const { numbers, h, w, low, high } = map;
  const across = (size.value / 100) * w, down = (across / w) * h * (value.width / value.height);
  for (let r = Math.max(0, Math.floor(y * h - down)); r < Math.min(h, y * h + down); r++)
    for (let c = Math.max(0, Math.floor(x * w - across)); c < Math.min(w, x * w + across); c++) {
      const off = ((c + 0.5 - x * w) / across) ** 2 + ((r + 0.5 - y * h) / down) ** 2;
      if (off < 1) numbers[r * w + c] = Math.min(high, Math.max(low, numbers[r * w + c] + brush * 0.2 * (high - low) * (1 - off) ** 2));
    }
}

function stroke(to) {
  const [x, y] = to, [x0, y0] = last ?? to;
  const steps = Math.max(1, Math.ceil(Math.hypot(x - x0, y - y0) / (size.value / 300)));
  for (let k = 1; k <= steps; k++) dab(x0 + ((x - x0) * k) / steps, y0 + ((y - y0) * k) / steps);
  last = to;
  draw();
}

function place(x, y) {
  const box = sheet.getBoundingClientRect();
  Object.assign(ring.style, { left: `${100 * x}%`, top: `${100 * y}%`, width: `${(2 * size.value * box.width) / 100}px` });
  ring.hidden = false;
}

function at(event) {
  const box = sheet.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
}

sheet.addEventListener("pointerdown", (event) => {
  if (event.button || !map) return;
  past = [...past.slice(-19), { numbers: map.numbers.slice(), inverted }];
  sheet.setPointerCapture(event.pointerId);
  stroke(at(event));
});
sheet.addEventListener("pointermove", (event) => {
  place(...at(event));
  if (last) stroke(at(event));
});
sheet.addEventListener("pointerleave", () => (ring.hidden = true));
document.addEventListener("keydown", () => last && keep(), true); // Ctrl+Enter in the middle of a stroke
for (const end of ["pointerup", "pointercancel", "lostpointercapture"])
  sheet.addEventListener(end, () => {
    if (!last) return;
    last = null;
    keep();
  });

// By keyboard: arrows move the brush, Enter or Space dabs.
let spot = [0.5, 0.5];
sheet.addEventListener("keydown", (event) => {
  const [x, y] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [0, 0];
  const dabs = event.key === "Enter" || event.key === " ";
  const back = event.key === "z" && (event.ctrlKey || event.metaKey);
  if (!map || (!x && !y && !dabs && !back)) return;
  event.preventDefault();
  event.stopPropagation();
  if (back) return undo();
  spot = [Math.min(1, Math.max(0, spot[0] + x / 16)), Math.min(1, Math.max(0, spot[1] + y / 16))];
  place(...spot);
  if (dabs) change(() => dab(...spot));
});
sheet.addEventListener("blur", () => (ring.hidden = true));

function undo() {
  if (!past.length) return;
  const before = past.pop();
  map.numbers = before.numbers;
  inverted = before.inverted;
  draw();
  keep();
}

function invert() {
  inverted = !inverted;
  map.numbers = map.numbers.map((v) => map.low + map.high - v);
}

function press() {
  for (const button of element.querySelectorAll(".brush button")) button.setAttribute("aria-pressed", Number(button.value) === brush);
}

for (const button of element.querySelectorAll(".brush button"))
  button.addEventListener("click", () => {
    brush = Number(button.value);
    press();
  });
$(".invert").addEventListener("click", () => change(invert));
$(".undo").addEventListener("click", undo);
$(".again").addEventListener("click", () => {
  [map.numbers, inverted, past] = [first.slice(), false, []];
  draw();
  keep();
});

// --- what arrives ----------------------------------------------------------------------------------------------------------------------

function words() {
  $(".picture figcaption").textContent = $(".picture img").alt = value.start;
  $(".map figcaption").textContent = texts.map;
  $(".seen .term").textContent = texts.seen;
  $(".seen .term").dataset.tip = texts.seen_tip;
  $(".brush legend").textContent = texts.brush;
  $(".brush [value='1']").textContent = texts.nearer;
  $(".brush [value='-1']").textContent = texts.farther;
  $(".size span").textContent = texts.size;
  $(".invert").textContent = texts.invert;
  $(".undo").textContent = texts.undo;
  $(".again").textContent = texts.again;
  const [far, near] = element.querySelectorAll(".map .scale span");
  [far.textContent, near.textContent] = [texts.far, texts.near];
  for (const bar of element.querySelectorAll(".scale i")) bar.style.background = maps.scale("grey");
  sheet.setAttribute("aria-label", texts.map_keys);
  $(".seen canvas").setAttribute("aria-label", texts.seen);
}

function show() {
  if (props.value === own) return;
  value = dom.read(props.value);
  if (value.texts) texts = value.texts;
  $(".depth-view").dataset.kind = value.kind;
  $(".status").textContent = value.status || "";
  $(".status").hidden = !value.status;
  if (value.kind !== "map") return void (map = null);
  words();
  map = { ...value.map, numbers: maps.values(value.map).slice() };
  delete map.data;
  [first, past, inverted] = [map.numbers.slice(), [], false];
  element.style.setProperty("--aspect", `${value.width} / ${value.height}`);
  $(".picture img").src = value.picture;
  maps.point(sheet, () => map, told(".map", () => texts.map_hover));
  maps.point($(".seen canvas"), () => seen, told(".seen", () => fill(texts.seen_size, { h: seen.h, w: seen.w })));
  draw();
  told(".map", () => texts.map_hover)(null);
  told(".seen", () => fill(texts.seen_size, { h: seen.h, w: seen.w }))(null);
  press();
}

watch("value", show);
show();
