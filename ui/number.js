// A number with a slider beside it. What is typed goes to the server as it is, also where the slider ends: core says what is wrong with
// it, and nothing is corrected behind the person's back (Gradio's own slider turns 99 into 30).
const [box, bar] = element.querySelectorAll("input");
const [low, high, step] = [bar.min, bar.max, bar.step].map(Number);

function show(text) {
  const number = text.trim() === "" ? NaN : Number(text.replace(",", "."));
  const wrong = !(number >= low && number <= high) || (Number.isInteger(step) && !Number.isInteger(number));
  box.setAttribute("aria-invalid", wrong);
  box.title = wrong ? `${low} – ${high}` : "";
  if (Number.isFinite(number)) bar.value = number;
  bar.style.setProperty("--share", `${(100 * (bar.value - low)) / (high - low)}%`);
  document.dispatchEvent(new CustomEvent("number", { detail: { of: box.id, text } })); // for views that follow it
}

function say(text) {
  show(text);
  props.value = text;
}

box.addEventListener("input", () => say(box.value));
box.addEventListener("keydown", (event) => {
  const turn = { ArrowUp: 1, ArrowDown: -1 }[event.key];
  if (!turn) return;
  event.preventDefault();
  bar.value = Number(bar.value) + turn * step;
  box.value = bar.value;
  say(box.value);
});
bar.addEventListener("input", () => {
  box.value = bar.value;
  say(box.value);
});
watch("value", () => {
  box.value = props.value ?? "";
  show(box.value);
});
box.value = props.value ?? box.value; // it may have changed while this part of the page was closed
show(box.value);
