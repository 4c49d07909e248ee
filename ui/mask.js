// The mask editor: what is painted here is made anew. One byte a pixel of the picture, apart from the picture, which is never drawn on.
//
//   value in    {kind: "canvas", name, w, h, picture, cells, words, texts}: a picture, and of the latents how many there are across and down
//               {kind: "mask", sent, name, w, h, bits}: a mask for that picture, from a word or a file; a canvas may come with bits too
//   value out   {kind: "mask", name, w, h, bits}, set as the mask changes, before anything else can be clicked: so Run takes what is seen
//   bits        base64, a bit a pixel, row by row, 1 = make anew
//   events      stroke: the mask is another; word {word, share}: a mask from a word's attention is wanted

const $ = (selector) => element.querySelector(selector);
const { fill, make } = dom;
const root = $(".mask-editor");
const canvas = $(".painted");
const ROOM = 64 * 2 ** 20; // bytes of masks to go back to
let board = { name: "", w: 0, h: 0, cells: [1, 1] };
let mask = new Uint8Array(0);
let past = [];
let future = [];
let texts = {};
let erasing = false;
let last = null; // where a stroke has come to, in pixels
let finger = null; // which pointer paints
let spot = null; // the brush for the keyboard
let word = ""; // the one that was chosen last
let box = [0, 0, 1, 1]; // the part of the picture that a run would draw
let image, ink;

// --- the mask and its bits --------------------------------------------------------------------------------------------------------

function bits() {
  const bytes = new Uint8Array(Math.ceil(mask.length / 8));
  for (let i = 0; i < mask.length; i++) if (mask[i]) bytes[i >> 3] |= 128 >> (i & 7);
  let text = "";
  for (let k = 0; k < bytes.length; k += 8192) text += String.fromCharCode(...bytes.subarray(k, k + 8192));
  return btoa(text);
}

function unpacked(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  return Uint8Array.from({ length: board.w * board.h }, (_, i) => (bytes[i >> 3] >> (7 - (i & 7))) & 1);
}

const say = () => (props.value = JSON.stringify({ kind: "mask", name: board.name, w: board.w, h: board.h, bits: bits() }));

// --- painting ---------------------------------------------------------------------------------------------------------------------

const radius = () => Number($(".size input").value) / 2;

/** What a pixel of the mask looks like in memory: stripes of its colour and of black or white, so that they show on any picture. */
function stripes() {
  const hex = getComputedStyle(element).getPropertyValue("--mask").trim().slice(1);
  const [r, g, b] = [0, 2, 4].map((k) => parseInt(hex.slice(k, k + 2), 16));
  const other = r + g + b > 384 ? 0 : 255;
  const [on, off] = [[r, g, b, 178], [other, other, other, 178]].map((tone) => new Uint32Array(new Uint8Array(tone).buffer)[0]);
  const wide = Math.max(2, Math.round(Math.max(board.w, board.h) / 40));
  return (x, y) => (Math.floor((x + y) / wide) % 2 ? off : on);
}

