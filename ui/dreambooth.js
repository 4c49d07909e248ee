// The flight recorder: what a training has shown so far, and what it does now. It asks for news by itself, but only while a training goes on
// and this tab is seen; it says how much it knows, and is given the rest.
//
//   value   JSON: {kind: "empty", status, trainings} while there is no training; {kind: "follow", id} for one to look at;
//           {kind: "flight", id, from, ...} the news of one, made by ui/dreambooth.py, which says what is in it
//   want    asks for news, pick does something with the training

const $ = (selector) => element.querySelector(selector);
const { fill, make } = dom;
const root = $(".flight");
const PAUSE = 1500; // milliseconds between two looks at a training that goes on
const LATE = 12000; // an answer that has not come until then is asked for again
const SMOOTH = 0.95;
let texts = {};
let flight = null; // all that is known of the training that is shown
let at = 0; // the chosen column of the filmstrip
let chosen = 0; // the chosen checkpoint's step
let touched = false; // whether a person chose them; until then they follow the newest, and at the end the best
let asked = 0; // when news was asked for last
let timer = null;
let drawn = ""; // which films stand in the strip
const charts = new Map(); // box -> how to draw it, for when the page changes its width

const digits = (x, places = 2) => (Number.isFinite(x) ? x.toFixed(places).replace("-", "−") : "–");
/** A learning rate as people write it: 0.002, 2e−6. */
const rated = (x) => (x >= 1e-3 || !x ? `${Number(x.toPrecision(3))}` : x.toExponential().replace(/^([\d.]+)e-/, (_, m) => `${Number(Number(m).toFixed(2))}e−`));
const GOING = ["waiting", "preparing", "training"];
const going = () => flight && GOING.includes(flight.state);

// --- asking ---------------------------------------------------------------------------------------------------------------------------

function ask(id = flight?.id ?? "") {
  const same = flight?.id === id ? flight : null;
  asked = Date.now();
  const known = { id, steps: same?.steps.length ?? 0, films: same?.films.length ?? 0, photos: !!same?.photos.length, asked };
  trigger("want", { at: JSON.stringify(known) });
  again(LATE); // should the answer get lost
}

const seen = () => !document.hidden && element.checkVisibility();

/** Asks once more after a while, as long as there is something to hear and somebody to see it. What is hidden is woken, see below. */
function again(after) {
  clearTimeout(timer);
  timer = setTimeout(() => seen() && (!flight || going()) && ask(), after);
}

function wake() {
  if (seen() && (!flight || going()) && Date.now() - asked > PAUSE) ask();
}

function arrive() {
  const value = dom.read(props.value);
  if (value.texts) texts = value.texts;
  if (value.kind === "follow") {
    touched = false;
    const { top, bottom } = $(".log").getBoundingClientRect(); // on a narrow page it lies below, on a wide one Start may lie below it
    if (top > innerHeight * 0.8 || bottom < 64) root.scrollIntoView({ block: "start" });
    return ask(value.id);
  }
  if (value.kind === "none") return;
  clearTimeout(timer);
  if (value.kind === "empty") {
    flight = null;
    empty(value);
  } else {
    take(value);
    show();
    if (going()) again(PAUSE);
  }
}

/** News joins what is known, if it fits there. */
function take(value) {
  const before = flight?.id === value.id && going();
  if (flight?.id !== value.id) {
    flight = { steps: [], films: [], photos: [] };
    [at, chosen, touched, drawn] = [0, 0, false, ""];
  }
  const { steps, films, photos, from, ...rest } = value;
  const join = (known, news, start) => (start <= known.length ? [...known.slice(0, start), ...news] : known);
  flight = { ...flight, ...rest, steps: join(flight.steps, steps, from.steps), films: join(flight.films, films, from.films) };
  if (photos.length) flight.photos = photos;
  if (before && !going()) trigger("ended", {}); // what was trained joins the model menus
  if (touched) return;
  const best = flight.films.findIndex((film) => film.step === flight.best);
  at = going() || best < 0 ? Math.max(flight.films.length - 1, 0) : best;
  chosen = nearest(flight.films[at]?.step ?? 0);
}

