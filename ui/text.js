// The Text tab's three views: the prompts as tokens on their way through the text encoder, the edits, and two prompts compared. Each is
// given its numbers once and then needs no server. What is selected is shared by all three.
//
//   value   JSON: {kind: "none" | "lens" | "edits" | "cosine", ...}, made by ui/text.py

const root = element.querySelector(".text-view");
const part = root.dataset.of;
for (const other of root.querySelectorAll("[data-part]")) if (other.dataset.part !== part) other.remove();
const $ = (selector) => root.querySelector(selector);
const { fill, make } = dom;
const number = (x) => (x === 0 ? "0" : Math.abs(x) >= 100 ? x.toFixed(0) : Math.abs(x) >= 10 ? x.toFixed(1) : x.toFixed(2));
let shown = null; // the value
let texts = {};

// branch "prompt" or "negative", at a position, stage of the pipeline, layer and head (0 = the heads' mean) of the attention; hover: the
// position under the pointer, which stands in for `at` as long as it is there.
const selection = (window.textTab ??= {
  branch: "prompt",
  at: 1,
  stage: null,
  layer: 0,
  head: 0,
  hover: null,
  views: new Map(),
  choose(changes) {
    Object.assign(this, changes);
    for (const view of this.views.values()) view();
  },
});

/** A word of the field, with the sentence that explains it. */
function term(made, tip) {
  made.classList.add("term");
  made.dataset.tip = tip;
  made.tabIndex = 0;
  return made;
}

const at = () => selection.hover ?? selection.at;
const marks = () => ({ start: texts.start, end: texts.end, padding: texts.padding });
const pieceOf = (token) => (token.kind === "text" ? token.piece || "·" : marks()[token.kind]);
const promptName = (name) => ({ prompt: texts.prompt, negative: texts.negative })[name];
const stageName = ({ kind, number }) =>
  fill({ token: texts.stage_token, position: texts.stage_position, sum: texts.stage_sum, layer: texts.stage_layer, norm: texts.stage_norm }[kind], { i: number });

/** Only the branch that has the position hovered answers; a padding position beyond what is drawn has no row. */
const row = (count) => (at() < count ? at() : null);

// --- a square of numbers with its tokens along the sides ------------------------------------------------------------------------

function matrix(box, map, kind, rows, columns, { here, forbidden, tell, choose }) {
  const many = Math.max(rows.length, columns.length) > 30;
  box.classList.toggle("many", many);
  box.style.setProperty("--columns", columns.length);
  box.style.setProperty("--rows", rows.length);
  const labels = (tokens, side) => {
    const made = make("div", side);
    made.append(...tokens.map((token, k) => {
      const label = make("span", token.kind === "text" ? "" : "mark", pieceOf(token));
      if (side === "down" && k === here) label.classList.add("here");
      return label;
    }));
    return made;
  };
  const square = make("div", "square");
  const canvas = make("canvas", "pixels");
  maps.paint(canvas, map, kind);
  square.append(canvas);
  if (forbidden) square.append(triangle(map.w));
  if (here !== null) {
    const line = make("i", "line");
    line.style.setProperty("--at", here);
    square.append(line);
  }
  maps.point(canvas, () => map, tell, choose);
  box.replaceChildren(...(many ? [square] : [make("span"), labels(columns, "across"), labels(rows, "down"), square]));
}

/** What may not be read, covered: a token sees itself and what came before. */
function triangle(n) {
  const cover = make("canvas", "cover pixels");
  cover.width = cover.height = n;
  const context = cover.getContext("2d");
  context.fillStyle = getComputedStyle(root).getPropertyValue("--paper");
  for (let y = 0; y < n; y++) context.fillRect(y + 1, y, n, 1);
  return cover;
}

function legend(kind, low, high) {
  const made = make("span", "legend");
  const bar = make("i");
  bar.style.background = maps.scale(kind);
  made.append(make("span", "", low), bar, make("span", "", high));
  return made;
}