function show() {
  const tone = stripes();
  for (let y = 0, i = 0; y < board.h; y++) for (let x = 0; x < board.w; x++, i++) ink[i] = mask[i] ? tone(x, y) : 0;
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** A line of the brush from where the stroke has come to. */
function dab(to) {
  const from = last || to, r = Math.max(radius(), 0.71), on = erasing ? 0 : 1, tone = erasing ? () => 0 : stripes();
  const [dx, dy] = [to[0] - from[0], to[1] - from[1]], length = dx * dx + dy * dy;
  const [left, right] = [Math.min(from[0], to[0]), Math.max(from[0], to[0])].map((v, k) => Math.min(board.w, Math.max(0, k ? Math.ceil(v + r) : Math.floor(v - r))));
  const [top, bottom] = [Math.min(from[1], to[1]), Math.max(from[1], to[1])].map((v, k) => Math.min(board.h, Math.max(0, k ? Math.ceil(v + r) : Math.floor(v - r))));
  for (let y = top; y < bottom; y++)
    for (let x = left; x < right; x++) {
      const [px, py] = [x + 0.5 - from[0], y + 0.5 - from[1]];
      const t = length ? Math.min(1, Math.max(0, (px * dx + py * dy) / length)) : 0; // the nearest point of the line
      if ((px - t * dx) ** 2 + (py - t * dy) ** 2 > r * r) continue;
      mask[y * board.w + x] = on;
      ink[y * board.w + x] = tone(x, y);
    }
  canvas.getContext("2d").putImageData(image, 0, 0, left, top, right - left, bottom - top);
  last = to;
}

function remember() {
  past.push(mask.slice());
  future = [];
  while (past.length > 1 && past.length * mask.length > ROOM) past.shift();
}

/** The mask is another: shown, told to the page, and to the server for its forecast. */
function changed() {
  show();
  say();
  tell();
  trigger("stroke");
}

function tell() {
  const count = mask.reduce((sum, on) => sum + on, 0);
  const part = (100 * count) / mask.length;
  $(".part").textContent = count ? fill(texts.part, { count: count.toLocaleString(), part: part < 10 ? part.toFixed(1) : part.toFixed(0) }) : texts.nothing;
  $(".undo").disabled = !past.length;
  $(".redo").disabled = !future.length;
  $(".clear").disabled = !count;
  $(".keep").classList.toggle("off", !count);
}

function setMask(next) {
  remember();
  mask = next;
  changed();
}

function step(from, to) {
  if (!from.length) return;
  to.push(mask);
  mask = from.pop();
  changed();
}

// --- pointer and keyboard -----------------------------------------------------------------------------------------------------------

const place = (event) => {
  const seen = canvas.getBoundingClientRect();
  return [((event.clientX - seen.left) / seen.width) * board.w, ((event.clientY - seen.top) / seen.height) * board.h];
};

function ring(at) {
  const dot = $(".ring");
  dot.hidden = !at;
  if (at) Object.assign(dot.style, { left: `${(100 * at[0]) / board.w}%`, top: `${(100 * at[1]) / board.h}%`, width: `${(200 * radius()) / board.w}%` });
}

function lift() {
  if (finger === null) return;
  finger = last = null;
  say();
  tell();
  trigger("stroke");
}

canvas.addEventListener("pointerdown", (event) => {
  if (finger !== null || event.button) return;
  event.preventDefault();
  canvas.focus({ preventScroll: true });
  finger = event.pointerId;
  canvas.setPointerCapture(finger);
  remember();
  spot = place(event);
  dab(spot);
});
canvas.addEventListener("pointermove", (event) => {
  ring(place(event));
  if (event.pointerId !== finger) return;
  for (const e of event.getCoalescedEvents?.() ?? []) dab(place(e));
  dab(place(event));
});
canvas.addEventListener("pointerleave", () => ring(null));
for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) canvas.addEventListener(end, (event) => event.pointerId === finger && lift());
canvas.addEventListener("blur", () => ring(null));

document.addEventListener("keydown", () => finger !== null && say(), true); // Ctrl+Enter in the middle of a stroke
root.addEventListener("keydown", (event) => {
  if (!(event.ctrlKey || event.metaKey) || !["z", "y"].includes(event.key.toLowerCase())) return;
  event.preventDefault();
  if (event.key.toLowerCase() === "y" || event.shiftKey) step(future, past);
  else step(past, future);
});
canvas.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  const act = event.key === " " || event.key === "Enter";
  if (!move && !act && !"[]".includes(event.key)) return;
  event.preventDefault();
  event.stopPropagation();
  spot ??= [board.w / 2, board.h / 2];
  if (move) {
    const by = Math.max(1, Math.round(radius()));
    spot = [Math.min(board.w, Math.max(0, spot[0] + by * move[0])), Math.min(board.h, Math.max(0, spot[1] + by * move[1]))];
  } else if (act) {
    remember();
    dab(spot);
    last = null;
    say();
    tell();
    trigger("stroke");
  } else {
    $(".size input").value = Number($(".size input").value) + (event.key === "]" ? 1 : -1) * Math.max(1, Math.round(board.w / 64));
    tellSize();
  }
  ring(spot);
});

// --- tools --------------------------------------------------------------------------------------------------------------------------

function setTool(eraser) {
  erasing = eraser;
  $(".brush").setAttribute("aria-pressed", !eraser);
  $(".eraser").setAttribute("aria-pressed", eraser);
}

function tellSize() {
  const px = Number($(".size input").value), latents = (px * board.cells[0]) / (box[2] - box[0]);
  $(".size output").textContent = fill(texts.size_of, { px, latents: latents < 10 ? latents.toFixed(1) : latents.toFixed(0) });
}

const level = () => Number($(".from-word input").value);

function askWord() {
  for (const chip of root.querySelectorAll(".chips button")) chip.setAttribute("aria-pressed", chip.value === word);
  if (word) trigger("word", { word, share: String(level()) });
}

$(".brush").addEventListener("click", () => setTool(false));
$(".eraser").addEventListener("click", () => setTool(true));
$(".undo").addEventListener("click", () => step(past, future));
$(".redo").addEventListener("click", () => step(future, past));
$(".clear").addEventListener("click", () => setMask(new Uint8Array(mask.length)));
$(".invert").addEventListener("click", () => setMask(mask.map((on) => 1 - on)));
$(".size input").addEventListener("input", tellSize);
$(".from-word input").addEventListener("input", () => ($(".from-word output").textContent = `${level()} %`));
$(".from-word input").addEventListener("change", askWord);
$(".show-grid input").addEventListener("change", (event) => root.classList.toggle("gridded", event.target.checked));
// The mask as a picture of its own, white on black.
$(".keep").addEventListener("click", (event) => {
  const paper = make("canvas");
  [paper.width, paper.height] = [board.w, board.h];
  const data = new ImageData(board.w, board.h);
  new Uint32Array(data.data.buffer).set(Uint32Array.from(mask, (on) => (on ? 0xffffffff : 0xff000000)));
  paper.getContext("2d").putImageData(data, 0, 0);
  event.currentTarget.href = paper.toDataURL("image/png");
});

