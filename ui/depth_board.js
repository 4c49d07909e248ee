// The two runs side by side. Its buttons look into a run; when runs begin below what is seen of the page, it comes into view.
element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-act]");
  if (button) trigger("pick", { act: button.dataset.act, job: button.dataset.job });
});
let going = false;
watch("value", () => setTimeout(() => {
  const now = Boolean(element.querySelector(".meter"));
  if (now && !going && element.getBoundingClientRect().top > innerHeight * 0.6) element.scrollIntoView({ block: "start" });
  going = now;
}));