/** The checkpoint of this step, or else the last one before it, or else the first. */
const nearest = (step) => flight.checkpoints.findLast((one) => one <= step) ?? flight.checkpoints[0] ?? 0;

function choose(k) {
  at = Math.min(flight.films.length - 1, Math.max(0, k));
  chosen = nearest(flight.films[at].step);
  touched = true;
  look();
}

// --- curves ---------------------------------------------------------------------------------------------------------------------------

const SPACE = { left: 56, right: 16, top: 16, bottom: 52, height: 220 };

/** Round distances between ticks: at most `most` of them up to the end. */
function apart(end, most) {
  const power = 10 ** Math.floor(Math.log10(end / most));
  return [1, 2, 5, 10].map((n) => n * power).find((by) => end / by <= most);
}

/** A chart of curves over the steps. lines: name, points [[step, value]], and maybe a kind, or dotted; levels: name, value. */
function plot(box, { title, lines, levels = [], end, places = 2, most = 0, height = SPACE.height, ticks = 4, written }) {
  charts.set(box, () => plot(box, { title, lines, levels, end, places, most, height, ticks, written }));
  if (!box.firstChild) {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("role", "img");
    box.append(make("h4"), svg, make("ul", "lines"));
  }
  const [head, svg, legend] = box.children;
  head.textContent = title;
  const width = Math.max(box.clientWidth, 240);
  const inside = { w: width - SPACE.left - SPACE.right, h: height - SPACE.top - SPACE.bottom };
  const all = [...lines.flatMap((line) => line.points.map((p) => p[1])), ...levels.map((level) => level.value)];
  const highest = Math.max(most, ...all.filter(Number.isFinite)) || 1;
  const by = apart(highest, ticks);
  const top = Math.ceil(highest / by - 1e-9) * by;
  const x = (step) => SPACE.left + (step / Math.max(end, 1)) * inside.w;
  const y = (v) => SPACE.top + (1 - Math.max(v, 0) / top) * inside.h;
  const short = written ?? ((v) => v.toFixed(Math.max(0, -Math.floor(Math.log10(by) + 1e-9))));
  const value = written ?? ((v) => digits(v, places));
  const made = [];
  for (let v = 0; v <= top + by / 2; v += by) {
    made.push(`<path class="across" d="M${SPACE.left} ${y(v)}h${inside.w}"/>`);
    made.push(`<text x="${SPACE.left - 8}" y="${y(v)}" dy="0.35em" text-anchor="end">${v ? short(v) : 0}</text>`);
  }
  const every = Math.max(1, apart(end, inside.w / 56));
  for (let n = 0; n <= end; n += every) made.push(`<text x="${x(n)}" y="${height - 30}" text-anchor="middle">${n}</text>`);
  made.push(`<text class="axis" x="${SPACE.left + inside.w / 2}" y="${height - 8}" text-anchor="middle"></text>`);
  for (const level of levels) made.push(`<path class="level ${level.kind ?? ""}" d="M${SPACE.left} ${y(level.value)}h${inside.w}"/>`);
  for (const { points, kind = "", dotted } of lines) {
    const known = points.filter((p) => Number.isFinite(p[1]));
    made.push(`<polyline class="${kind}" points="${known.map((p) => `${x(p[0]).toFixed(1)} ${y(p[1]).toFixed(1)}`).join(",")}"/>`);
    if (dotted) made.push(...known.map((p) => `<circle cx="${x(p[0])}" cy="${y(p[1])}" r="4"/>`));
  }
  made.push(`<path class="here"/>`);
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.style.height = `${height}px`;
  svg.innerHTML = made.join("");
  svg.querySelector(".axis").textContent = texts.axis;
  const named = [...lines.map((line) => [line.kind ?? "", line.name]), ...levels.map((level) => [`level ${level.kind ?? ""}`, level.name])];
  legend.replaceChildren(
    ...named.map(([kind, name]) => {
      const item = make("li", kind);
      item.append(make("i"), name, make("b"));
      return item;
    }),
  );
  const mark = (step) => {
    svg.querySelector(".here").setAttribute("d", step === null ? "" : `M${x(step)} ${SPACE.top}v${inside.h}`);
    lines.forEach((line, k) => {
      const point = line.points.findLast((p) => p[0] <= (step ?? Infinity)) ?? line.points[0];
      legend.children[k].querySelector("b").textContent = point ? value(point[1]) : "–";
    });
    levels.forEach((level, k) => (legend.children[lines.length + k].querySelector("b").textContent = value(level.value)));
    svg.setAttribute("aria-label", `${title}: ${[...legend.children].map((item) => item.textContent).join(", ")}`);
  };
  const rest = () => mark(lines[0]?.dotted ? (flight.films[at]?.step ?? null) : null);
  svg.onpointermove = (event) => {
    const from = svg.getBoundingClientRect();
    mark(Math.min(end, Math.max(0, Math.round(((event.clientX - from.left - SPACE.left) / inside.w) * end))));
  };
  svg.onpointerleave = rest;
  rest();
}