// --- the strips of tokens --------------------------------------------------------------------------------------------------------

function strip(name) {
  const { tokens, used, cut } = shown[name];
  const section = make("div", "strip-of");
  section.dataset.branch = name;
  const head = make("p", "head-line");
  head.append(make("b", "", promptName(name)), term(make("span", "count", fill(texts.used, { used, count: tokens.length })), texts.padding_tip));
  if (shown.unread === name) head.append(make("span", "unread", { prompt: texts.unread_prompt, negative: texts.unread_negative }[name]));
  const list = make("div", "all-tokens");
  list.setAttribute("role", "listbox");
  list.setAttribute("aria-label", promptName(name));
  tokens.forEach((token, k) => {
    const mark = token.kind !== "text";
    const cell = make("button", `one ${mark ? token.kind : `word${token.word % 4}`}`);
    cell.type = "button";
    cell.setAttribute("role", "option");
    cell.dataset.at = k;
    cell.tabIndex = -1;
    cell.title = `${k}: ${pieceOf(token)} (${token.id})`;
    if (token.kind !== "padding") cell.append(make("small", "", k), make("span", "", pieceOf(token)), make("small", "", token.id));
    list.append(cell);
  });
  section.append(head, list);
  if (cut) {
    const tail = make("p", "cut");
    tail.append(make("b", "", texts.cut), " ", make("s", "", cut));
    section.append(tail);
  }
  return section;
}

function select(name, k) {
  selection.choose({ branch: name, at: k, hover: null });
  if (name === "prompt" && k < shown.prompt.shown) trigger("pick", { at: String(k) });
}

function buildStrips() {
  $(".strips").replaceChildren(strip("prompt"), strip("negative"));
}

function listen() {
  const strips = $(".strips");
  const under = (event) => {
    const cell = event.target.closest?.(".one");
    return cell && [cell.closest(".strip-of").dataset.branch, Number(cell.dataset.at)];
  };
  strips.addEventListener("click", (event) => under(event) && select(...under(event)));
  strips.addEventListener("pointerover", (event) => {
    const found = event.pointerType !== "touch" && under(event);
    if (found && found[0] === selection.branch) selection.choose({ hover: found[1] });
  });
  strips.addEventListener("pointerleave", () => selection.choose({ hover: null }));
  strips.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1, Home: -77, End: 77 }[event.key];
    const found = under(event);
    if (!move || !found) return;
    event.preventDefault();
    const k = Math.max(0, Math.min(shown[found[0]].tokens.length - 1, found[1] + move));
    select(found[0], k);
    $(`.strip-of[data-branch=${found[0]}] .one[data-at="${k}"]`).focus();
  });
}

function markStrips() {
  for (const cell of root.querySelectorAll(".one")) {
    const mine = cell.closest(".strip-of").dataset.branch === selection.branch;
    const k = Number(cell.dataset.at);
    cell.classList.toggle("here", mine && k === at());
    cell.setAttribute("aria-selected", mine && k === selection.at);
    cell.tabIndex = (mine ? k === selection.at : k === 1) ? 0 : -1;
  }
}

// --- the way through the text encoder ---------------------------------------------------------------------------------------------

