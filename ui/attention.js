// The attention microscope: one selection (words, layer, step, branch, spot) and every view of it. The script asks for what it lacks and
// keeps what it was told: a word's maps of all steps come at once, so that moving through them needs no server.
//
//   value   JSON: {kind: "stale", run} another run is looked at; {kind: "run", ...} what there is of it; {kind: "bare", status};
//           {kind: "answers", answers: [{key, ...}]}; all made by ui/attention.py

const $ = (selector) => element.querySelector(selector);
const { fill, make } = dom;
const root = $(".microscope");
const slide = $(".slide-of");
const slider = $(".drive input");
let texts = {};
let run = null;
let pick = {};
let hover = null; // a spot under the pointer, before it is chosen
let playing = null;

function button(className, text, act, pressed) {
  const made = make("button", className, text);
  made.type = "button";
  if (pressed !== undefined) made.setAttribute("aria-pressed", pressed);
  made.addEventListener("click", act);
  return made;
}

const number = (x) => (x === 0 ? "0" : x >= 0.1 ? x.toFixed(2) : x >= 0.01 ? x.toFixed(3) : x >= 0.001 ? x.toFixed(4) : x.toExponential(0));
const largest = (numbers) => numbers.reduce((a, b) => Math.max(a, b), 0) || 1;

// --- numbers that travel in half precision ----------------------------------------------------------------------------------------

const HALF = Float32Array.from({ length: 65536 }, (_, bits) => {
  const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -24 * fraction);
});
const halves = (data) => Float32Array.from(new Uint16Array(Uint8Array.from(atob(data), (c) => c.charCodeAt(0)).buffer), (h) => HALF[h]);

// --- asking -----------------------------------------------------------------------------------------------------------------------

const known = new Map(); // key -> answer
const wanted = new Map();
let flying = 0; // when the question on its way was asked; one at a time, and again if no answer comes
let turn = 0;

function want(kind, parts, values) {
  const key = [run.run, kind, ...parts].join("|");
  if (known.has(key)) return known.get(key);
  if (!wanted.has(key)) wanted.set(key, { key, kind, ...values });
  queueMicrotask(ask);
  return null;
}

function ask() {
  const now = performance.now();
  if (!wanted.size || (flying && now - flying < 5000)) return;
  const questions = [...wanted.values()].slice(-12);
  wanted.clear(); // what is still lacking is asked for again when the page is drawn
  flying = now;
  trigger("look", { ask: JSON.stringify({ run: run.run, turn: ++turn, questions }) });
  setTimeout(() => draw(), 5200);
}

function hear(answers) {
  for (const told of answers) {
    if (told.data) told.numbers = halves(told.data);
    if (told.spent) told.spent = halves(told.spent);
    delete told.data;
    known.set(told.key, told);
  }
  while (known.size > 80) known.delete(known.keys().next().value);
}

const volume = (branch, layer) => sound(want("volume", [branch, layer], { branch, layer, position: null }));
const single = (branch, layer, position) => sound(want("volume", [branch, layer, position], { branch, layer, position }));
const sound = (told) => (told && !told.error ? told : null);

/** Name k's map at the s-th recorded step, or its mean over them (null). */
function frame(told, k, s) {
  const area = told.h * told.w;
  if (s === null) {
    if (!told.means) {
      const one = told.k * area, means = new Float32Array(one), steps = told.numbers.length / one;
      told.numbers.forEach((v, i) => (means[i % one] += v / steps));
      told.means = means;
    }
    return told.means.subarray(k * area, (k + 1) * area);
  }
  return told.numbers.subarray((s * told.k + k) * area, (s * told.k + k + 1) * area);
}

/** The end of name k's colour scale: the same for all steps, so that they can be compared. */
function peak(told, k) {
  told.peaks ??= [];
  return (told.peaks[k] ??= Math.max(...told.at.map((_, s) => largest(frame(told, k, s)))) || 1);
}

// --- the selection, in numbers and in words ---------------------------------------------------------------------------------------

const names = () => run.names[pick.branch];
const at = () => run.at[pick.branch];
const positions = () => (pick.position === null ? names()[pick.name].positions : [pick.position]);
const moment = (told) => (pick.whole ? null : told.at.indexOf(pick.step));
const seen = (told) => told && (pick.whole || told.at.includes(pick.step));

function named(name) {
  if (name.kind === "padding") return fill(texts.padding, { count: name.positions.length });
  return name.word || texts[name.kind === "start" ? "start" : "end"];
}

function nameOf(k) {
  if (pick.position === null || k !== undefined) return named(names()[k ?? pick.name]);
  const piece = run.pieces[pick.branch][pick.position];
  const mark = { start: texts.start, end: texts.end, padding: texts.pad }[piece];
  return `${mark || piece} (${pick.position})`;
}

const SIDES = { down: () => texts.down, mid: () => texts.mid, up: () => texts.up };

const facts = new Map(); // layer -> {side, h, w, number}
const sized = ({ h, w, number }) => `${h} × ${w}${number ? ` · ${number}` : ""}`;
const layerName = (name) => (name ? `${SIDES[facts.get(name).side]()} ${sized(facts.get(name))}` : texts.mean_layers);

const stepName = (step) => (step === null ? fill(texts.all_steps, { count: at().length }) : fill(texts.step, { i: step + 1, count: run.count }));