/** An exponential mean that does not begin at zero. */
function smoothed(points) {
  let mean = 0, weight = 0;
  return points.map(([step, v]) => {
    mean = SMOOTH * mean + (1 - SMOOTH) * v;
    weight = SMOOTH * weight + 1 - SMOOTH;
    return [step, mean / weight];
  });
}

// --- pictures -------------------------------------------------------------------------------------------------------------------------

function figure(source, title, line = "", kind = "") {
  const made = make("figure", kind);
  const image = make("img", "pixels");
  Object.assign(image, { src: source, alt: title, draggable: false });
  const words = make("figcaption");
  words.append(make("b", "", title), make("span", "", line));
  made.append(image, words);
  return made;
}

const of = (film, kind) => film.pictures.filter((picture) => picture.kind === kind);
const name = (film) => (film.step ? fill(texts.step, { step: film.step }) : texts.base);

/** The filmstrip: a row for each prompt and seed, a column for each step that was looked at, and one for the next. */
function strip() {
  const now = `${flight.id} ${flight.films.length} ${going() && flight.next}`;
  if (now === drawn) return;
  drawn = now;
  const box = $(".strip");
  const end = box.scrollLeft + box.clientWidth >= box.scrollWidth - 8;
  const next = going() && flight.next > (flight.films.at(-1)?.step ?? -1) ? flight.next : null;
  const columns = flight.films.length + (next === null ? 0 : 1);
  box.style.setProperty("--columns", columns);
  const made = flight.films.map((film, k) => {
    const head = make("button", "head");
    head.type = "button";
    head.dataset.k = k;
    head.append(make("b", "", film.step ? film.step : texts.base), make("span", "", film.step === flight.best ? texts.best : ""));
    return head;
  });
  if (next !== null) made.push(make("span", "head next", next));
  flight.films[0].pictures.forEach((first, row) => {
    const label = make("p", "row");
    label.append(make("span", "", first.kind === "class" ? fill(texts.row_class, { prompt: first.prompt }) : first.prompt));
    label.append(make("small", "", fill(texts.seed, { seed: first.seed })));
    made.push(label);
    flight.films.forEach((film, k) => {
      const picture = film.pictures[row];
      const cell = make("button", "cell");
      Object.assign(cell, { type: "button", tabIndex: -1 });
      cell.dataset.k = k;
      const image = make("img", "pixels");
      Object.assign(image, { src: picture.src, alt: `${picture.prompt}, ${name(film)}`, draggable: false });
      cell.append(image);
      made.push(cell);
    });
    if (next !== null) made.push(make("span", "cell next"));
  });
  box.replaceChildren(...made);
  if (end && !touched) box.scrollLeft = box.scrollWidth;
}

/** Scrolls the strip so that the chosen column is seen whole, beside the first, which stays. */
function reveal() {
  const [box, first, head] = [$(".strip"), $('.strip .head[data-k="0"]'), $(".strip .head.now")];
  if (!head || head === first || box.scrollWidth <= box.clientWidth) return;
  const [inside, one] = [box.getBoundingClientRect(), head.getBoundingClientRect()];
  const left = inside.left + first.offsetWidth;
  if (one.right > inside.right) box.scrollLeft += one.right - inside.right + 4;
  else if (one.left < left) box.scrollLeft -= left - one.left + 4;
}

