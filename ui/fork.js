// Where a run is cut: the steps before stay as they are, those from there on are made anew.

const slider = $(".step-line input");
const strip = $(".cut-strip");
let run = null;
let from = 1; // the first step that is made anew, counted from 1

function go(k) {
  from = Math.max(1, Math.min(k, Number(slider.max)));
  slider.value = from;
  [...strip.children].forEach((cell, n) => {
    cell.classList.toggle("anew", n + 1 >= from);
    cell.classList.toggle("here", n + 1 === from);
  });
  const saved = run.passes.slice(0, from - 1).reduce((sum, n) => sum + n, 0);
  const said = from === 1 ? texts.from_start : fill(texts.from, { last: from - 1, from, count: run.count, saved });
  $(".where").textContent = said;
  slider.setAttribute("aria-valuetext", said);
  $(".go").textContent = fill(texts.go, { from });
  const here = strip.children[from - 1];
  if (here) strip.scrollLeft = here.offsetLeft - strip.offsetLeft - strip.clientWidth / 2;
}

slider.addEventListener("input", () => go(Number(slider.value)));
strip.addEventListener("pointerdown", (event) => {
  const cell = event.target.closest(".cell");
  if (cell) go(1 + [...strip.children].indexOf(cell));
});
$(".go").addEventListener("click", () => trigger("fork", { from: String(from) }));
$(".weaken").addEventListener("click", () => {
  go(run.middle);
  trigger("weaken", { from: String(from) });
});

arrive((value) => {
  run = value;
  element.style.setProperty("--aspect", run.aspect);
  strip.replaceChildren(
    ...Array.from({ length: run.count }, (_, k) => {
      const cell = make("div", "cell");
      const image = make(run.x0[k] ? "img" : "span", run.x0[k] ? "pixels" : "blank");
      if (run.x0[k]) [image.src, image.alt, image.draggable] = [run.x0[k], "", false];
      cell.append(image, make("small", "", String(k + 1)));
      return cell;
    }),
  );
  element.style.setProperty("--cells", run.count);
  slider.max = run.last;
  slider.setAttribute("aria-label", texts.slider);
  $(".exact").textContent = run.exact;
  $(".try p").textContent = texts.try;
  $(".weaken").textContent = texts.try_button;
  go(run.middle);
});
