// A sentence on what a run would do with the mask as it is, and the part of the picture that it would draw, for the mask editor's frame.
//
//   value   JSON of ui/inpaint.py's `forecast`: {says, box}

function look() {
  const value = dom.read(props.value, {});
  element.querySelector("p").textContent = value.says || "";
  document.dispatchEvent(new CustomEvent("inpaint-box", { detail: value.box || null }));
}
watch("value", look);
look();