$(".strip").addEventListener("click", (event) => {
  const cell = event.target.closest("[data-k]");
  if (cell) choose(Number(cell.dataset.k));
});
$(".strip").addEventListener("keydown", (event) => {
  const turn = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!turn || !flight?.films.length) return;
  event.preventDefault();
  choose(at + turn);
  $(`.strip .head[data-k="${at}"]`).focus();
});

// --- the three questions ----------------------------------------------------------------------------------------------------------------

const mean = (numbers) => numbers.reduce((a, b) => a + b, 0) / numbers.length;
const measured = (key) => flight.films.filter((film) => Number.isFinite(film[key])).map((film) => [film.step, film[key]]);

function learning(film, base) {
  const points = measured("likeness");
  const verdict = $(".learning .verdict");
  $(".learning .plot").hidden = !points.length;
  if (!points.length) return void (verdict.textContent = texts.likeness_none);
  const [now, before] = [film.likeness, base.likeness];
  // How much of the way from the base model's pictures to the photos' likeness of each other.
  const share = (now - before) / Math.max(flight.among - before, 1e-6);
  const key = !film.step ? "likeness_base" : share >= 0.7 ? "likeness_much" : share >= 0.25 ? "likeness_some" : "likeness_little";
  const said = { likeness_base: texts.likeness_base, likeness_much: texts.likeness_much, likeness_some: texts.likeness_some };
  const numbers = { now: digits(now), base: digits(before), among: digits(flight.among) };
  verdict.textContent = fill(said[key] ?? texts.likeness_little, numbers);
  const levels = [{ name: texts.level_among, value: flight.among }, { name: texts.level_base, value: before, kind: "base" }];
  const lines = [{ name: texts.line_likeness, points, dotted: true }];
  plot($(".learning .plot"), { title: fill(texts.likeness_title, { judge: flight.judge }), lines, levels, end: flight.count, most: 1 });
}

const nearness = (film) => Math.min(...of(film, "subject").map((picture) => picture.near[1]));

function memorising(film, base) {
  const near = of(film, "subject").sort((a, b) => a.near[1] - b.near[1]); // the nearest first
  const verdict = $(".memorising .verdict");
  $(".memorising .pairs").replaceChildren(
    ...near.map((picture) => {
      const pair = make("div", "pair-of");
      const [which, far] = picture.near;
      const photo = figure(flight.photos[which]?.src ?? "", fill(texts.photo, { n: which + 1 }), fill(texts.distance, { far: digits(far, 0) }));
      pair.append(figure(picture.src, name(film), picture.prompt), photo);
      return pair;
    }),
  );
  const [least, before, between] = [nearness(film), nearness(base), Math.min(...flight.spread)];
  // Nearer than the photos are to each other is much, but only where the base model's pictures were not so near already.
  const close = least < between && least < 0.75 * before;
  const said = !film.step ? texts.near_base : least < between / 2 ? texts.near_copy : close ? texts.near_close : texts.near_free;
  verdict.textContent = fill(said, { least: digits(least, 0), base: digits(before, 0), between: digits(between, 0) });
  ruler($(".memorising .far"), near.map((picture) => picture.near[1]), flight.spread);
}