/** The map in the large picture: {numbers, h, w, high}. */
function chosen() {
  const layer = pick.head && headLayer(pick.head.layer);
  if (layer) {
    const area = layer.h * layer.w;
    return { ...layer, low: 0, high: largest(layer.numbers), numbers: layer.numbers.subarray(pick.head.k * area, (pick.head.k + 1) * area) };
  }
  const told = pick.position === null ? volume(pick.branch, pick.layer) : single(pick.branch, pick.layer, pick.position);
  if (!seen(told)) return null;
  const k = pick.position === null ? pick.name : 0;
  const numbers = frame(told, k, moment(told));
  return { numbers, h: told.h, w: told.w, low: 0, high: pick.whole ? largest(numbers) : peak(told, k) };
}

const cell = (map, [u, v]) => [Math.min(map.w - 1, Math.floor(u * map.w)), Math.min(map.h - 1, Math.floor(v * map.h))];
const value = (map, spot) => map.numbers[cell(map, spot)[1] * map.w + cell(map, spot)[0]];

function choose(change) {
  if ("name" in change) change.position ??= null;
  if (["layer", "branch"].some((what) => what in change)) change.head ??= null;
  Object.assign(pick, change);
  draw();
}

let drawing = null;

/** Draws soon, all (render) or only what a moving pointer changes (pointed). */
function draw(what = render) {
  const due = drawing !== null;
  drawing = due && drawing === render ? render : what;
  if (due) return;
  requestAnimationFrame(() => {
    const act = drawing;
    drawing = null;
    if (run) act();
  });
}

function pointed() {
  ground();
  here();
  if ($(".again").open) again();
}

function render() {
  pick.name = Math.min(pick.name, names().length - 1);
  root.dataset.branch = pick.branch;
  ground();
  here();
  places();
  cards();
  seventySeven();
  time();
  if ($(".duel").open) duel();
  if ($(".pair").open) pair();
  if ($(".runs-pair").open) runsPair();
  if ($(".again").open) again();
  if (run.light && !wanted.size && !flying) for (const { name } of run.layers) volume(pick.branch, name); // at leisure: all the others
}

// --- the picture and the map over it ----------------------------------------------------------------------------------------------

function ground() {
  const map = chosen();
  const where = pick.head ? fill(texts.head, { head: pick.head.k + 1, layer: layerName(pick.head.layer) }) : layerName(pick.layer);
  const when = stepName(pick.head ? pick.head.step : pick.whole ? null : pick.step);
  const branch = pick.branch === "cond" ? texts.cond : texts.uncond;
  $(".chosen").replaceChildren(make("b", "", nameOf()), ` · ${when} · ${where} · ${branch}`);
  $(".ground .what").textContent = nameOf();
  const guess = $(".guess").checked || !run.picture;
  $(".below").src = guess ? run.guesses[pick.whole ? run.guesses.length - 1 : pick.step] : run.picture;
  $(".below").classList.toggle("pixels", guess);
  slide.style.aspectRatio = `${run.latent[1]} / ${run.latent[0]}`;
  $(".map").hidden = !map;
  $(".ground").classList.toggle("waiting", !map);
  if (!map) return void ($(".told").textContent = at().length && !pick.whole && !at().includes(pick.step) ? texts.not_then : "");
  maps.paint($(".map"), map);
  $(".ground .legend .high").textContent = number(map.high);
  const spot = hover || pick.spot;
  const told = $(".told");
  told.textContent = "";
  $(".spot").hidden = !spot;
  if (spot) {
    const [x, y] = cell(map, spot);
    told.textContent = fill(texts.value, { x, y, value: number(value(map, spot)) });
    Object.assign($(".spot").style, { left: `${(100 * x) / map.w}%`, top: `${(100 * y) / map.h}%`, width: `${100 / map.w}%`, height: `${100 / map.h}%` });
  }
  slide.setAttribute("aria-label", `${fill(texts.alt, { word: nameOf() })} ${told.textContent}`);
}

function spotOf(event) {
  const box = slide.getBoundingClientRect();
  const inside = (v) => Math.min(0.9999, Math.max(0, v));
  return [inside((event.clientX - box.left) / box.width), inside((event.clientY - box.top) / box.height)];
}

slide.addEventListener("pointermove", (event) => {
  if (!run) return;
  if (brush.mode) return void (event.buttons && dab(spotOf(event)));
  hover = spotOf(event);
  draw(pointed);
});
slide.addEventListener("pointerleave", () => {
  hover = null;
  draw(pointed);
});
slide.addEventListener("pointerdown", (event) => {
  if (!run) return;
  if (!brush.mode) return;
  event.preventDefault();
  slide.setPointerCapture(event.pointerId);
  brush.past.push(brush.mask.slice());
  brush.last = null;
  dab(spotOf(event));
});
slide.addEventListener("pointerup", () => brush.mode && painted());
slide.addEventListener("click", (event) => !brush.mode && run && choose({ spot: spotOf(event) }));
slide.addEventListener("keydown", (event) => {
  const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  const map = move && run && chosen();
  if (!map) return;
  event.preventDefault();
  const [x, y] = cell(map, pick.spot || [0.5, 0.5]);
  const place = (v, side) => (Math.min(side - 1, Math.max(0, v)) + 0.5) / side;
  choose({ spot: [place(x + move[0], map.w), place(y + move[1], map.h)] });
});
$(".blend input").addEventListener("input", (event) => root.style.setProperty("--map", event.target.value / 100));
$(".guess").addEventListener("change", () => draw());
$(".blur").addEventListener("change", (event) => root.classList.toggle("blurred", event.target.checked));

// --- one spot: which words did it look at? ----------------------------------------------------------------------------------------

