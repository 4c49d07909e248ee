// Three enlargements of one small picture under one lens: nearest, bicubic, and what a run made of it. The lens moves over all three
// together, by pointer, finger or arrow keys; what it shows are the pictures' own pixels, as squares.
//
//   value   JSON: {kind: "none" | "lens" | "live", ...}, made by ui/upscale.py

const $ = (selector) => element.querySelector(selector);
const { fill, make, read } = dom;
const ZOOMS = [2, 4, 8, 16]; // pixels of the screen a pixel of a picture
const panes = ["nearest", "bicubic", "made"].map((name) => {
  const figure = $(`.${name}`);
  const [whole, glass] = figure.querySelectorAll("canvas");
  return { name, figure, whole, glass, frame: figure.querySelector("i"), output: figure.querySelector("output") };
});
const area = $(".panes");
const made = panes[2];
let shown = null; // the value whose pictures are drawn
let texts = {};
let zoom = 4;
let at = { x: 0, y: 0 }; // the pixel in the middle of the lens
let turn = 0;

const picture = (source) =>
  new Promise((done, fail) => {
    const image = new Image();
    image.onload = () => done(image);
    image.onerror = fail;
    image.src = source;
  });

const size = () => [shown.width * shown.scale, shown.height * shown.scale];
const within = (v, low, high) => Math.min(Math.max(v, low), high);

/** Draws a picture into a pane at the large size, its own pixels as squares where it is smaller. */
function put({ whole }, image) {
  [whole.width, whole.height] = size();
  const context = whole.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingEnabled = false;
  context.drawImage(image, 0, 0, whole.width, whole.height);
}

/** How many pixels of a picture the lens is wide and high, and how many of the screen's each takes. */
function span() {
  const [width, height] = size();
  const dots = zoom * Math.max(1, Math.round(devicePixelRatio));
  const room = Math.floor((made.figure.clientWidth * devicePixelRatio) / dots);
  const side = Math.max(1, Math.min(room, width, height));
  return { side, dots };
}

function look() {
  if (!shown || !made.figure.clientWidth) return;
  const [width, height] = size();
  const { side, dots } = span();
  at = { x: within(at.x, 0, width - 1), y: within(at.y, 0, height - 1) };
  const left = within(at.x - Math.floor(side / 2), 0, width - side);
  const top = within(at.y - Math.floor(side / 2), 0, height - side);
  for (const { whole, glass, frame, output, name } of panes) {
    glass.width = glass.height = side * dots;
    glass.style.width = `${glass.width / devicePixelRatio}px`;
    Object.assign(frame.style, { left: `${(100 * left) / width}%`, top: `${(100 * top) / height}%`, width: `${(100 * side) / width}%`, height: `${(100 * side) / height}%` });
    const empty = name === "made" && !shown.made;
    glass.hidden = frame.hidden = empty;
    output.textContent = "";
    if (empty) continue;
    const context = glass.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(whole, left, top, side, side, 0, 0, glass.width, glass.height);
    const [r, g, b] = whole.getContext("2d").getImageData(at.x, at.y, 1, 1).data;
    output.textContent = fill(texts.value, { r, g, b });
    context.strokeStyle = 0.3 * r + 0.6 * g + 0.1 * b > 128 ? "#000" : "#fff"; // the pixel that the value is of
    context.lineWidth = Math.max(1, Math.round(devicePixelRatio));
    context.strokeRect((at.x - left) * dots, (at.y - top) * dots, dots, dots);
  }
  $(".where").textContent = fill(texts.where, { x: at.x, y: at.y, side });
  $(".zooms")
    .querySelectorAll("button")
    .forEach((button) => button.setAttribute("aria-pressed", Number(button.value) === zoom));
}

function words(value) {
  texts = value.texts;
  area.setAttribute("aria-label", texts.area);
  const names = { nearest: texts.nearest, bicubic: texts.bicubic, made: texts.made };
  for (const { name, figure, whole } of panes) {
    figure.querySelector("figcaption").textContent = names[name];
    whole.setAttribute("aria-label", names[name]);
  }
  $(".made p").textContent = texts.empty;
  const zooms = $(".zooms");
  zooms.setAttribute("aria-label", texts.zoom);
  zooms.replaceChildren(
    ...ZOOMS.map((times) => {
      const button = make("button", "", `${times} ×`);
      [button.type, button.value] = ["button", times];
      button.onclick = () => ((zoom = times), look());
      return button;
    }),
  );
}

async function show(value) {
  const mine = ++turn;
  $(".said").textContent = value.status || "";
  if (value.kind === "none") return ($(".lens").dataset.kind = "none");
  if (value.kind === "live") {
    if (!shown || !value.made) return;
    const image = await picture(value.made).catch(() => null);
    if (!image || mine !== turn) return;
    shown = { ...shown, made: value.made };
    put(made, image);
    $(".made p").hidden = true;
    return look();
  }
  const [small, bicubic, large] = await Promise.all([value.small, value.bicubic, value.made].map((source) => source && picture(source)));
  if (mine !== turn) return;
  if (shown?.name !== value.name) at = { x: value.at[0], y: value.at[1] };
  shown = value;
  words(value);
  put(panes[0], small);
  put(panes[1], bicubic);
  [made.whole.width, made.whole.height] = size();
  if (large) put(made, large);
  $(".made p").hidden = Boolean(large);
  const save = $(".save");
  save.hidden = !value.file;
  [save.textContent, save.href, save.download] = [texts.save, value.made || "", value.file || ""];
  $(".fidelity").textContent = value.fidelity || "";
  $(".lens").dataset.kind = "lens";
  look();
}

// --- moving ---------------------------------------------------------------------------------------------------------------------

for (const { whole } of panes) {
  const follow = (event) => {
    if (!shown) return;
    const box = whole.getBoundingClientRect();
    at = { x: Math.floor(((event.clientX - box.left) / box.width) * whole.width), y: Math.floor(((event.clientY - box.top) / box.height) * whole.height) };
    look();
  };
  whole.onpointermove = follow; // a mouse moves the lens by itself, a finger while it is down
  whole.onpointerdown = (event) => {
    whole.setPointerCapture(event.pointerId);
    follow(event);
  };
}

area.onkeydown = (event) => {
  const far = event.shiftKey ? 16 : 1;
  const [x, y] = { ArrowLeft: [-far, 0], ArrowRight: [far, 0], ArrowUp: [0, -far], ArrowDown: [0, far] }[event.key] || [0, 0];
  const step = { "+": 1, "-": -1 }[event.key];
  if (!shown || (!x && !y && !step)) return;
  event.preventDefault();
  if (step) zoom = ZOOMS[within(ZOOMS.indexOf(zoom) + step, 0, ZOOMS.length - 1)];
  at = { x: at.x + x, y: at.y + y };
  look();
};

new ResizeObserver(look).observe(area);
const arrive = () => show(read(props.value));
watch("value", arrive);
arrive();