/** Distances on one line that begins at a copy: of the previews above it, among the photos below it. */
function ruler(box, previews, photos) {
  charts.set(box, () => ruler(box, previews, photos));
  const width = Math.max(box.clientWidth, 240);
  const end = Math.max(...previews, ...photos) * 1.05;
  const by = apart(end, width / 120);
  const x = (v) => 12 + (v / end) * (width - 40);
  const ticks = [];
  for (let v = 0; v <= end; v += by) ticks.push(`<path class="across" d="M${x(v)} 34v8"/><text x="${x(v)}" y="86" text-anchor="${v ? "middle" : "start"}">${v ? digits(v, 0) : ""}</text>`);
  const marks = (values, y, kind) => values.map((v) => `<circle class="${kind}" cx="${x(v)}" cy="${y}" r="6"/>`).join("");
  box.innerHTML = `<svg role="img" viewBox="0 0 ${width} 92" style="height: 92px"><path class="axis" d="M${x(0)} 38H${x(end)}"/>${ticks.join("")}
    ${marks(previews, 18, "preview")}${marks(photos, 56, "photo")}<text class="copy" x="${x(0) - 4}" y="86"></text></svg><ul class="lines"></ul>`;
  box.querySelector(".copy").textContent = texts.copy;
  for (const [kind, words] of [["preview", texts.ruler_previews], ["photo", texts.ruler_photos]]) {
    const item = make("li", kind);
    item.append(make("i"), words);
    box.querySelector(".lines").append(item);
  }
  box.firstChild.setAttribute("aria-label", `${texts.ruler_previews}: ${previews.map((v) => digits(v, 0)).join(", ")}; ${texts.ruler_photos}: ${photos.map((v) => digits(v, 0)).join(", ")}`);
}

function forgetting(film, base) {
  const [before, now] = [of(base, "class"), of(film, "class")];
  const points = measured("drift");
  $(".forgetting .plot").hidden = points.length < 2;
  $(".forgetting .pairs").replaceChildren(
    ...now.map((picture, k) => {
      const pair = make("div", "pair-of");
      pair.append(figure(before[k]?.src ?? "", texts.before, fill(texts.seed, { seed: picture.seed })), figure(picture.src, film.step ? name(film) : texts.before, picture.prompt));
      return pair;
    }),
  );
  const verdict = $(".forgetting .verdict");
  const known = Number.isFinite(film.drift);
  const said = !film.step ? texts.drift_base : !known ? texts.drift_none : film.drift < 0.1 ? texts.drift_little : film.drift < 0.3 ? texts.drift_some : texts.drift_much;
  verdict.textContent = fill(said, { drift: known ? digits(film.drift) : "", prompt: now[0]?.prompt ?? "" });
  if (points.length >= 2) plot($(".forgetting .plot"), { title: texts.drift_title, lines: [{ name: texts.line_drift, points, dotted: true }], end: flight.count, most: 0.2 });
}

/** A picture under a veil that is clear where the word looked. */
function veiled(picture, title, top) {
  const made = figure(picture.src, title, fill(texts.looked, { share: digits(100 * picture.most, 1) }));
  const veil = make("canvas", "veil pixels");
  const numbers = maps.values(picture.map);
  [veil.width, veil.height] = [picture.map.w, picture.map.h];
  const image = new ImageData(veil.width, veil.height);
  numbers.forEach((v, i) => (image.data[4 * i + 3] = Math.round(225 * (1 - Math.min(v / top, 1)))));
  veil.getContext("2d").putImageData(image, 0, 0);
  const frame = make("div", "frame");
  made.querySelector("img").replaceWith(frame);
  const under = make("img", "pixels");
  Object.assign(under, { src: picture.src, alt: title });
  frame.append(under, veil);
  return made;
}

function looking(film, base) {
  const pairs = of(film, "subject").map((now, k) => [of(base, "subject")[k], now]).filter(([before, now]) => before?.map && now.map);
  const verdict = $(".looking .verdict");
  $(".looking .pairs").replaceChildren(
    ...pairs.map(([before, now]) => {
      const pair = make("div", "pair-of");
      for (const picture of [before, now]) picture.most = Math.max(...maps.values(picture.map));
      const top = Math.max(before.most, now.most); // one scale for both
      pair.append(veiled(before, texts.base, top), veiled(now, name(film), top));
      return pair;
    }),
  );
  verdict.textContent = pairs.length ? fill(texts.looking_says, { token: flight.token }) : texts.looking_none;
}