function here() {
  const told = volume(pick.branch, pick.layer);
  const spot = hover || pick.spot;
  const bars = $(".bars");
  if (!seen(told) || !spot) return;
  const s = moment(told);
  const shares = names().map((_, k) => value({ numbers: frame(told, k, s), h: told.h, w: told.w }, spot));
  const words = shares.filter((_, k) => names()[k].kind === "word");
  const end = largest(words.length ? words : shares);
  if (bars.children.length !== shares.length) {
    bars.replaceChildren(
      ...shares.map((_, k) => {
        const bar = button("bar", "", () => choose({ name: k, head: null }));
        bar.append(make("span", "label"), make("i"), make("b"));
        return bar;
      }),
    );
  }
  shares.forEach((share, k) => {
    const bar = bars.children[k];
    bar.children[0].textContent = nameOf(k);
    bar.children[1].style.setProperty("--share", `${Math.min(100, (100 * share) / end)}%`);
    bar.children[2].textContent = number(share);
    bar.classList.toggle("beyond", share > end * 1.001);
    bar.classList.toggle("mark", names()[k].kind !== "word");
    bar.setAttribute("aria-pressed", pick.position === null && k === pick.name);
  });
  const [x, y] = cell(told, spot);
  const sum = shares.reduce((a, b) => a + b, 0);
  $(".formula .now-told")?.remove();
  $(".formula").append(make("span", "now-told", fill(texts.sum, { x, y, word: nameOf(pick.name), share: number(shares[pick.name]), sum: sum.toFixed(2) })));
}

// --- where: layers, branch, memory ------------------------------------------------------------------------------------------------

function places() {
  const here = (layer) => !pick.head && pick.layer === layer;
  $(".every").setAttribute("aria-pressed", here(""));
  const sizes = [...new Set(run.layers.map((layer) => layer.h * layer.w))].sort((a, b) => b - a);
  const rows = sizes.flatMap((size) =>
    ["down", "mid", "up"].map((side) => {
      const box = make("div", `level ${side}`);
      const layers = run.layers.filter((layer) => layer.side === side && layer.h * layer.w === size);
      layers.forEach((layer) => {
        const one = button("plain layer", sized(layer), () => choose({ layer: layer.name }), here(layer.name));
        one.title = layer.name;
        box.append(one);
      });
      return box;
    }),
  );
  const heads = ["down", "mid", "up"].map((side) => make("small", side, SIDES[side]()));
  $(".levels").replaceChildren(...heads, ...rows);
  $(".branches").replaceChildren(
    ...["cond", "uncond"].map((branch) => {
      const one = button(`plain ${branch}`, texts[branch === "cond" ? "cond" : "uncond"], () => switchTo(branch), pick.branch === branch);
      one.disabled = !run.at[branch].length;
      return one;
    }),
  );
  const missing = ["cond", "uncond"].find((branch) => !run.at[branch].length);
  $(".branch-note").textContent = missing === "cond" ? texts.no_cond : missing ? texts.no_uncond : texts.branch_note;
}

function switchTo(branch) {
  const word = names()[pick.name]?.word;
  pick.branch = branch;
  const same = names().findIndex((name) => name.word && name.word === word);
  choose({ branch, name: same >= 0 ? same : firstName(), step: run.at[branch].includes(pick.step) ? pick.step : run.at[branch][0] });
}

const firstName = () => {
  const long = names().findIndex((name) => name.word.length > 3);
  return long >= 0 ? long : Math.max(0, names().findIndex((name) => name.kind === "word"));
};

$(".every").addEventListener("click", () => choose({ layer: "" }));

// --- all words, all 77 ------------------------------------------------------------------------------------------------------------

function cards() {
  const told = volume(pick.branch, pick.layer);
  const box = $(".cards");
  if (!seen(told)) return;
  const s = moment(told);
  const found = names().map((_, k) => frame(told, k, s));
  const common = $(".common").checked ? Math.max(...found.filter((_, k) => names()[k].kind === "word").map(largest)) : 0;
  if (box.children.length !== found.length) {
    box.replaceChildren(
      ...found.map((_, k) => {
        const card = button("word-card", "", () => choose({ name: k, head: null }));
        card.append(make("canvas"), make("span", "label"), make("small"));
        return card;
      }),
    );
  }
  found.forEach((numbers, k) => {
    const card = box.children[k], high = largest(numbers);
    const key = [told.key, s, common].join();
    if (card.dataset.key !== key) maps.paint(card.children[0], { numbers, h: told.h, w: told.w, low: 0, high: common > 0 ? common : high });
    card.dataset.key = key;
    card.children[1].textContent = nameOf(k);
    card.children[2].textContent = fill(texts.at_most, { value: number(high) });
    card.classList.toggle("mark", names()[k].kind !== "word");
    card.setAttribute("aria-pressed", pick.position === null && k === pick.name);
  });
}

function seventySeven() {
  const told = volume(pick.branch, pick.layer);
  const box = $(".all");
  if (!seen(told)) return;
  const s = moment(told), shares = new Float32Array(77);
  told.spent.forEach((v, i) => s === null ? (shares[i % 77] += v / told.at.length) : Math.floor(i / 77) === s && (shares[i % 77] = v));
  const end = largest(shares.subarray(1));
  if (!box.children.length) {
    box.replaceChildren(...Array.from({ length: 77 }, (_, i) => {
      const bar = make("i");
      bar.setAttribute("role", "option");
      bar.addEventListener("click", () => choose({ position: i, head: null }));
      return bar;
    }));
  }
  const mine = positions();
  shares.forEach((share, i) => {
    const bar = box.children[i], piece = run.pieces[pick.branch][i];
    bar.style.setProperty("--share", `${Math.min(100, (100 * share) / end)}%`);
    bar.className = ["start", "end", "padding"].includes(piece) ? "mark" : "";
    bar.classList.toggle("beyond", share > end * 1.001);
    bar.setAttribute("aria-selected", mine.includes(i));
    bar.title = `${i} ${{ start: texts.start, end: texts.end, padding: texts.pad }[piece] || piece}: ${number(share)}`;
  });
}