function buildStages() {
  const branch = shown[selection.branch];
  const signs = { position: "+", sum: "=", layer: "→", norm: "→" };
  const figures = branch.stages.map((stage, k) => {
    const item = make("li");
    if (signs[stage.kind]) item.append(make("span", "operator", signs[stage.kind]));
    const figure = make("figure");
    const canvas = make("canvas", "pixels");
    maps.paint(canvas, stage.map, "signed");
    const frame = make("div", "tall");
    frame.append(canvas, make("i", "column"));
    maps.point(
      canvas,
      () => stage.map,
      (x, y, value) => tellStage(x === null ? null : fill(texts.cell, { piece: pieceOf(branch.tokens[x]), at: x, i: y + 1, count: branch.width, value: value.toPrecision(3) })),
      (x) => select(selection.branch, x),
    );
    const caption = make("figcaption");
    const shape = stage.kind === "position" ? `77 × ${branch.width}` : `1 × 77 × ${branch.width}`;
    const name = make("b", "", stageName(stage));
    caption.append(stage.kind === "norm" ? term(name, texts.norm_tip) : name, make("span", "norm"), make("span", "", shape), make("small", "", `± ${number(stage.map.high)}`));
    figure.append(frame, caption);
    item.append(figure);
    item.dataset.stage = k;
    return item;
  });
  const end = make("li", "out");
  end.append(make("span", "operator", "→"), make("b", "", texts.to_unet));
  $(".stages").replaceChildren(...figures, end);
  $(".stages").style.setProperty("--tokens", branch.shown);
  tellStage(null);
}

function tellStage(said) {
  const branch = shown[selection.branch];
  const drawn = Math.min(branch.width, branch.stages[0].map.h);
  $(".pipeline .under").textContent = said ?? fill(texts.stages_scale, { drawn, width: branch.width, shown: branch.shown });
}

function markStages() {
  const branch = shown[selection.branch];
  const k = at();
  root.querySelectorAll(".stages li[data-stage]").forEach((item, index) => {
    const stage = branch.stages[index];
    item.querySelector(".norm").textContent = fill(texts.length, { a: number(stage.lengths[k]) });
    const column = item.querySelector(".column");
    column.hidden = k >= branch.shown;
    column.style.setProperty("--at", k);
  });
  const token = branch.tokens[k];
  const length = (kind) => number(branch.stages.find((s) => s.kind === kind).lengths[k]);
  const layers = branch.stages.filter((s) => s.kind === "layer").length;
  $(".pipeline .formula").innerHTML =
    `<span><var>h<sub>${k}</sub></var> = <var>E</var>[${token.id}] + <var>P</var>[${k}]<small>${fill(texts.sum_lengths, { a: length("token"), b: length("position"), c: length("sum") })}</small></span> ` +
    `<span><var>z</var> = LN(<var>T<sub>${layers}</sub></var>(… <var>T<sub>1</sub></var>(<var>h</var>)))<small>${fill(texts.out_length, { k, c: length("norm") })}</small></span>`;
  $(".chosen").textContent = fill(texts.chosen, {
    branch: promptName(selection.branch),
    at: k,
    piece: pieceOf(token),
    id: token.id,
    length: length("norm"),
  });
}

// --- its own attention ------------------------------------------------------------------------------------------------------------

function options(box, label, names, name) {
  const buttons = names.map((text, k) => {
    const button = make("button", "choice", text);
    button.type = "button";
    button.setAttribute("aria-pressed", selection[name] === k);
    button.addEventListener("click", () => selection.choose({ [name]: k }));
    return button;
  });
  box.setAttribute("aria-label", label);
  box.replaceChildren(make("span", "", label), ...buttons);
}

function attention() {
  const branch = shown[selection.branch];
  const layers = branch.attention;
  selection.layer = Math.min(selection.layer, layers.length - 1);
  selection.head = Math.min(selection.head, layers[0].length - 1);
  options($(".layers"), texts.layer, layers.map((_, k) => String(k + 1)), "layer");
  options($(".heads"), texts.head, layers[0].map((_, k) => (k ? String(k) : texts.mean)), "head");
  const map = layers[selection.layer][selection.head];
  const some = branch.tokens.slice(0, branch.shown);
  const here = row(branch.shown);
  const legendOf = () => $(".reads .under").replaceChildren(legend("viridis", "0", "≥ 0.5"), make("span", "", texts.reads_scale));
  matrix($(".reads .matrix"), map, "viridis", some, some, {
    here,
    forbidden: true,
    tell: (x, y, value) => {
      if (x === null) return legendOf();
      const values = { reader: pieceOf(some[y]), read: pieceOf(some[x]), share: Math.round(1000 * value) / 10 };
      $(".reads .under").textContent = x > y ? fill(texts.reads_never, values) : fill(texts.reads_cell, values);
    },
    choose: (_, y) => select(selection.branch, y),
  });
  legendOf();
  bars(branch, map, some, here);
}