function losses() {
  const { steps, count } = flight;
  $(".loss .body").hidden = !steps.length;
  $(".loss .will").hidden = !!steps.length;
  if (!steps.length) return;
  const line = (key) => steps.filter((s) => Number.isFinite(s[key])).map((s) => [s[0], s[key]]);
  const lines = [{ name: texts.line_raw, points: line(2), kind: "faint" }, { name: texts.line_smooth, points: smoothed(line(2)) }];
  if (steps.some((s) => Number.isFinite(s[3]))) lines.push({ name: texts.line_prior, points: smoothed(line(3)), kind: "second" });
  plot($(".losses"), { title: texts.loss_title, lines, end: count, places: 3 });
  plot($(".rates"), { title: texts.rate_title, lines: [{ name: texts.line_rate, points: line(4) }], end: count, height: 150, ticks: 2, written: rated });
  const smooth = lines[1].points;
  const early = smooth[Math.min(smooth.length - 1, 20)][1];
  $(".loss .verdict").textContent = fill(texts.loss_says, { now: digits(smooth.at(-1)[1], 3), early: digits(early, 3) });
}

// --- the whole ------------------------------------------------------------------------------------------------------------------------

function button(act, words, primary = false) {
  const made = make("button", primary ? "primary" : "", words);
  made.type = "button";
  made.dataset.act = act;
  return made;
}

/** The headings stand there always; what comes under them is said while there is nothing. */
function headings() {
  const all = {
    film: [texts.film, texts.film_about, texts.film_will],
    learning: [texts.learning, texts.learning_about, texts.learning_will],
    memorising: [texts.memorising, texts.memorising_about, texts.memorising_will],
    forgetting: [texts.forgetting, texts.forgetting_about, texts.forgetting_will],
    looking: [texts.looking, texts.looking_about, texts.looking_will],
    loss: [texts.loss, texts.loss_about, texts.loss_will],
  };
  for (const [name, [head, about, will]] of Object.entries(all)) {
    const section = $(`section.${name}`);
    section.querySelector("h3").textContent = head;
    section.querySelector(".note").textContent = about;
    section.querySelector(".will").textContent = will;
  }
}

function menu(trainings, id) {
  const label = $(".which");
  label.hidden = trainings.length < 2;
  label.querySelector("span").textContent = texts.which;
  const select = label.querySelector("select");
  select.replaceChildren(...trainings.map(([one, words]) => Object.assign(make("option", "", words), { value: one, selected: one === id })));
}

function empty({ status, trainings = [] }) {
  root.dataset.kind = "empty";
  headings();
  menu(trainings, "");
  $(".what").textContent = texts.none;
  $(".said").textContent = status || texts.none_says;
  for (const part of [".photos", ".acts", ".facts", ".live", ".strip"]) $(part).replaceChildren();
  for (const part of [".photos", ".acts"]) delete $(part).dataset.of;
  $(".bar").hidden = true;
  for (const section of root.querySelectorAll("section")) section.dataset.empty = "yes";
}

function show() {
  root.dataset.kind = flight.example ? "example" : "flight";
  root.dataset.state = flight.state;
  headings();
  menu(flight.trainings, flight.id);
  $(".what").textContent = flight.name;
  $(".said").textContent = flight.said;
  $(".facts").textContent = flight.facts;
  const last = flight.steps.at(-1);
  $(".live").textContent = last && !flight.example ? fill(texts.live, { loss: digits(smoothed(flight.steps.map((s) => [s[0], s[2]])).at(-1)[1], 3), rate: rated(last[4]), norm: digits(last[5], 2) }) : "";
  const share = flight.state === "preparing" ? flight.made : flight.count ? flight.step / flight.count : 0;
  $(".bar").hidden = flight.example;
  $(".bar i").style.width = `${100 * share}%`;
  $(".bar").setAttribute("aria-label", flight.said);
  if ($(".photos").dataset.of !== flight.id) {
    $(".photos").replaceChildren(...flight.photos.map(({ src }, k) => Object.assign(make("img", "pixels"), { src, alt: fill(texts.photo, { n: k + 1 }) })));
    $(".photos").dataset.of = flight.id;
  }
  const words = { pause: texts.pause, stop: texts.stop, go_on: texts.go_on, again: texts.again, forget: texts.forget };
  const acts = flight.acts.join();
  if ($(".acts").dataset.of !== acts + flight.id) {
    $(".acts").replaceChildren(...flight.acts.map((act) => button(act, words[act], act === "go_on")));
    $(".acts").dataset.of = acts + flight.id;
  }
  for (const section of root.querySelectorAll("section")) section.dataset.empty = flight.films.length ? "" : "yes";
  $("section.loss").dataset.empty = flight.steps.length ? "" : "yes";
  losses();
  if (flight.films.length) {
    strip();
    look();
  } else {
    $(".strip").replaceChildren();
    drawn = "";
  }
}