// --- what arrives -------------------------------------------------------------------------------------------------------------------

function receive(value) {
  if (value.texts) texts = value.texts;
  if (!texts.brush) return; // a page that was just reloaded: the same comes once more, with its words
  if (value.kind === "none") {
    root.dataset.kind = "none";
    board = { ...board, name: "" };
    $(".empty").textContent = value.status || "";
    say();
    return;
  }
  if (value.kind === "canvas") lay(value);
  if (value.name !== board.name) return; // for a picture that is gone
  if (value.bits !== undefined) {
    remember();
    mask = unpacked(value.bits);
  }
  changed();
}

/** A mask at another size: each pixel that is on stays, however thin the line. */
function resized(old, from, to) {
  const next = new Uint8Array(to.w * to.h);
  const place = (v, a, b) => Math.min(b - 1, Math.floor(((v + 0.5) * b) / a));
  for (let y = 0; y < to.h; y++)
    for (let x = 0; x < to.w; x++) next[y * to.w + x] = old[place(y, to.h, from.h) * from.w + place(x, to.w, from.w)];
  for (let i = 0; i < old.length; i++)
    if (old[i]) next[place(Math.floor(i / from.w), from.h, to.h) * to.w + place(i % from.w, from.w, to.w)] = 1;
  return next;
}

/** Another picture: an empty mask. The same once more, or at another model's size: nothing of what was painted is lost. */
function lay(value) {
  const same = value.name === board.name;
  const painted = !same && value.resized && mask.some((on) => on) ? resized(mask, board, value) : new Uint8Array(value.w * value.h);
  board = value;
  root.dataset.kind = "run";
  $(".easel").style.setProperty("--aspect", `${board.w} / ${board.h}`);
  $(".easel").style.setProperty("--columns", board.cells[0]);
  $(".easel").style.setProperty("--rows", board.cells[1]);
  $(".easel img").src = board.picture;
  $(".easel img").alt = texts.picture;
  if (!same) {
    [mask, past, future, spot, word] = [painted, [], [], null, ""];
    [canvas.width, canvas.height] = [board.w, board.h];
    image = new ImageData(board.w, board.h);
    ink = new Uint32Array(image.data.buffer);
    const longest = Math.max(board.w, board.h);
    [$(".size input").max, $(".size input").value] = [Math.round(longest / 2), Math.round(longest / 8)];
    box = [0, 0, board.w, board.h];
    $(".crop").hidden = true;
  }
  const chips = board.words.map((name) => {
    const chip = make("button", "", name);
    [chip.type, chip.value] = ["button", name];
    chip.addEventListener("click", () => {
      word = name;
      askWord();
    });
    return chip;
  });
  $(".chips").replaceChildren(...chips);
  $(".from-word p").textContent = chips.length ? texts.from_word : texts.no_words;
  $(".from-word label").hidden = !chips.length;
  const labels = { brush: texts.brush, eraser: texts.eraser, undo: texts.undo, redo: texts.redo, clear: texts.clear, invert: texts.invert, keep: texts.keep };
  for (const [name, text] of Object.entries(labels)) $(`.${name}`).textContent = text;
  $(".size span").textContent = texts.size;
  $(".from-word label span").textContent = texts.cutoff;
  $(".from-word output").textContent = `${level()} %`;
  $(".show-grid span").textContent = texts.grid;
  $(".note").textContent = board.note || "";
  canvas.setAttribute("aria-label", texts.canvas);
  $(".tools").setAttribute("aria-label", texts.tools);
  frame();
}

// The part of the picture that will be drawn, as the forecast under the editor has it: the latents lie in that.
document.addEventListener("inpaint-box", ({ detail }) => {
  box = detail || [0, 0, board.w, board.h];
  $(".crop").hidden = !detail;
  frame();
});

function frame() {
  const share = (v, side) => `${(100 * v) / side}%`;
  const [left, top, right, bottom] = box;
  const place = { left: share(left, board.w), top: share(top, board.h), width: share(right - left, board.w), height: share(bottom - top, board.h) };
  for (const part of [".crop", ".grid"]) Object.assign($(part).style, place);
  tellSize();
}

setTool(false);
function look() {
  const value = dom.read(props.value);
  if (value.kind !== "mask" || value.sent) receive(value); // the others this page has said itself
}
watch("value", look);
look();
