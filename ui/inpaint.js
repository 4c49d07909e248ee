// What an inpainting has become: composited or raw, with a wipe between it and the original.
//
//   value   JSON of ui/inpaint.py's `outcome`: {kind: "none" | "run", ...}

const $ = (selector) => element.querySelector(selector);
const root = $(".inpaint-view");
let run = {};
let texts = {};
let names = {};
let which = "composited";

function wipe() {
  const share = Number($(".wipe input").value);
  $(".compare .over").style.clipPath = `inset(0 0 0 ${share}%)`;
  $(".compare .edge").style.left = `${share}%`;
  $(".compare .edge").hidden = share === 0 || share === 100;
  $(".left").hidden = share < 25; // each stands on its own side of the edge, where there is room
  $(".right").hidden = share > 75 || which === "original";
}

function choose(name) {
  which = name;
  for (const button of root.querySelectorAll(".which button")) button.setAttribute("aria-pressed", button.value === name);
  $(".compare .over").src = run.pictures[name];
  $(".compare .over").alt = names[name];
  wipe();
}

function outcome() {
  root.style.setProperty("--aspect", `${run.w} / ${run.h}`);
  names = { composited: texts.composited, raw: texts.raw, original: texts.original };
  const buttons = Object.entries(names).map(([name, text]) => {
    const button = dom.make("button", "", text);
    [button.type, button.value] = ["button", name];
    button.addEventListener("click", () => choose(name));
    return button;
  });
  $(".which").replaceChildren(...buttons);
  $(".compare .under").src = run.pictures.original;
  $(".compare .under").alt = texts.original;
  [$(".left").textContent, $(".right").textContent] = [texts.original, texts.result];
  $(".wipe input").setAttribute("aria-label", texts.wipe);
  $(".how").textContent = run.how;
  Object.assign($(".save"), { href: run.pictures.composited, download: run.file, textContent: texts.save });
  choose(which);
}

$(".wipe input").addEventListener("input", wipe);

function look() {
  run = dom.read(props.value);
  if (run.texts) texts = run.texts;
  root.dataset.kind = run.kind;
  $(".empty").textContent = run.status || "";
  if (run.kind === "run") outcome();
}
watch("value", look);
look();