$(".all").addEventListener("keydown", (event) => {
  const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!move || !run) return;
  event.preventDefault();
  choose({ position: Math.min(76, Math.max(0, (pick.position ?? positions()[0]) + move)), head: null });
});
$(".common").addEventListener("change", () => draw());

// --- time -------------------------------------------------------------------------------------------------------------------------

function time() {
  const told = pick.position === null ? volume(pick.branch, pick.layer) : single(pick.branch, pick.layer, pick.position);
  const film = $(".film");
  slider.max = run.count - 1;
  slider.value = pick.step;
  slider.setAttribute("aria-valuetext", stepName(pick.step));
  $(".now").textContent = stepName(pick.whole ? null : pick.step);
  $(".mean").setAttribute("aria-pressed", pick.whole);
  if (film.children.length !== run.count) {
    film.replaceChildren(...Array.from({ length: run.count }, (_, i) => button("shot", "", () => choose({ step: i, whole: false }))));
    for (const shot of film.children) shot.append(make("canvas"));
    film.style.setProperty("--shots", run.count);
  }
  if (!told) return;
  const k = pick.position === null ? pick.name : 0, high = peak(told, k);
  const key = [told.key, k, high].join();
  [...film.children].forEach((shot, i) => {
    const s = told.at.indexOf(i);
    shot.title = stepName(i);
    shot.setAttribute("aria-label", stepName(i));
    shot.classList.toggle("current", !pick.whole && i === pick.step);
    shot.classList.toggle("absent", s < 0);
    if (s >= 0 && shot.dataset.key !== key) maps.paint(shot.firstChild, { numbers: frame(told, k, s), h: told.h, w: told.w, low: 0, high });
    shot.dataset.key = key;
  });
  const now = !pick.whole && film.children[pick.step];
  if (now && film.scrollWidth > film.clientWidth) {
    const left = now.offsetLeft - film.offsetLeft;
    if (left < film.scrollLeft || left + now.offsetWidth > film.scrollLeft + film.clientWidth) film.scrollLeft = left - film.clientWidth / 2;
  }
}

function halt() {
  clearInterval(playing);
  playing = null;
  $(".run-film").textContent = texts.play;
}

function play() {
  if (playing) return halt();
  $(".run-film").textContent = texts.pause;
  choose({ step: !pick.whole && pick.step < run.count - 1 ? pick.step : 0, whole: false, head: null });
  playing = setInterval(() => (pick.step >= run.count - 1 ? halt() : choose({ step: pick.step + 1 })), Math.max(80, Math.min(300, 4000 / run.count)));
}

slider.addEventListener("input", () => {
  halt();
  choose({ step: Number(slider.value), whole: false });
});
$(".run-film").addEventListener("click", () => run && play());
$(".mean").addEventListener("click", () => run && (halt(), choose({ whole: !pick.whole, head: null })));
$(".suggest button").addEventListener("click", () => {
  if (!run) return;
  halt();
  pick.step = 0;
  $(".ground").scrollIntoView({ block: "nearest" });
  play();
});

// --- a mask against the word: which step and layer find it? -----------------------------------------------------------------------

const brush = { mode: null, mask: null, w: 0, h: 0, past: [], last: null, sent: "" };

function newMask() {
  const [height, width] = run.pixels, shrink = Math.min(1, 128 / Math.max(height, width));
  Object.assign(brush, { w: Math.max(1, Math.round(width * shrink)), h: Math.max(1, Math.round(height * shrink)), past: [], sent: "" });
  brush.mask = new Uint8Array(brush.w * brush.h);
  setMode(null);
  showMask();
}

function dab([u, v]) {
  const radius = ($(".width input").value / 200) * Math.max(brush.w, brush.h), to = [u * brush.w, v * brush.h], from = brush.last || to;
  const steps = Math.max(1, Math.ceil(Math.hypot(to[0] - from[0], to[1] - from[1]) / Math.max(1, radius / 2)));
  for (let k = 0; k <= steps; k++) {
    const cx = from[0] + ((to[0] - from[0]) * k) / steps, cy = from[1] + ((to[1] - from[1]) * k) / steps;
    for (let y = Math.max(0, Math.floor(cy - radius)); y < Math.min(brush.h, cy + radius); y++)
      for (let x = Math.max(0, Math.floor(cx - radius)); x < Math.min(brush.w, cx + radius); x++)
        if (Math.hypot(x + 0.5 - cx, y + 0.5 - cy) <= Math.max(0.71, radius)) brush.mask[y * brush.w + x] = brush.mode === "paint" ? 1 : 0;
  }
  brush.last = to;
  showMask();
}

function showMask() {
  const canvas = $(".painted");
  canvas.width = brush.w;
  canvas.height = brush.h;
  const image = new ImageData(brush.w, brush.h);
  const hex = getComputedStyle(root).getPropertyValue("--mask").trim().slice(1);
  const colour = [0, 2, 4].map((k) => parseInt(hex.slice(k, k + 2), 16));
  brush.mask.forEach((on, i) => on && image.data.set([...colour, 170], 4 * i));
  canvas.getContext("2d").putImageData(image, 0, 0);
}

