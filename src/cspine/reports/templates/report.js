"use strict";
(() => {
  const root = document.documentElement;
  const levels = [...document.querySelectorAll(".level")];
  const $ = (id) => document.getElementById(id);
  let at = -1;
  let keys = true;

  // A page opened from a file may be denied storage; the choice then lasts as long as the page.
  const remembered = (name, value) => {
    try {
      if (value === undefined) return localStorage.getItem(name);
      localStorage.setItem(name, value);
    } catch { /* stays for this page */ }
    return null;
  };

  const dark = () => root.dataset.theme === "dark" ||
    (root.dataset.theme !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
  const showTheme = () => { if ($("theme")) $("theme").setAttribute("aria-pressed", String(dark())); };
  const setTheme = (name) => { root.dataset.theme = name; remembered("cspine-theme", name); showTheme(); };
  const toggleTheme = () => setTheme(dark() ? "light" : "dark");

  const toggleOverlay = () => {
    const off = root.classList.toggle("overlay-off");
    if ($("overlay")) $("overlay").setAttribute("aria-pressed", String(!off));
  };

  const go = (index) => {
    if (!levels.length) return;
    at = Math.max(0, Math.min(levels.length - 1, index));
    levels.forEach((level, number) => level.classList.toggle("here", number === at));
    levels[at].focus({ preventScroll: true });
    levels[at].scrollIntoView({ block: "start" });
  };

  const dialog = $("viewer");
  const enlarge = (figure) => {
    const frame = figure.querySelector(".frame").cloneNode(true);
    frame.querySelectorAll(".enlarge").forEach((item) => item.remove());
    dialog.querySelector(".frame")?.remove();
    const image = frame.querySelector("img");
    const ratio = image.getAttribute("width") / image.getAttribute("height");
    const height = Math.min(innerHeight * 0.86, innerWidth * 0.94 / ratio);
    frame.style.height = `${height}px`;
    frame.style.width = `${height * ratio}px`;
    dialog.prepend(frame);
    dialog.querySelector("span").textContent = figure.querySelector("figcaption").textContent.trim();
    dialog.showModal();
  };

  const stored = remembered("cspine-theme");
  if (stored === "dark" || stored === "light") root.dataset.theme = stored;
  document.querySelectorAll(".tools [hidden]").forEach((item) => { item.hidden = false; });
  showTheme();
  $("theme")?.addEventListener("click", toggleTheme);
  $("overlay")?.addEventListener("click", toggleOverlay);
  $("print")?.addEventListener("click", () => print());
  $("keys")?.addEventListener("click", (event) => {
    keys = !keys;
    event.currentTarget.setAttribute("aria-pressed", String(keys));
  });
  if (dialog && dialog.showModal) {
    document.querySelectorAll("figure").forEach((figure) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "enlarge";
      button.textContent = "⤢";
      button.setAttribute("aria-label", "Enlarge: " + figure.querySelector("figcaption").textContent.trim());
      button.addEventListener("click", () => enlarge(figure));
      figure.querySelector(".frame").append(button);
    });
  }

  addEventListener("keydown", (event) => {
    if (!keys || event.ctrlKey || event.metaKey || event.altKey || dialog?.open && event.key !== "o") return;
    if (event.target.closest && event.target.closest("input, textarea, select")) return;
    const scrolls = event.target.closest && event.target.closest(".scroll");
    if (event.key === "o") toggleOverlay();
    else if (event.key === "t") toggleTheme();
    else if (event.key === "j" || event.key === "ArrowRight" && !scrolls) go(at + 1);
    else if (event.key === "k" || event.key === "ArrowLeft" && !scrolls) go(at < 0 ? levels.length - 1 : at - 1);
    else if (/^[1-7]$/.test(event.key)) go(Number(event.key) - 1);
    else return;
    event.preventDefault();
  });

  const closed = () => [...document.querySelectorAll("details:not([open])")];
  let opened = [];
  addEventListener("beforeprint", () => { opened = closed(); opened.forEach((item) => { item.open = true; }); });
  addEventListener("afterprint", () => { opened.forEach((item) => { item.open = false; }); });
})();
