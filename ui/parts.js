// What the sections of the tab "Steps & latents" share; it stands in front of each one's own script.
//
// A section is told which run is looked at, and asks for what it shows only when it is seen: a hidden one costs nothing. Its value is
// JSON: {kind: "stale", run} until then, {kind: "said", status} where there is nothing to show, and its own else.

const $ = (selector) => element.querySelector(selector);
const { fill, make } = dom;
let texts = {};

const digits = (x, places = 2) => (Number.isFinite(x) ? x.toFixed(places).replace(/^-(0\.?0*)$/, "$1").replace("-", "−") : "NaN");

/** Latents (4, h, w), sent in 16 bits, as four maps from -limit to limit. */
function channels({ data, scale, h, w }, limit) {
  const whole = new Int16Array(Uint8Array.from(atob(data), (c) => c.charCodeAt(0)).buffer);
  const numbers = Float32Array.from(whole, (q) => (q === -32768 ? NaN : q * scale));
  return Array.from({ length: numbers.length / (h * w) }, (_, c) => ({
    numbers: numbers.subarray(c * h * w, (c + 1) * h * w),
    h,
    w,
    low: -limit,
    high: limit,
  }));
}

/** Shows what arrives, and asks for it when it is missing and this section is seen. */
function arrive(show) {
  let value = {};
  let asked = null;
  const ask = () => {
    if (value.kind !== "stale" || asked === value.run || !element.checkVisibility()) return;
    asked = value.run;
    setTimeout(() => trigger("want", { run: asked }));
  };
  const look = () => {
    try {
      value = JSON.parse(props.value || '{"kind":"said"}');
    } catch {
      return;
    }
    if (value.texts) texts = value.texts;
    if (value.kind !== "stale") {
      asked = null;
      $(".section").dataset.kind = value.kind;
      const status = $(".status");
      status.textContent = value.status || "";
      status.hidden = !value.status;
      if (value.kind !== "said") show(value);
    }
    ask();
  };
  new IntersectionObserver(ask, { rootMargin: "99999px" }).observe(element);
  watch("value", look);
  look();
}