function painted() {
  const bytes = new Uint8Array(Math.ceil(brush.mask.length / 8));
  let any = false;
  brush.mask.forEach((on, i) => on && ((bytes[i >> 3] |= 128 >> (i & 7)), (any = true)));
  brush.sent = any ? btoa(Array.from(bytes, (b) => String.fromCharCode(b)).join("")) : "";
  draw();
}

function setMode(mode) {
  brush.mode = brush.mode === mode ? null : mode;
  for (const name of ["paint", "erase"]) $(`.${name}`).setAttribute("aria-pressed", brush.mode === name);
  root.classList.toggle("painting", Boolean(brush.mode));
  if (brush.mode) $(".ground").scrollIntoView({ block: "nearest" });
}

$(".paint").addEventListener("click", () => setMode("paint"));
$(".erase").addEventListener("click", () => setMode("erase"));
$(".undo").addEventListener("click", () => {
  if (!run || !brush.past.length) return;
  brush.mask = brush.past.pop();
  showMask();
  painted();
});
$(".clear").addEventListener("click", () => {
  if (!run) return;
  brush.past.push(brush.mask.slice());
  brush.mask.fill(0);
  showMask();
  painted();
});
$(".load input").addEventListener("change", async (event) => {
  const file = event.target.files[0];
  const remark = $(".duel .remark");
  event.target.value = "";
  remark.textContent = "";
  if (!file || !run) return;
  try {
    const picture = await createImageBitmap(file);
    const ratio = picture.width / picture.height / (brush.w / brush.h);
    if (ratio < 0.98 || ratio > 1.02) return void (remark.textContent = fill(texts.other_shape, { w: picture.width, h: picture.height }));
    const canvas = make("canvas");
    canvas.width = brush.w;
    canvas.height = brush.h;
    const context = canvas.getContext("2d");
    context.drawImage(picture, 0, 0, brush.w, brush.h);
    const { data } = context.getImageData(0, 0, brush.w, brush.h);
    brush.past.push(brush.mask.slice());
    brush.mask.forEach((_, i) => (brush.mask[i] = (data[4 * i] + data[4 * i + 1] + data[4 * i + 2]) / 3 > 127 && data[4 * i + 3] > 127 ? 1 : 0));
    showMask();
    painted();
    if (!brush.sent) remark.textContent = texts.black;
  } catch {
    remark.textContent = texts.no_picture;
  }
});

const level = () => Number($(".cutoff input").value) / 100;

function duel() {
  const share = level(), where = positions();
  $(".cutoff b").textContent = `${Math.round(100 * share)} %`;
  $(".undo").disabled = !brush.past.length;
  $(".scores").hidden = !brush.sent;
  if (brush.sent) {
    const told = want("judge", [pick.branch, where, share, brush.sent], { branch: pick.branch, positions: where, share, mask: brush.sent, h: brush.h, w: brush.w });
    if (told?.error) $(".duel .remark").textContent = told.error;
    else if (told) scores(told);
  }
  const step = pick.whole ? null : pick.step;
  if (step !== null && !at().includes(step)) return;
  const told = want("mask", [pick.branch, where, pick.layer, step, share], { branch: pick.branch, positions: where, layer: pick.layer, step, share });
  if (!told || told.error) return;
  const image = $(".hand img");
  image.src = told.png;
  image.alt = fill(texts.mask_alt, { word: nameOf() });
  $(".hand figcaption").textContent = fill(texts.mask_part, { part: Math.round(100 * told.part) });
  $(".keep").href = told.png;
  $(".keep").download = `mask-${nameOf().replace(/[^\p{L}\p{N}]+/gu, "-")}.png`;
}

function scores(told) {
  const { best, rows } = told, columns = told.at.length + 1;
  const when = best.step === null ? stepName(null) : stepName(best.step);
  $(".best").textContent = fill(texts.best, { word: nameOf(), step: when, layer: layerName(best.layer), iou: best.iou.toFixed(2) });
  $(".go-best").onclick = () => choose({ layer: best.layer, whole: best.step === null, ...(best.step === null ? {} : { step: best.step }), head: null });
  const table = $(".table");
  if (table.dataset.key === told.key) return;
  table.dataset.key = told.key;
  const canvas = make("canvas");
  const map = { numbers: Float32Array.from(told.scores.flat()), h: rows.length, w: columns, low: 0, high: 1 };
  maps.paint(canvas, map);
  const labels = rows.map((layer) => make("span", "", layerName(layer)));
  const axis = make("p", "axis");
  axis.append(make("span", "", fill(texts.step, { i: told.at[0] + 1, count: run.count })), make("span", "", texts.mean_column));
  const mark = make("i", "mark-best"), frame = make("div", "field"), names = make("div", "row-names");
  names.append(...labels);
  const row = rows.indexOf(best.layer), column = best.step === null ? columns - 1 : told.at.indexOf(best.step);
  Object.assign(mark.style, { left: `${(100 * column) / columns}%`, top: `${(100 * row) / rows.length}%`, width: `${100 / columns}%`, height: `${100 / rows.length}%` });
  frame.append(canvas, mark);
  table.replaceChildren(names, frame, axis);
  const read = $(".scores .read");
  const place = (x, y) => [rows[y], x < told.at.length ? told.at[x] : null];
  maps.point(
    canvas,
    () => map,
    (x, y, iou) => (read.textContent = x === null ? "" : `${layerName(place(x, y)[0])} · ${stepName(place(x, y)[1])}: ${iou.toFixed(2)}`),
    (x, y) => {
      const [layer, step] = place(x, y);
      choose({ layer, whole: step === null, ...(step === null ? {} : { step }), head: null });
    },
  );
}

