// The header's language and projector switches. Both are remembered; the language in a cookie, for the server reads it too.
const root = document.documentElement;
const spoken = (navigator.language || "en").startsWith("ja") ? "ja" : "en";

for (const button of element.querySelectorAll("[data-language]")) {
  button.setAttribute("aria-pressed", button.dataset.language === spoken);
  button.addEventListener("click", () => {
    document.cookie = `language=${button.dataset.language}; path=/; max-age=31536000; samesite=lax`;
    location.reload();
  });
}

const projector = element.querySelector("[data-projector]");
const show = (on) => {
  root.classList.toggle("projector", on);
  projector.setAttribute("aria-pressed", on);
};
show(localStorage.getItem("projector") === "on");
projector.addEventListener("click", () => {
  const on = !root.classList.contains("projector");
  localStorage.setItem("projector", on ? "on" : "off");
  show(on);
});