function bars(branch, map, some, here) {
  const box = $(".reads .bars");
  if (here === null) return void box.replaceChildren(make("p", "note", texts.reads_padding));
  const values = maps.values(map);
  const list = (heading, pairs) => {
    const section = make("div");
    section.append(make("h4", "", heading));
    for (const [token, k, share] of pairs.sort((a, b) => b[2] - a[2]).slice(0, 8)) {
      const line = make("button", "bar");
      line.type = "button";
      line.style.setProperty("--share", share);
      line.append(make("span", "", `${k} ${pieceOf(token)}`), make("i"), make("b", "", `${(100 * share).toFixed(0)} %`));
      line.addEventListener("click", () => select(selection.branch, k));
      section.append(line);
    }
    return section;
  };
  const piece = pieceOf(some[here]);
  box.replaceChildren(
    list(fill(texts.reads_what, { piece }), some.slice(0, here + 1).map((token, k) => [token, k, values[here * map.w + k]])),
    list(fill(texts.read_by, { piece }), some.slice(here).map((token, k) => [token, here + k, values[(here + k) * map.w + here]])),
  );
}

// --- edits: the pair of pictures, and how far they reach ---------------------------------------------------------------------------

function edits() {
  $(".list").innerHTML = shown.edits;
  $(".leak h3").textContent = texts.leak;
  $(".sentence").textContent = shown.sentence;
  const captions = [texts.without, texts.with];
  root.querySelectorAll(".pictures figure").forEach((figure, k) => {
    const { picture, said, done } = shown.pictures[k];
    figure.querySelector("figcaption").textContent = captions[k];
    figure.classList.toggle("done", done);
    const image = figure.querySelector("img");
    image.hidden = !picture;
    if (picture) image.src = picture;
    image.alt = captions[k];
    figure.querySelector(".frame p").textContent = picture || said ? "" : k ? (shown.any ? texts.not_drawn : texts.no_edit) : texts.not_kept;
    figure.querySelector("small").textContent = said;
  });
  $(".reach").hidden = $(".leak .under").hidden = !shown.any;
  const names = [["token", 0], ["sum", 0], ...Array.from({ length: shown.reach.h - 3 }, (_, k) => ["layer", k + 1]), ["norm", 0]];
  $(".names").replaceChildren(...names.map(([kind, i]) => make("span", "", stageName({ kind, number: i }))), make("span"));
  maps.paint($(".heat canvas"), shown.reach, "viridis");
  $(".heat").style.setProperty("--rows", shown.reach.h);
  const most = Math.max(...shown.last, 1e-9);
  $(".columns").replaceChildren(...shown.last.map((share, k) => {
    const column = make("i");
    column.style.setProperty("--share", share / most);
    column.dataset.at = k;
    return column;
  }));
  const under = () => $(".leak .under").replaceChildren(legend("viridis", "0", "≥ 1"), make("span", "", texts.leak_scale));
  const name = (k) => `${k} ${pieceOf(shown.tokens[k])}`;
  maps.point($(".heat canvas"), () => shown.reach, (x, y, value) => {
    if (x === null) return under();
    $(".leak .under").textContent = fill(texts.leak_cell, { what: name(x), stage: stageName({ kind: names[y][0], number: names[y][1] }), share: number(value) });
  });
  $(".columns").onpointermove = (event) => {
    const box = $(".columns").getBoundingClientRect();
    const k = Math.max(0, Math.min(shown.last.length - 1, Math.floor(((event.clientX - box.left) / box.width) * shown.last.length)));
    $(".leak .under").textContent = fill(texts.leak_cell, { what: name(k), stage: stageName({ kind: "norm" }), share: number(shown.last[k]) });
  };
  $(".columns").onpointerleave = under;
  under();
}

