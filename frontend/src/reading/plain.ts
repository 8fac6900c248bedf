import { all, one, signed } from "../common/dom";
import type { Plane } from "./data";
import { AXIS, PLANES, t } from "./data";
import { count, fromPicture, onPicture, sourceSlice } from "./geometry";
import type { Room } from "./state";

/** Pictures of the server that were fetched lately; kept in memory alone, as pictures of patients should be. */
const KEPT = 160;
/** Slices fetched ahead of the one that is shown. */
const AHEAD = 3;
/** Pixels of a finger's way for one slice. */
const DRAG_PX = 7;

/** The three panes with their sliders and server-drawn pictures. They are there without WebGL and before it. */
export class Panes {
  private readonly panes = new Map<Plane, HTMLElement>();
  private readonly kept = new Map<string, HTMLImageElement>();
  /** False once another viewer draws. */
  private drawing = true;

  constructor(private readonly room: Room) {
    for (const plane of PLANES) this.panes.set(plane, this.setUp(plane));
    room.on((now, before) => {
      for (const plane of PLANES) {
        const axis = AXIS[plane];
        if (now.at[axis] !== before.at[axis] || now.window !== before.window || now.overlay !== before.overlay) {
          this.show(plane);
        }
        this.mark(plane);
      }
      this.choose();
    });
    for (const plane of PLANES) {
      this.label(plane);
      this.mark(plane);
    }
    this.choose();
  }

  /** Whether the server's pictures are shown. */
  draw(yes: boolean): void {
    this.drawing = yes;
    one("#stage", HTMLElement).classList.toggle("rich", !yes);
    if (yes) for (const plane of PLANES) this.show(plane);
  }

  pictureOf(plane: Plane): HTMLElement {
    return one(".picture", HTMLElement, this.pane(plane));
  }

  private pane(plane: Plane): HTMLElement {
    return this.panes.get(plane) ?? one(`.pane[data-plane="${plane}"]`, HTMLElement);
  }

  private setUp(plane: Plane): HTMLElement {
    const pane = one(`.pane[data-plane="${plane}"]`, HTMLElement);
    const slider = one(".slider", HTMLInputElement, pane);
    slider.disabled = false;
    slider.addEventListener("input", () => this.room.scroll(plane, slider.valueAsNumber - this.room.now.at[AXIS[plane]]));
    pane.addEventListener("focusin", () => this.room.set({ plane }));
    const picture = one(".picture", HTMLElement, pane);
    picture.addEventListener("wheel", (event) => this.wheel(plane, event), { passive: false });
    this.pointer(plane, one(".fitted", HTMLElement, pane));
    return pane;
  }

  private wheel(plane: Plane, event: WheelEvent): void {
    if (!this.drawing || event.ctrlKey || !event.deltaY) return;
    event.preventDefault();
    this.room.scroll(plane, event.deltaY > 0 ? -1 : 1);
  }

  /** A mouse moves the crosshair; a finger that moves up or down scrolls, and one that taps moves it. */
  private pointer(plane: Plane, target: HTMLElement): void {
    let from: { y: number; moved: boolean } | null = null;
    const place = (event: PointerEvent): void => {
      const box = drawn(target);
      const [left, top] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
      this.room.moveTo(fromPicture(this.room.data.facts.grid, plane, this.room.now.at, left, top));
    };
    target.addEventListener("pointerdown", (event) => {
      if (!this.drawing || event.button !== 0) return;
      target.setPointerCapture(event.pointerId);
      this.room.set({ plane });
      from = { y: event.clientY, moved: false };
      if (event.pointerType === "mouse") place(event);
    });
    target.addEventListener("pointermove", (event) => {
      if (!from) return;
      if (event.pointerType === "mouse") return place(event);
      const steps = Math.trunc((from.y - event.clientY) / DRAG_PX);
      if (!steps) return;
      from = { y: from.y - steps * DRAG_PX, moved: true };
      this.room.scroll(plane, steps);
    });
    target.addEventListener("pointerup", (event) => {
      if (from && !from.moved && event.pointerType !== "mouse") place(event);
      from = null;
    });
    target.addEventListener("pointercancel", () => {
      from = null;
    });
  }

