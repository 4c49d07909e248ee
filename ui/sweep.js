// The grid of a sweep: all pictures at one step, one of them large, and its equation. It is given a finished sweep once and then needs no
// server to go through its steps; while a sweep goes on it is given what is new.
//
//   value    JSON: {kind: "none" | "live" | "grid", ...}, made by ui/sweep.py
//   at       the step, 0 .. steps - 1; one more is the finished pictures
//   chosen   "row,column"

const $ = (selector) => element.querySelector(selector);
const { fill, make } = dom;
const root = $(".sweep-view");
const grid = $(".grid");
const slider = $(".along input");
let board = null; // the value shown
let texts = {};
let cells = {}; // "row,column" -> what is known of it
let at = 0;
let chosen = "";
let playing = null;

const steps = () => Math.max(1, ...Object.values(cells).map((cell) => cell.count));
const finished = () => at >= steps();
/** The step of a cell at this place of the slider: rows may have more or fewer steps than others. */
const stepOf = (cell) => Math.min(cell.count - 1, cell.steps.length - 1, Math.floor((at * cell.count) / steps()));

// --- the grid --------------------------------------------------------------------------------------------------------------------

function lay() {
  const labelled = board.rows.some(Boolean);
  grid.replaceChildren();
  grid.style.setProperty("--columns", board.columns.length);
  grid.classList.toggle("labelled", labelled);
  if (labelled) grid.append(make("span", "corner"));
  board.columns.forEach((name, k) => {
    const head = make("b", "scale", name);
    head.style.setProperty("--tone", board.colours[k]);
    grid.append(head);
  });
  board.rows.forEach((name, row) => {
    if (labelled) grid.append(make("b", "row", name));
    board.columns.forEach((_, column) => {
      const tile = make("button", "tile");
      tile.type = "button";
      tile.dataset.place = `${row},${column}`;
      tile.tabIndex = -1;
      tile.disabled = true; // until there is something to see
      tile.setAttribute("aria-label", [board.columns[column], name].filter(Boolean).join(", "));
      const image = make("img");
      image.alt = "";
      image.draggable = false;
      image.hidden = true;
      tile.append(make("span", "strip-of"), image);
      grid.append(tile);
    });
  });
}

const tileOf = (place) => grid.querySelector(`.tile[data-place="${place}"]`);

/** Shows a cell in a box that has a strip of steps and an image: one of the steps, or the finished picture. */
function look(box, cell) {
  const strip = box.querySelector(".strip-of");
  const image = box.querySelector("img");
  const done = finished() && cell.picture;
  image.hidden = !done;
  strip.hidden = Boolean(done);
  box.style.setProperty("--aspect", cell.aspect);
  if (done) {
    image.src = cell.picture;
    return;
  }
  const count = cell.steps.length;
  strip.style.backgroundImage = `url(${cell.strip})`;
  strip.style.backgroundSize = `100% ${100 * count}%`;
  strip.style.backgroundPosition = `0 ${count > 1 ? (100 * stepOf(cell)) / (count - 1) : 0}%`;
}

function paint() {
  for (const [place, cell] of Object.entries(cells)) {
    tileOf(place).disabled = false;
    look(tileOf(place), cell);
  }
  slider.value = at;
  const count = steps();
  const last = Object.values(cells).some((cell) => cell.picture) ? texts.end : texts.cut;
  $(".when").textContent = finished() ? last : fill(texts.step, { i: at + 1, count });
  slider.setAttribute("aria-valuetext", $(".when").textContent);
  enlarged();
  const cell = cells[chosen];
  const made = cell && (finished() ? cell.count : stepOf(cell));
  if (cell) document.dispatchEvent(new CustomEvent("step", { detail: { of: "sweep", at: made } })); // to the curves
}

// --- the chosen cell -------------------------------------------------------------------------------------------------------------

const number = (x) => (x >= 10 ? x.toFixed(1) : x.toFixed(2));

function part(kind, formula, strength) {
  return `<span class="${kind}"><var>${formula}</var>${strength === undefined ? "" : `<b>${number(strength)}</b>`}</span>`;
}