$(".cutoff input").addEventListener("input", () => draw());
$(".take").addEventListener("click", () => {
  if (!run) return;
  const step = pick.whole ? null : pick.step;
  trigger("hand", { ask: JSON.stringify({ run: run.run, branch: pick.branch, positions: positions(), layer: pick.layer, step, share: level() }) });
  $(".taken").textContent = fill(texts.taken, { word: nameOf() });
});

// --- two words, two runs ----------------------------------------------------------------------------------------------------------

function panel(title, map, source, kind) {
  const figure = make("figure", `panel ${kind || ""}`);
  const box = make("div", "slide-of still");
  box.style.aspectRatio = `${map.w} / ${map.h}`;
  if (source) {
    const image = make("img", "below");
    image.src = source;
    image.alt = "";
    box.append(image);
  }
  const canvas = make("canvas", "map"), told = make("small");
  maps.paint(canvas, map);
  maps.point(canvas, () => map, (x, y, v) => (told.textContent = x === null ? fill(texts.at_most, { value: number(map.high) }) : fill(texts.value, { x, y, value: number(v) })));
  told.textContent = fill(texts.at_most, { value: number(map.high) });
  box.append(canvas);
  const caption = make("figcaption");
  caption.append(make("b", "", title), told);
  figure.append(box, caption);
  return figure;
}

function options(select, entries, selected) {
  const key = JSON.stringify(entries);
  if (select.dataset.key !== key) {
    select.dataset.key = key;
    select.replaceChildren(...entries.map(([value, label]) => Object.assign(make("option", "", label), { value })));
  }
  if (selected !== undefined) select.value = selected;
}

function pair() {
  const told = volume(pick.branch, pick.layer);
  if (pick.second === null || pick.second >= names().length || pick.second === pick.name) {
    const words = names().map((name, k) => [name, k]).filter(([name, k]) => k !== pick.name && name.kind === "word");
    words.sort(([a], [b]) => b.word.length - a.word.length);
    pick.second = words.length ? words[0][1] : names().findIndex((_, k) => k !== pick.name);
  }
  options($(".pair select"), names().map((_, k) => [String(k), nameOf(k)]).filter(([k]) => Number(k) !== pick.name), String(pick.second));
  if (!seen(told) || pick.second < 0) return;
  const s = moment(told), { h, w } = told;
  const [a, b] = [pick.name, pick.second].map((k) => frame(told, k, s));
  const sums = [a, b].map((map) => map.reduce((x, y) => x + y, 0) || 1);
  const both = a.map((v, i) => Math.min(v / sums[0], b[i] / sums[1]));
  const high = Math.max(largest(a.map((v) => v / sums[0])), largest(b.map((v) => v / sums[1])));
  const parts = [a.map((v) => v / sums[0]), b.map((v) => v / sums[1]), both];
  const titles = [nameOf(pick.name), nameOf(pick.second), texts.common_part];
  $(".pair .sides").replaceChildren(...parts.map((numbers, k) => panel(titles[k], { numbers, h, w, low: 0, high }, run.picture)));
  const where = [pick.name, pick.second].map((k) => names()[k].positions);
  const values = { branch: pick.branch, layer: pick.layer, positions: where[0], others: where[1] };
  const found = sound(want("overlap", [pick.branch, pick.layer, pick.name, pick.second], values));
  if (!found) return;
  const now = found.overlap[s === null ? found.at.length : s];
  $(".pair .result").textContent = fill(texts.overlap, { first: titles[0], second: titles[1], share: Math.round(100 * now) });
  const steps = $(".pair .steps");
  steps.replaceChildren(
    ...found.at.map((i, k) => {
      const bar = button("step-bar", "", () => choose({ step: i, whole: false, head: null }), !pick.whole && i === pick.step);
      bar.style.setProperty("--share", `${100 * found.overlap[k]}%`);
      bar.title = `${stepName(i)}: ${Math.round(100 * found.overlap[k])} %`;
      bar.setAttribute("aria-label", bar.title);
      return bar;
    }),
  );
}

$(".pair select").addEventListener("change", (event) => choose({ second: Number(event.target.value) }));

function runsPair() {
  const result = $(".runs-pair .result"), row = $(".runs-pair .sides");
  const said = (text) => {
    row.replaceChildren();
    result.textContent = text;
  };
  $(".runs-pair .second").hidden = !run.runs.length;
  if (!run.runs.length) return said(texts.one_run);
  if (!run.runs.some(([job]) => job === pick.job)) pick.job = run.runs[0][0];
  options($(".runs-pair select"), run.runs, pick.job);
  const name = names()[pick.name];
  if (name.kind !== "word" || pick.position !== null) return said(texts.a_word);
  const found = want("other", [pick.job, pick.branch, pick.layer, name.word], { job: pick.job, branch: pick.branch, layer: pick.layer, word: name.word });
  const told = volume(pick.branch, pick.layer);
  if (found?.error) return said(found.error);
  if (!found || !seen(told)) return;
  const s = moment(told);
  const mine = frame(told, pick.name, s), theirs = frame(found, 0, s);
  const high = Math.max(largest(mine), largest(theirs));
  row.replaceChildren(
    panel(texts.this_run, { numbers: mine, h: told.h, w: told.w, low: 0, high }, run.picture),
    panel(run.runs.find(([job]) => job === pick.job)[1], { numbers: theirs, h: found.h, w: found.w, low: 0, high }, found.picture),
  );
  result.textContent = found.overlap ? fill(texts.overlap_runs, { word: name.word, share: Math.round(100 * found.overlap[s === null ? found.at.length : s]) }) : texts.no_overlap;
}

