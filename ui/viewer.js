// The viewer: a run's steps as pictures, numbers and an equation, all for one selected step. It is given a finished run once and then
// needs no server; while a run goes on it is given the newest step, and shows that.
//
//   value   JSON: {kind: "empty" | "live" | "run", ...}, made by ui/prompt.py
//   at      the selected step, 0 .. steps.length - 1; one more is the finished picture

const $ = (selector) => element.querySelector(selector);
const { fill, make } = dom;
const root = $(".viewer");
const slider = $(".scrub input[type=range]");
const strip = $(".strip");
let run = null; // the value shown
let texts = {};
let at = 0;
let word = null;
let playing = null;

function picture(source, alt) {
  const image = make("img", "pixels");
  image.src = source;
  image.alt = alt;
  image.draggable = false;
  return image;
}

const digits = (x) => (x >= 100 ? x.toFixed(0) : x >= 10 ? x.toFixed(1) : x >= 0.01 || x === 0 ? x.toFixed(2) : x.toPrecision(1));
const number = (x) => String(Math.round(x * 100) / 100);

// --- the two pictures -----------------------------------------------------------------------------------------------------------

function frame(selector, caption, tip, symbol, source, alt) {
  const figure = $(selector);
  const term = figure.querySelector(".term");
  term.textContent = caption;
  term.dataset.tip = tip || "";
  term.tabIndex = tip ? 0 : -1;
  figure.querySelector("var").innerHTML = symbol;
  const image = figure.querySelector("img");
  image.hidden = !source;
  if (source) image.src = source;
  image.alt = alt;
}

const X = "x<sub>t</sub>";
const X0 = "x̂<sub>0</sub>";

function stage() {
  const finished = at === run.steps.length;
  const step = finished ? run.end : run.steps[at];
  const place = { i: at + 1, count: run.count };
  root.classList.toggle("finished", finished);
  if (finished) {
    frame(".noisy", texts.end_x, texts.x_tip, "x<sub>0</sub>", step.x, texts.end_x);
    frame(".guess", texts.picture, texts.picture_tip, "", step.picture, run.prompt || texts.picture);
  } else {
    frame(".noisy", texts.x, texts.x_tip, X, step.x, fill(texts.alt, { what: texts.x, ...place }));
    frame(".guess", texts.x0, texts.x0_tip, X0, step.x0, fill(texts.alt, { what: texts.x0, ...place }));
  }
  $(".arrow .what").textContent = finished ? texts.decode : texts.remove;
  [...root.querySelectorAll(".stage .remark")].forEach((remark, k) => {
    const wrong = !finished && step.wrong?.[k];
    const clipped = Math.round(100 * ((!finished && step.clipped?.[k]) || 0));
    remark.textContent = wrong ? fill(texts.wrong, { count: wrong }) : clipped ? fill(texts.clipped, { share: clipped }) : "";
    remark.title = clipped ? texts.clipped_tip : "";
  });
}

// Held down, a picture shows the step before: the eye finds what changed.
for (const frame of root.querySelectorAll(".stage .frame")) {
  const hold = (on) => {
    if (run?.kind !== "run" || (on && !at)) return;
    const now = at;
    at -= on ? 1 : 0;
    stage();
    root.classList.toggle("held", on);
    at = now;
  };
  frame.addEventListener("pointerdown", (event) => event.button === 0 && hold(true));
  for (const end of ["pointerup", "pointerleave", "pointercancel"]) frame.addEventListener(end, () => root.classList.contains("held") && hold(false));
}

// --- time: strip, slider, numbers ------------------------------------------------------------------------------------------------

function cell(k) {
  const finished = k === run.steps.length && run.kind === "run";
  const button = make("div", "cell" + (finished ? " last" : ""));
  const step = finished ? run.end : run.steps[k];
  for (const name of finished ? ["x", "picture"] : ["x", "x0"]) {
    button.append(step?.[name] ? picture(step[name], "") : make("span", "blank"));
  }
  button.dataset.at = k;
  return button;
}

function buildStrip() {
  const ends = run.kind === "run" && run.end ? 1 : 0;
  const cells = run.kind === "run" ? run.steps.length + ends : run.count;
  strip.replaceChildren(...Array.from({ length: cells }, (_, k) => cell(k)));
  strip.style.setProperty("--cells", cells);
  slider.max = Math.max(cells - 1, 0);
}