function markEdits() {
  for (const column of root.querySelectorAll(".columns i")) column.classList.toggle("here", selection.branch === "prompt" && Number(column.dataset.at) === at());
}

// --- two prompts -------------------------------------------------------------------------------------------------------------------

function cosine() {
  const menu = $("select");
  const names = shown.stages.map(stageName);
  if (selection.stage === null || selection.stage >= names.length) selection.stage = names.length - 1;
  $(".stage-menu span").textContent = texts.stage;
  menu.replaceChildren(...names.map((name, k) => new Option(name, k, false, k === selection.stage)));
  const { map } = shown.stages[selection.stage];
  const mine = selection.branch === "prompt" ? row(shown.rows.length) : null;
  const legendOf = () => $("[data-part] .under").replaceChildren(legend("signed", "−1", "1"), make("span", "", texts.cosine_scale));
  matrix($(".matrix"), map, "signed", shown.rows, shown.columns, {
    here: mine,
    tell: (x, y, value) => {
      if (x === null) return legendOf();
      $("[data-part] .under").textContent = fill(texts.cosine_cell, { a: pieceOf(shown.rows[y]), b: pieceOf(shown.columns[x]), value: value.toFixed(3) });
    },
    choose: (_, y) => selection.choose({ branch: "prompt", at: y, hover: null }),
  });
  legendOf();
  $(".closest").textContent = "";
  if (mine === null) return;
  const values = Array.from(maps.values(map).slice(mine * map.w, (mine + 1) * map.w));
  const ranked = values.map((value, k) => [value, k]).sort((a, b) => b[0] - a[0]).slice(0, 3);
  const found = ranked.map(([value, k]) => `${pieceOf(shown.columns[k])} (${k}): ${value.toFixed(2)}`).join(", ");
  $(".closest").textContent = fill(texts.closest, { piece: pieceOf(shown.rows[mine]), found });
}

// --- what arrives -------------------------------------------------------------------------------------------------------------------

let branch = null; // the branch whose stages are drawn

function refresh() {
  if (!root.isConnected) return void selection.views.delete(part);
  if (!shown) return;
  if (part === "lens") {
    if (branch !== selection.branch) {
      branch = selection.branch;
      buildStages();
    }
    markStrips();
    markStages();
    attention();
  } else if (part === "edits") markEdits();
  else cosine();
}

function show() {
  const value = dom.read(props.value);
  root.dataset.kind = value.kind;
  if (value.kind === "none") return;
  ({ texts } = value);
  if (value.kind === "empty") {
    $(".empty").textContent = texts.empty;
    return void (shown = null);
  }
  shown = value;
  if (part === "lens") {
    $(".pipeline h3").textContent = texts.pipeline;
    $(".pipeline .note").textContent = fill(texts.pipeline_note, { vocabulary: shown.prompt.vocabulary, width: shown.prompt.width });
    $(".reads h3").textContent = texts.reads;
    $(".reads .note").textContent = texts.reads_note;
    buildStrips();
    branch = null;
    selection.choose({ branch: "prompt", at: value.start, hover: null });
  } else if (part === "edits") {
    edits();
    refresh();
  } else refresh();
}

if (part === "lens") listen();
if (part === "edits") $(".list").addEventListener("click", (event) => {
  const button = event.target.closest("[data-remove]");
  if (button) trigger("remove", { index: button.dataset.remove });
});
if (part === "cosine") $("select").addEventListener("change", (event) => selection.choose({ stage: Number(event.target.value) }));
selection.views.set(part, refresh);
watch("value", show);
show();