$(".runs-pair select").addEventListener("change", (event) => choose({ job: event.target.value }));

// --- single heads, self-attention: one UNet pass more -------------------------------------------------------------------------------

let passed = {}; // what was brought back: {run, step, key -> answer}
let asking = null;
let follow = false; // after the first time, the pass follows the step
let waiting = null;

const passKeys = () => ({ heads: ["heads", pick.branch, positions()].join("|"), itself: ["itself", pick.branch].join("|") });

function askAgain() {
  if (!run || asking) return;
  const keys = passKeys();
  const fresh = passed.run !== run.run || passed.step !== pick.step;
  const questions = [];
  if (fresh || !passed[keys.heads]) questions.push({ key: keys.heads, kind: "heads", branch: pick.branch, positions: positions() });
  if (fresh || !passed[keys.itself]) questions.push({ key: keys.itself, kind: "itself", branch: pick.branch });
  if (!questions.length) return;
  follow = true;
  asking = performance.now();
  const mine = asking;
  $(".again .remark").textContent = texts.asking;
  setTimeout(() => {
    if (asking === mine) asking = null; // no answer: it may be asked for again
  }, 120000);
  trigger("again", { ask: JSON.stringify({ run: run.run, step: pick.step, turn: ++turn, questions }) });
}

document.addEventListener("attention-again", (event) => {
  asking = null;
  let told;
  try {
    told = JSON.parse(event.detail);
  } catch {
    return;
  }
  if (told.error) {
    follow = false;
    $(".again .remark").textContent = told.error;
    return;
  }
  $(".again .remark").textContent = "";
  const [one, step] = told.run;
  if (passed.run !== one || passed.step !== step) passed = { run: one, step };
  for (const answer of told.answers) {
    for (const layer of answer.layers || []) {
      layer.numbers = halves(layer.data);
      facts.set(layer.name, layer);
    }
    passed[answer.key] = answer;
  }
  if (pick.head) pick.head.step = step;
  draw();
});

const found = (what) => (passed.run === run.run && passed.step === pick.step ? sound(passed[passKeys()[what]]) : null);
const headLayer = (name) => (passed.run === run.run ? sound(passed[passKeys().heads])?.layers.find((layer) => layer.name === name) : null);

function again() {
  $(".again .ask").textContent = fill(texts.ask, { step: stepName(pick.step) });
  const heads = found("heads"), own = found("itself");
  if ((!heads || !own) && follow && !asking) {
    clearTimeout(waiting);
    waiting = setTimeout(askAgain, 200);
  }
  $(".again .ask").hidden = Boolean(heads && own);
  const refused = passed.run === run.run && passed.step === pick.step && (passed[passKeys().heads] || passed[passKeys().itself])?.error;
  if (refused) $(".again .remark").textContent = refused;
  const box = $(".heads");
  if (heads && box.dataset.key !== heads.key + passed.step + run.run) {
    box.dataset.key = heads.key + passed.step + run.run;
    box.replaceChildren(
      ...heads.layers.map((layer) => {
        const row = make("div", "head-row"), area = layer.h * layer.w, high = largest(layer.numbers);
        const label = make("p", "", layerName(layer.name));
        label.append(make("small", "", fill(texts.at_most, { value: number(high) })));
        row.append(label);
        for (let k = 0; k < layer.k; k++) {
          const one = button("head-of", "", () => choose({ head: same(layer.name, k) ? null : { layer: layer.name, k, step: passed.step }, whole: false }));
          const canvas = make("canvas");
          maps.paint(canvas, { numbers: layer.numbers.subarray(k * area, (k + 1) * area), h: layer.h, w: layer.w, low: 0, high });
          one.append(canvas);
          one.dataset.head = `${layer.name}|${k}`;
          one.title = fill(texts.head, { head: k + 1, layer: layerName(layer.name) });
          one.setAttribute("aria-label", one.title);
          row.append(one);
        }
        return row;
      }),
    );
  }
  for (const one of box.querySelectorAll(".head-of")) one.setAttribute("aria-pressed", pick.head !== null && one.dataset.head === `${pick.head.layer}|${pick.head.k}`);
  $(".again h4").hidden = !own;
  $(".again h4 + .note").hidden = !own;
  $(".again .second").hidden = !own;
  const sides = $(".again .sides");
  if (!own) return void sides.replaceChildren();
  if (!own.layers.some((layer) => layer.name === pick.own)) pick.own = own.layers.reduce((a, b) => (b.h * b.w >= a.h * a.w ? b : a)).name;
  options($(".again select"), own.layers.map((layer) => [layer.name, layerName(layer.name)]), pick.own);
  const layer = own.layers.find((one) => one.name === pick.own);
  const spot = hover || pick.spot;
  if (!spot) return;
  const [x, y] = cell(layer, spot), area = layer.h * layer.w, row = y * layer.w + x;
  const numbers = layer.numbers.subarray(row * area, (row + 1) * area);
  const shown = panel(fill(texts.self, { x, y }), { numbers, h: layer.h, w: layer.w, low: 0, high: largest(numbers) }, run.picture);
  const mark = make("i", "spot");
  Object.assign(mark.style, { left: `${(100 * x) / layer.w}%`, top: `${(100 * y) / layer.h}%`, width: `${100 / layer.w}%`, height: `${100 / layer.h}%` });
  shown.firstChild.append(mark);
  sides.replaceChildren(shown);
}