  private show(plane: Plane): void {
    this.label(plane);
    if (!this.drawing) return;
    const pane = this.pane(plane);
    const { at, window, overlay } = this.room.now;
    const index = at[AXIS[plane]];
    const base = one("img.base", HTMLImageElement, pane);
    const over = one("img.overlay", HTMLImageElement, pane);
    const image = this.address(plane, index, window);
    if (base.getAttribute("src") !== image) base.src = image;
    const { grid } = this.room.data.facts;
    base.alt = t(`alt.${plane}`, { number: index + 1, count: count(grid, plane), slice: sourceSlice(grid, at[2]) });
    over.hidden = !overlay;
    const layer = this.overlayAddress(plane, index);
    if (overlay && over.getAttribute("src") !== layer) over.src = layer;
    this.fetchAhead(plane, index, window, overlay);
  }

  private label(plane: Plane): void {
    const pane = this.pane(plane);
    const { grid } = this.room.data.facts;
    const index = this.room.now.at[AXIS[plane]];
    const total = count(grid, plane);
    const slider = one(".slider", HTMLInputElement, pane);
    slider.value = String(index);
    const value = signed(this.room.world[AXIS[plane]]);
    const where = t(`where.${plane}`, { slice: sourceSlice(grid, index), value });
    slider.setAttribute("aria-valuetext", where);
    // Slices are called as the report and the evidence call them.
    const name = plane === "axial" ? t("slice", { slice: sourceSlice(grid, index) }) : t("position", { number: index + 1, count: total });
    one(".at", HTMLElement, pane).textContent = `${name} · ${"xyz"[AXIS[plane]]} ${value}\u00a0mm`;
  }

  /** The lines where the other planes cut this one, with a gap in the middle so that nothing is hidden. */
  private mark(plane: Plane): void {
    const { width, height } = one(".cross", SVGSVGElement, this.pane(plane)).viewBox.baseVal;
    const [across, along] = onPicture(this.room.data.facts.grid, plane, this.room.now.at);
    const [left, top, gap] = [across * width, along * height, 0.05 * Math.min(width, height)];
    const d =
      `M0 ${top}H${Math.max(0, left - gap)}M${Math.min(width, left + gap)} ${top}H${width}` +
      `M${left} 0V${Math.max(0, top - gap)}M${left} ${Math.min(height, top + gap)}V${height}`;
    for (const path of all(".cross path", SVGPathElement, this.pane(plane))) path.setAttribute("d", d);
  }

  private choose(): void {
    for (const [plane, pane] of this.panes) pane.classList.toggle("active", plane === this.room.now.plane);
  }

  private fetchAhead(plane: Plane, index: number, window: string, overlay: boolean): void {
    const total = count(this.room.data.facts.grid, plane);
    for (let step = 0; step <= AHEAD; step += 1) {
      for (const near of step ? [index + step, index - step] : [index]) {
        if (near < 0 || near >= total) continue;
        this.keep(this.address(plane, near, window));
        if (overlay) this.keep(this.overlayAddress(plane, near));
      }
    }
  }

  private keep(address: string): void {
    const image = this.kept.get(address) ?? new Image();
    if (!image.src) image.src = address;
    this.kept.delete(address);
    this.kept.set(address, image);
    const oldest = this.kept.keys().next().value;
    if (this.kept.size > KEPT && oldest !== undefined) this.kept.delete(oldest);
  }

  private address(plane: Plane, index: number, window: string): string {
    return `${this.room.data.base}/slices/${plane}/${index}.jpg?window=${window}`;
  }

  private overlayAddress(plane: Plane, index: number): string {
    return `${this.room.data.base}/overlays/${plane}/${index}.png`;
  }
}

/** Where a picture lies inside its pane, which it fills in one direction alone. */
function drawn(pane: HTMLElement): DOMRect {
  const box = pane.getBoundingClientRect();
  const { width, height } = one(".cross", SVGSVGElement, pane).viewBox.baseVal;
  const scale = Math.min(box.width / width, box.height / height);
  const [w, h] = [width * scale, height * scale];
  return new DOMRect(box.left + (box.width - w) / 2, box.top + (box.height - h) / 2, w, h);
}