function enlarged() {
  const cell = cells[chosen];
  $(".chosen").hidden = !cell;
  if (!cell) return;
  const [row, column] = chosen.split(",").map(Number);
  $(".large img").alt = cell.prompt || texts.picture;
  look($(".large"), cell);
  $(".name").textContent = [board.columns[column], board.rows[row]].filter(Boolean).join(" · ");
  $(".words-of").textContent = [cell.prompt, cell.facts].filter(Boolean).join(" · ");
  const k = stepOf(cell);
  const [uncond, cond, pull, eps] = cell.steps[k];
  const left = part("guided", "ε", eps) + " = ";
  const minus = "ε<sub>cond</sub> − ε<sub>uncond</sub>";
  if (pull !== null) {
    const [w, difference] = [`<b class="w">${cell.w}</b>`, part("cond", minus, pull)];
    $(".sum").innerHTML = `${left}${part("uncond", "ε<sub>uncond</sub>", uncond)} + ${w} × ${difference}`;
  } else if (cond !== null) {
    $(".sum").innerHTML = left + part("cond", "ε<sub>cond</sub>", cond);
  } else {
    $(".sum").innerHTML = left + part("uncond", "ε<sub>uncond</sub>", uncond);
  }
  const why = pull !== null ? texts.why : cond !== null ? texts.why_one : texts.why_zero;
  $(".why").textContent = fill(texts.why_step, { i: k + 1, count: cell.count }) + why;
  const act = (name) => $(`.acts [data-act=${name}]`);
  act("look").disabled = !cell.kept;
  act("look").title = cell.kept ? "" : texts.not_kept;
  act("save").disabled = !cell.picture;
  for (const tile of grid.querySelectorAll(".tile")) {
    const here = tile.dataset.place === chosen;
    tile.tabIndex = here ? 0 : -1;
    tile.setAttribute("aria-pressed", here);
  }
}

function choose(place, focus) {
  if (!cells[place] || board.kind !== "grid") return;
  const other = place !== chosen;
  chosen = place;
  paint();
  if (focus) tileOf(place).focus({ preventScroll: false });
  if (other) trigger("pick", { act: "choose", place });
}

grid.addEventListener("click", (event) => {
  const tile = event.target.closest?.(".tile");
  if (tile) choose(tile.dataset.place, false);
});
grid.addEventListener("keydown", (event) => {
  const way = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  if (!way || !chosen) return;
  event.preventDefault();
  const [row, column] = chosen.split(",").map(Number);
  choose(`${row + way[0]},${column + way[1]}`, true);
});
for (const button of root.querySelectorAll("[data-act]")) {
  button.addEventListener("click", () => {
    const act = button.dataset.act;
    trigger("pick", { act, place: chosen });
    if (act === "restore") document.getElementById("tab_prompt-button")?.click();
  });
}

// --- steps -----------------------------------------------------------------------------------------------------------------------

function go(k) {
  if (board?.kind !== "grid") return;
  at = Math.max(0, Math.min(k, steps()));
  paint();
}

function pause() {
  clearInterval(playing);
  playing = null;
  $(".plays").textContent = texts.play;
  $(".plays").setAttribute("aria-pressed", "false");
}

$(".plays").addEventListener("click", () => {
  if (playing) return pause();
  if (board?.kind !== "grid") return;
  if (finished()) go(0);
  $(".plays").textContent = texts.pause;
  $(".plays").setAttribute("aria-pressed", "true");
  playing = setInterval(() => (finished() ? pause() : go(at + 1)), Math.max(60, Math.min(200, 4000 / steps())));
});
slider.addEventListener("input", () => {
  pause();
  go(Number(slider.value));
});

// --- what arrives ----------------------------------------------------------------------------------------------------------------

function live(value) {
  const again = board?.kind === "live" && board.job === value.job && board.columns;
  board = value;
  root.style.setProperty("--share", `${100 * value.share}%`);
  if (!again) {
    cells = {};
    chosen = "";
    grid.replaceChildren();
    if (value.columns) lay();
    // On a phone the grid lies below the button that was pressed.
    if (root.getBoundingClientRect().top > innerHeight * 0.6) root.scrollIntoView({ block: "start" });
  }
  for (const cell of value.cells) {
    const tile = tileOf(`${cell.row},${cell.column}`);
    if (!tile) continue;
    tile.style.setProperty("--aspect", cell.aspect);
    const image = tile.querySelector("img");
    tile.classList.toggle("going", !cell.picture);
    image.src = cell.picture || cell.x0;
    image.hidden = false;
  }
}

function show() {
  const value = dom.read(props.value);
  if (value.texts) texts = value.texts;
  root.dataset.kind = value.kind;
  root.dataset.state = value.state || "";
  pause();
  $(".said").textContent = value.status || "";
  if (value.kind === "none") return void (board = null);
  $(".sheet").textContent = texts.sheet;
  const acts = { look: texts.look, restore: texts.restore, save: texts.save };
  for (const [act, text] of Object.entries(acts)) $(`.acts [data-act=${act}]`).textContent = text;
  slider.setAttribute("aria-label", texts.slider);
  if (value.kind === "live") return live(value);
  board = value;
  cells = Object.fromEntries(value.cells.map((cell) => [`${cell.row},${cell.column}`, cell]));
  lay();
  slider.max = steps();
  at = steps();
  const places = value.cells.filter((cell) => cell.row === value.cells[0].row);
  chosen = `${places[0].row},${places.at(-1).column}`;
  paint();
}

watch("value", show);
show();