/** What hangs on the chosen column. */
function look() {
  const [film, base] = [flight.films[at], flight.films[0]];
  for (const one of root.querySelectorAll(".strip [data-k]")) {
    one.classList.toggle("now", Number(one.dataset.k) === at);
    if (one.classList.contains("head")) one.setAttribute("aria-pressed", Number(one.dataset.k) === at);
  }
  reveal();
  learning(film, base);
  memorising(film, base);
  forgetting(film, base);
  looking(film, base);
  use();
}

function use() {
  const { checkpoints } = flight;
  const box = $(".use");
  box.hidden = !checkpoints.length;
  if (!checkpoints.length) return;
  $(".chosen").textContent = fill(chosen === flight.best ? texts.use_best : flight.best === null ? texts.use_plain : texts.use_says, { step: chosen, best: flight.best });
  const [step, strength] = [$(".use .step"), $(".use .strength")];
  step.querySelector("span").textContent = texts.use_step;
  const bar = step.querySelector("input");
  bar.max = checkpoints.length - 1;
  bar.value = checkpoints.indexOf(chosen);
  step.querySelector("output").textContent = fill(texts.step, { step: chosen });
  strength.querySelector("span").textContent = texts.use_strength;
  strength.querySelector("output").textContent = Number(strength.querySelector("input").value).toFixed(2);
  const take = $(".take");
  if (!take.childElementCount) {
    take.append(button("use", texts.use, true), button("lora", texts.get_lora), button("folder", texts.get_folder), button("card", texts.get_card));
    $(".use .about").textContent = texts.use_about;
    $(".push summary").textContent = texts.push;
    $(".push .note").textContent = texts.push_about;
    const [repository, token, hidden, rights] = [...root.querySelectorAll(".push label span")];
    [repository.textContent, token.textContent, hidden.textContent, rights.textContent] = [texts.push_repository, texts.push_token, texts.push_private, texts.push_rights];
    $(".push button").textContent = texts.push_go;
  }
  take.querySelector("[data-act=lora]").hidden = flight.method !== "lora";
  box.classList.toggle("example", !!flight.example);
}

const options = () => ({ id: flight.id, step: `${chosen}`, strength: $(".strength input").value });

root.addEventListener("click", (event) => {
  const act = event.target.closest("button[data-act]")?.dataset.act;
  if (!act || !flight) return;
  if (act === "forget" && !confirm(texts.forget_sure)) return;
  trigger("pick", { act, ...options() });
});
$(".use .step input").addEventListener("input", (event) => {
  chosen = flight.checkpoints[event.target.value];
  at = Math.max(0, flight.films.findLastIndex((film) => film.step <= chosen));
  touched = true;
  look();
});
$(".strength input").addEventListener("input", use);
$(".push form").addEventListener("submit", (event) => {
  event.preventDefault();
  const form = event.target;
  const { repository, token } = form.elements;
  trigger("pick", {
    act: "push",
    ...options(),
    repository: repository.value.trim(),
    token: token.value.trim(),
    private: form.elements.private.checked ? "yes" : "no",
    rights: form.elements.rights.checked ? "yes" : "no",
  });
  token.value = ""; // it is used once
});
$(".which select").addEventListener("change", (event) => {
  touched = false;
  ask(event.target.value);
});

new ResizeObserver(() => {
  charts.forEach((draw, box) => box.checkVisibility() && draw());
  reveal();
}).observe(root);
new IntersectionObserver(wake, { rootMargin: "99999px" }).observe(element);
document.addEventListener("visibilitychange", wake);
watch("value", arrive);
arrive();
wake();
