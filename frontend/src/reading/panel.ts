import { all, one } from "../common/dom";
import { t } from "./data";
import { sourceSlice } from "./geometry";
import type { Room } from "./state";

/** Levels, map, evidence and tools: what is chosen, and choosing by pointer. */
export function setUpPanel(room: Room): void {
  for (const link of all(".level-list a, .map .mark", Element)) {
    link.addEventListener("click", (event) => {
      const level = link.getAttribute("data-level");
      if (level === null || modified(event)) return;
      event.preventDefault();
      room.jump(level);
    });
  }
  for (const link of all(".evidence a", HTMLAnchorElement)) {
    link.addEventListener("click", (event) => {
      if (modified(event)) return;
      event.preventDefault();
      room.showEvidence(Number(link.dataset["evidence"]));
    });
  }
  for (const link of all("[data-window]", HTMLAnchorElement)) {
    const choose = (event: Event): void => {
      if (modified(event)) return;
      event.preventDefault();
      room.setWindow(link.dataset["window"] ?? "bone");
    };
    link.addEventListener("click", choose);
    link.addEventListener("keydown", (event) => event.key === " " && choose(event));
  }
  press("#overlay", () => room.toggleOverlay());
  press("#previous", () => room.stepEvidence(-1));
  press("#next", () => room.stepEvidence(1));
  setUpEnlarging();
  room.on((now, before) => {
    show(room);
    if (now.level !== before.level) one(`.level-list a[data-level="${now.level ?? "C1"}"]`, Element).scrollIntoView({ block: "nearest" });
  });
  show(room);
}

/** Unhide a button and act on it. */
export function press(selector: string, deed: () => void): HTMLButtonElement {
  const button = one(selector, HTMLButtonElement);
  button.hidden = false;
  button.addEventListener("click", deed);
  return button;
}

function modified(event: Event): boolean {
  return event instanceof MouseEvent && (event.ctrlKey || event.metaKey || event.shiftKey || event.button !== 0);
}

function show(room: Room): void {
  const { level, overlay, window: chosen, evidence, at } = room.now;
  for (const section of all(".panel .level, .panel > .answer", HTMLElement)) {
    section.hidden = section.dataset["level"] !== level;
  }
  for (const link of all(".level-list a", HTMLAnchorElement)) {
    if (link.dataset["level"] === level) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
  for (const mark of all(".map .mark", SVGElement)) mark.classList.toggle("here", mark.dataset["level"] === level);
  for (const link of all(".evidence a", HTMLAnchorElement)) {
    const one = room.data.facts.evidence[Number(link.dataset["evidence"])];
    const here = Number(link.dataset["evidence"]) === evidence && one?.view_slice === at[2];
    if (here) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
  for (const link of all("[data-window]", HTMLAnchorElement)) {
    link.setAttribute("aria-pressed", String(link.dataset["window"] === chosen));
  }
  one("#overlay", HTMLElement).setAttribute("aria-pressed", String(overlay));
  for (const image of all(".map .overlay", HTMLElement)) image.hidden = !overlay;
  remember(room);
}

/** The address says what is shown, so that a reload or a bookmark comes back to it. */
function remember(room: Room): void {
  const { level, window: chosen, overlay, at } = room.now;
  const said = new URLSearchParams();
  if (level) said.set("level", level);
  const slice = sourceSlice(room.data.facts.grid, at[2]);
  said.set("slice", String(slice));
  said.set("window", chosen);
  if (!overlay) said.set("overlay", "0");
  for (const mode of ["plain", "rich"]) if (new URLSearchParams(location.search).get(mode) === "1") said.set(mode, "1");
  history.replaceState(null, "", `${room.data.base}?${said}`);
  const source = one("#source", HTMLAnchorElement);
  source.href = `${room.data.base}/source/${slice}.png?window=${chosen}`;
}

/** One pane can fill the stage. */
function setUpEnlarging(): void {
  const stage = one("#stage", HTMLElement);
  for (const button of all(".enlarge", HTMLButtonElement, stage)) {
    button.hidden = false;
    button.addEventListener("click", () => {
      const pane = button.closest<HTMLElement>(".pane");
      const large = !pane?.classList.contains("large");
      for (const other of all(".pane", HTMLElement, stage)) other.classList.toggle("large", large && other === pane);
      stage.classList.toggle("single", large);
      for (const other of all(".enlarge", HTMLButtonElement, stage)) {
        other.setAttribute("aria-pressed", String(large && other === button));
      }
      stage.dispatchEvent(new Event("arranged"));
    });
  }
}

/** Help in a dialog. */
export function setUpHelp(): () => void {
  const dialog = one("#help-dialog", HTMLDialogElement);
  const open = (): void => dialog.showModal();
  press("#help", open);
  return open;
}

/** Fills the dialog with the slice as it was scanned, and boxes around its evidence. */
export function setUpSource(room: Room): () => void {
  const dialog = one("#source-dialog", HTMLDialogElement);
  const image = one("img", HTMLImageElement, dialog);
  const boxes = one(".boxes", SVGSVGElement, dialog);
  const open = (): void => {
    const { facts, base } = room.data;
    const near = facts.evidence[room.now.evidence];
    const here = near && near.view_slice === room.now.at[2] ? near.slice_index : sourceSlice(facts.grid, room.now.at[2]);
    const [, rows, columns] = facts.source_shape;
    image.src = `${base}/source/${here}.png?window=${room.now.window}`;
    image.alt = t("source-alt", { slice: here });
    image.width = columns;
    image.height = Math.round((rows * facts.source_spacing[1]) / facts.source_spacing[0]);
    one("#source-title", HTMLElement).textContent = t("source-title", { slice: here });
    boxes.setAttribute("viewBox", `0 0 ${columns} ${rows}`);
    boxes.setAttribute("preserveAspectRatio", "none");
    boxes.replaceChildren();
    if (room.now.overlay) {
      for (const item of facts.evidence.filter((one) => one.slice_index === here)) boxes.append(rectangle(item.box_px));
    }
    dialog.showModal();
  };
  one("#source", HTMLAnchorElement).addEventListener("click", (event) => {
    if (modified(event)) return;
    event.preventDefault();
    open();
  });
  return open;
}

function rectangle([x0, y0, x1, y1]: readonly [number, number, number, number]): SVGRectElement {
  const made = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  const sides = { x: x0, y: y0, width: x1 - x0, height: y1 - y0 };
  for (const [name, value] of Object.entries(sides)) made.setAttribute(name, String(value));
  made.setAttribute("vector-effect", "non-scaling-stroke");
  return made;
}