const same = (layer, k) => pick.head !== null && pick.head.layer === layer && pick.head.k === k;

$(".again .ask").addEventListener("click", askAgain);
$(".again select").addEventListener("change", (event) => choose({ own: event.target.value }));
for (const part of element.querySelectorAll("details")) part.addEventListener("toggle", () => draw());

// --- what arrives -------------------------------------------------------------------------------------------------------------------

function words() {
  const say = (selector, text) => ($(selector).textContent = text);
  say(".here h3", texts.here);
  say(".here .note", texts.here_note);
  say(".layers-title", texts.layers);
  say(".every", texts.all_layers);
  say(".branch-title", texts.branch);
  say(".memory-title", texts.memory);
  say(".less", texts.picture);
  say(".more", texts.map);
  say(".guess + span", texts.guess);
  say(".blur + span", texts.smooth);
  say(".words-of h3", texts.words);
  say(".words-of .note", texts.words_note);
  say(".common + span", texts.common_scale);
  say(".all-note", texts.all_note);
  say(".time-of h3", texts.time);
  say(".run-film", texts.play);
  say(".mean", texts.mean);
  say(".suggest p", texts.try);
  say(".suggest button", texts.try_button);
  say(".duel summary", texts.duel);
  say(".duel > .note", texts.duel_note);
  say(".paint", texts.paint);
  say(".erase", texts.erase);
  say(".undo", texts.undo);
  say(".clear", texts.clear);
  say(".load span", texts.load);
  say(".width span", texts.width);
  say(".go-best", texts.go_best);
  say(".duel h4", texts.use_title);
  say(".cutoff span", texts.level);
  say(".take", texts.use);
  say(".keep", texts.save);
  say(".pair summary", texts.pair);
  say(".pair .note", texts.pair_note);
  say(".pair .second span", texts.second);
  say(".runs-pair summary", texts.runs);
  say(".runs-pair .note", texts.runs_note);
  say(".runs-pair .second span", texts.other_run);
  say(".again summary", texts.again);
  say(".again > .note", texts.again_note);
  say(".again h4", texts.self_title);
  say(".again h4 + .note", texts.self_note);
  say(".again .second span", texts.self_layer);
  slider.setAttribute("aria-label", texts.slider);
  for (const bar of element.querySelectorAll(".legend i")) bar.style.background = maps.scale("viridis");
  root.style.setProperty("--map", $(".blend input").value / 100);
}

function open(value) {
  run = value;
  known.clear();
  wanted.clear();
  flying = 0;
  passed = {};
  asking = null;
  hover = null;
  halt();
  for (const selector of [".bars", ".cards", ".all", ".film", ".heads", ".table"]) {
    $(selector).replaceChildren();
    delete $(selector).dataset.key;
  }
  for (const selector of [".taken", ".duel .remark", ".again .remark", ".pair .result"]) $(selector).textContent = "";
  const branch = run.at.cond.length ? "cond" : "uncond";
  pick = { branch, name: 0, position: null, step: 0, whole: true, layer: "", head: null, spot: null, second: null, job: null, own: null };
  pick.name = firstName();
  pick.step = at()[Math.floor(at().length / 2)];
  const megabytes = (bytes) => (bytes / 2 ** 20).toFixed(bytes < 2 ** 24 ? 1 : 0);
  $(".memory").textContent = fill(texts.memory_note, { used: megabytes(run.bytes), budget: megabytes(run.budget) });
  $(".budget i").style.width = `${Math.min(100, (100 * run.bytes) / run.budget)}%`;
  $(".notes").textContent = run.notes.join(" ");
  facts.clear();
  for (const layer of run.layers) facts.set(layer.name, layer);
  const some = run.layers.length < run.of ? ` ${fill(texts.some_layers, { kept: run.layers.length, all: run.of })}` : "";
  $(".layers-note").textContent = texts.layers_note + some;
  newMask();
  draw();
}

let expected = null; // the run that is looked at, while it is not here
let called = -Infinity; // when it was asked for

/** Asks for the run that is looked at as soon as this tab is seen, and again if no answer comes. */
function meet() {
  if (expected === null || !element.checkVisibility() || performance.now() - called < 5000) return;
  called = performance.now();
  trigger("look", { ask: JSON.stringify({ run: expected }) });
  setTimeout(meet, 5200);
}

function show() {
  const value = dom.read(props.value);
  if (value.texts) {
    texts = value.texts;
    words();
  }
  if (value.kind === "stale") {
    if (run?.run === value.run) return;
    expected = value.run;
    called = -Infinity;
    return meet();
  }
  if (value.kind === "answers") {
    flying = 0;
    hear(value.answers);
    if (run && !pick.spot) {
      const map = chosen();
      if (map) {
        const k = map.numbers.indexOf(largest(map.numbers));
        if (k >= 0) pick.spot = [((k % map.w) + 0.5) / map.w, (Math.floor(k / map.w) + 0.5) / map.h]; // where the word was looked for most
      }
    }
    return draw();
  }
  if (value.kind === "run" && expected !== null && value.run !== expected) return; // of a run that was left meanwhile
  root.dataset.kind = value.kind;
  expected = null;
  if (value.kind === "bare") {
    run = null;
    $(".said").textContent = value.status;
    $(".record").hidden = !value.passes;
    if (value.passes) {
      $(".record").textContent = fill(texts.record, { count: value.passes });
      $(".record").onclick = () => trigger("record", { ask: JSON.stringify({ run: value.run }) });
    }
  }
  if (value.kind === "run") open(value);
}

new IntersectionObserver(meet).observe(element);
watch("value", show);
show();