function facts() {
  const finished = at === run.steps.length;
  const step = run.steps[Math.min(at, run.steps.length - 1)];
  $(".where").textContent = finished ? texts.end : fill(texts.step, { i: at + 1, count: run.count });
  slider.value = at;
  slider.setAttribute("aria-valuetext", $(".where").textContent);
  strip.querySelector(".here")?.classList.remove("here");
  const here = strip.children[at];
  if (here) {
    here.classList.add("here");
    const left = here.offsetLeft - strip.offsetLeft;
    if (left < strip.scrollLeft || left + here.offsetWidth > strip.scrollLeft + strip.clientWidth) {
      strip.scrollLeft = left - strip.clientWidth / 2;
    }
  }
  const known = !finished && step && step.sigma !== undefined;
  $(".numbers").replaceChildren();
  $(".share").hidden = !known;
  if (!known) return;
  const terms = [["t", String(step.t), texts.t], ["σ", digits(step.sigma), texts.sigma], ["ᾱ", step.alpha_bar.toFixed(3), texts.alpha]];
  for (const [name, value, tip] of terms) {
    const term = make("span", "term number");
    term.tabIndex = 0;
    term.dataset.tip = tip;
    term.append(make("var", "", name), ` = ${value}`);
    $(".numbers").append(term);
  }
  const share = Math.round(step.alpha_bar * 100);
  $(".share i").style.width = `${step.alpha_bar * 100}%`;
  $(".share .signal").textContent = `${texts.share_signal} ${share} %`;
  $(".share .noise").textContent = `${texts.share_noise} ${100 - share} %`;
}

// --- the equation, alive ---------------------------------------------------------------------------------------------------------

function term(kind, formula, source, strength, label) {
  const box = make("figure", `piece ${kind}`);
  const name = make("figcaption");
  name.innerHTML = formula;
  box.append(picture(source, label), name, make("b", "", strength === undefined ? "" : strength.toFixed(2)), make("small", "", label));
  return box;
}

function equation() {
  const box = $(".equation");
  const note = $(".made-of .note");
  box.replaceChildren();
  const finished = at === run.steps.length;
  $(".made-of h3").textContent = finished ? texts.equation_end_title : texts.equation;
  if (finished) {
    const [c, h, w] = run.latent;
    note.textContent = fill(texts.equation_end, { latent: `${c} × ${h} × ${w}`, pixel: `3 × ${run.height} × ${run.width}` });
    const arrow = make("span", "operator", "→");
    box.append(term("x0", "x<sub>0</sub>", run.end.x, undefined, texts.end_x), arrow, term("done", "", run.end.picture, undefined, texts.picture));
    return;
  }
  const { noise, strength, w } = run.steps[at];
  const guided = () => term("guided", "ε", noise.eps, strength.eps, texts.eps);
  const uncond = () => term("uncond", "ε<sub>uncond</sub>", noise.uncond, strength.uncond, texts.uncond);
  const cond = () => term("cond", "ε<sub>cond</sub>", noise.cond, strength.cond, texts.cond);
  const is = (sign) => make("span", "operator", sign);
  if (noise.pull) {
    note.textContent = texts.equation_guided;
    const formula = `<b class="w">${number(w)}</b> (<i class="cond">ε<sub>cond</sub></i> − <i class="uncond">ε<sub>uncond</sub></i>)`;
    box.append(guided(), is("="), uncond(), is("+"), term("pull", formula, noise.pull, strength.pull, texts.pull));
  } else if (noise.cond) {
    note.textContent = texts.equation_cond;
    box.append(guided(), is("="), cond());
  } else {
    note.textContent = texts.equation_uncond;
    box.append(guided(), is("="), uncond());
  }
}

// --- words -----------------------------------------------------------------------------------------------------------------------

function buildWords() {
  const section = $(".looked-at");
  section.hidden = !run.words?.length;
  const chips = (run.words || []).map(({ word: text }, k) => {
    const chip = make("button", "chip", text);
    chip.type = "button";
    chip.style.setProperty("--tint", `var(--tint-${k % 4})`);
    chip.addEventListener("click", () => {
      word = word === k ? null : k;
      veil();
    });
    return chip;
  });
  $(".words").replaceChildren(...chips);
}

