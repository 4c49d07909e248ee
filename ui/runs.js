// The strip of runs: its buttons say what to do with which run.
element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-act]");
  if (button) trigger("pick", { act: button.dataset.act, job: button.dataset.job });
});
