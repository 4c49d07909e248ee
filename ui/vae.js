// A picture's way through the VAE and back, and a workshop in between: what is done to which channel, and where.

const RANGES = { noise: [0, 2, 0.1, 0.5], blur: [0, 3, 0.25, 1], zero: null, shift: [-3, 3, 0.25, 1] };
const mask = $(".mask");
const amount = $(".amount input");
let trip = null;
let edit = "noise";
let channel = 0; // 0: all, 1 .. 4
let painted = new Uint8Array(0);
let brush = null;
let kept = {};

function choices(box, options, choose) {
  box.querySelectorAll("button").forEach((button) => button.remove());
  for (const [key, text] of options) {
    const button = make("button", "", text);
    [button.type, button.value] = ["button", key];
    button.addEventListener("click", () => choose(key));
    box.append(button);
  }
}

const press = (box, key) => box.querySelectorAll("button").forEach((button) => button.setAttribute("aria-pressed", button.value === key));

function setEdit(key) {
  edit = key;
  press($(".edits"), key);
  const range = RANGES[key];
  $(".amount").hidden = !range;
  if (range) {
    [amount.min, amount.max, amount.step] = range;
    amount.value = kept[key] ?? range[3];
    tellAmount();
  }
}

function setChannel(key) {
  channel = Number(key);
  press($(".which"), key);
}

function tellAmount() {
  kept[edit] = amount.value;
  $(".amount output").textContent = digits(Number(amount.value));
}

// --- painting --------------------------------------------------------------------------------------------------------------------

function paintMask() {
  const context = mask.getContext("2d");
  [mask.width, mask.height] = [trip.w, trip.h];
  const colour = getComputedStyle(element).getPropertyValue("--mask");
  context.fillStyle = colour;
  painted.forEach((on, i) => on && context.fillRect(i % trip.w, Math.floor(i / trip.w), 1, 1));
  const count = painted.reduce((sum, on) => sum + on, 0);
  $(".patch").textContent = count ? fill(texts.patch, { count, total: painted.length }) : texts.patch_none;
  $(".clear").disabled = !count;
}

function cell(event) {
  const box = mask.getBoundingClientRect();
  const at = (v, side) => Math.min(side - 1, Math.max(0, Math.floor(v * side)));
  return at((event.clientY - box.top) / box.height, trip.h) * trip.w + at((event.clientX - box.left) / box.width, trip.w);
}

function stroke(event) {
  if (brush === null) return;
  painted[cell(event)] = brush;
  paintMask();
}

mask.addEventListener("pointerdown", (event) => {
  brush = painted[cell(event)] ? 0 : 1;
  mask.setPointerCapture(event.pointerId);
  stroke(event);
});
mask.addEventListener("pointermove", stroke);
for (const end of ["pointerup", "pointercancel"]) mask.addEventListener(end, () => (brush = null));
// By keyboard: Enter or Space paints the middle quarter.
mask.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" && event.key !== " ") return;
  event.preventDefault();
  const inner = (v, side) => v >= side / 4 && v < (3 * side) / 4;
  painted = painted.map((_, i) => Number(inner(i % trip.w, trip.w) && inner(Math.floor(i / trip.w), trip.h)));
  paintMask();
});
$(".clear").addEventListener("click", () => {
  painted.fill(0);
  paintMask();
});
amount.addEventListener("input", tellAmount);
const decode = () => trigger("edit", { edit, amount: RANGES[edit] ? amount.value : "0", channel: String(channel), mask: painted.includes(1) ? painted.join("") : "" });
$(".decode").addEventListener("click", decode);
$(".blank-channel").addEventListener("click", () => {
  setEdit("zero");
  setChannel("1");
  decode();
});

// --- what arrives ------------------------------------------------------------------------------------------------------------------

arrive((value) => {
  trip = value;
  element.style.setProperty("--aspect", `${trip.w} / ${trip.h}`);
  const caption = (selector, text, small) => {
    $(`${selector} figcaption`).textContent = text;
    $(`${selector} small`).textContent = small;
  };
  caption(".before", texts.before, trip.pixels);
  caption(".after", texts.after, trip.pixels);
  caption(".error", texts.error, texts.error_hover);
  const term = make("span", "term", texts.inside);
  [term.tabIndex, term.dataset.tip] = [0, texts.inside_tip];
  $(".inside figcaption").replaceChildren(term);
  $(".inside small").textContent = trip.numbers;
  $(".before img").src = $(".easel img").src = trip.before;
  $(".after img").src = trip.after;
  $(".before img").alt = $(".easel img").alt = texts.before;
  $(".after img").alt = texts.after;
  $(".four").replaceChildren(
    ...channels(trip.latents, trip.limit).map((map, c) => {
      const canvas = make("canvas", "pixels");
      window.maps.paint(canvas, map, "grey");
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", fill(texts.channel, { c: c + 1 }));
      window.maps.point(canvas, () => map, (x, y, v) => ($(".inside small").textContent = x === null ? trip.numbers : `${fill(texts.channel, { c: c + 1 })}, ${fill(texts.at, { row: y + 1, column: x + 1 })}: ${digits(v)}`));
      return canvas;
    }),
  );
  const canvas = $(".error canvas");
  window.maps.paint(canvas, trip.error, "viridis");
  canvas.setAttribute("aria-label", texts.error);
  window.maps.point(canvas, () => trip.error, (x, y, v) => ($(".error small").textContent = x === null ? texts.error_hover : `${fill(texts.at, { row: y + 1, column: x + 1 })}: ${digits(v, 1)}`));
  $(".error .scale").innerHTML = `<i style="background:${window.maps.scale("viridis")}"></i>`;
  $(".error .scale").append(`0 – ${trip.error.high}`);
  $(".verdict").textContent = trip.verdict;
  $(".try p").textContent = texts.try;
  $(".blank-channel").textContent = texts.try_button;
  $(".workshop h4").textContent = texts.workshop;
  $(".workshop .note").textContent = texts.workshop_note;
  $(".edits legend").textContent = texts.edit;
  $(".which legend").textContent = texts.which;
  $(".amount span").textContent = texts.amount;
  $(".clear").textContent = texts.clear;
  $(".decode").textContent = texts.decode;
  mask.setAttribute("aria-label", texts.mask);
  choices($(".edits"), [["noise", texts.noise], ["blur", texts.blur], ["zero", texts.zero], ["shift", texts.shift]], setEdit);
  choices($(".which"), [["0", texts.all], ...[1, 2, 3, 4].map((c) => [String(c), String(c)])], setChannel);
  if (painted.length !== trip.w * trip.h) painted = new Uint8Array(trip.w * trip.h);
  setEdit(edit);
  setChannel(String(channel));
  paintMask();
});