function veil() {
  const image = $(".veil");
  image.hidden = word === null;
  if (word !== null) image.src = run.words[word].map;
  [...$(".words").children].forEach((chip, k) => chip.setAttribute("aria-pressed", k === word));
}

// --- selecting -------------------------------------------------------------------------------------------------------------------

function go(k) {
  if (run?.kind !== "run") return;
  at = Math.max(0, Math.min(k, Number(slider.max)));
  stage();
  facts();
  equation();
}

function pause() {
  clearInterval(playing);
  playing = null;
  $(".play").textContent = texts.play;
  $(".play").setAttribute("aria-pressed", "false");
}

$(".play").addEventListener("click", () => {
  if (playing) return pause();
  if (run?.kind !== "run") return;
  if (at >= Number(slider.max)) go(0);
  $(".play").textContent = texts.pause;
  $(".play").setAttribute("aria-pressed", "true");
  const pace = Math.max(60, Math.min(200, 4000 / (Number(slider.max) + 1)));
  playing = setInterval(() => (at >= Number(slider.max) ? pause() : go(at + 1)), pace);
});
slider.addEventListener("input", () => {
  pause();
  go(Number(slider.value));
});
const under = (event) => event.target.closest?.(".cell");
strip.addEventListener("pointerdown", (event) => {
  const cell = under(event);
  if (!cell) return;
  pause();
  go(Number(cell.dataset.at));
  slider.focus({ preventScroll: true });
});
strip.addEventListener("pointermove", (event) => {
  if (event.buttons !== 1 || event.pointerType === "touch") return;
  const cell = under(event);
  if (cell) go(Number(cell.dataset.at));
});
$(".smooth").addEventListener("change", (event) => root.classList.toggle("smoothed", event.target.checked));
$(".restore").addEventListener("click", () => run?.job && trigger("pick", { act: "restore", job: run.job }));

// --- what arrives ----------------------------------------------------------------------------------------------------------------

function words() {
  $(".smoothing span").textContent = texts.smooth;
  $(".smoothing").title = texts.smooth_tip;
  for (const frame of root.querySelectorAll(".stage .frame")) frame.title = texts.hold;
  $(".save").textContent = texts.save;
  $(".restore").textContent = texts.restore;
  $(".empty").textContent = texts.empty;
  $(".looked-at h3").textContent = texts.words;
  $(".looked-at .note").textContent = texts.words_tip;
  slider.setAttribute("aria-label", texts.slider);
}

function live(value) {
  const again = run?.kind === "live" && run.job === value.job && run.count === value.count;
  const seen = again ? run.steps : [];
  run = { ...value, steps: seen };
  if (value.x0) seen[value.i - 1] = { x: value.x, x0: value.x0 };
  if (!again) buildStrip();
  // On a phone the pictures lie below the button that was pressed.
  if (!again && root.getBoundingClientRect().top > innerHeight * 0.6) root.scrollIntoView({ block: "start" });
  if (!value.x0) return;
  at = value.i - 1;
  strip.children[at]?.replaceWith(cell(at));
  stage();
  facts();
}

function show() {
  const value = dom.read(props.value);
  if (value.texts) texts = value.texts;
  root.dataset.kind = value.kind;
  if (value.kind === "none") return;
  words();
  pause();
  $(".said").textContent = value.status || "";
  root.dataset.state = value.state || "";
  $(".meter i").style.width = value.kind === "live" && value.count ? `${(100 * (value.i || 0)) / value.count}%` : "0";
  $(".empty").hidden = value.kind !== "empty";
  if (value.kind === "empty") return void (run = null);
  if (value.kind === "live") {
    word = null;
    $(".veil").hidden = true;
    return live(value);
  }
  if (value.kind === "run") {
    word = null;
    run = value;
    root.style.setProperty("--aspect", `${run.latent[2]} / ${run.latent[1]}`);
    $(".made-with").textContent = run.made_with.join(" ");
    buildStrip();
    buildWords();
    veil();
    $(".save").hidden = !run.png;
    if (run.png) {
      $(".save").href = run.png;
      $(".save").download = run.file;
    }
    go(Number(slider.max));
  }
}

watch("value", show);
show();
