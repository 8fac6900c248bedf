import type { Plane } from "./data";
import type { Room } from "./state";

const PLANE_KEYS: Readonly<Record<string, Plane>> = { a: "axial", s: "sagittal", c: "coronal" };
const PAGE = 10;

export interface Deeds {
  readonly help: () => void;
  readonly source: () => void;
  readonly turn: (across: number, up: number) => boolean;
}

/** Single keys. They can be switched off (WCAG 2.1.4), and never act while somebody writes. */
export class Keys {
  on = true;

  constructor(
    private readonly room: Room,
    private readonly deeds: Deeds,
  ) {
    // Before NiiVue, which has keys of its own.
    window.addEventListener("keydown", (event) => this.pressed(event), { capture: true });
    window.addEventListener("keyup", (event) => event.target instanceof HTMLCanvasElement && event.stopPropagation(), {
      capture: true,
    });
  }

  private pressed(event: KeyboardEvent): void {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    const target = event.target instanceof Element ? event.target : null;
    if (target?.closest("input:not([type=range], [type=checkbox]), textarea, select")) return;
    // A slider keeps its own keys.
    const slides = target?.matches("input[type=range]") ?? false;
    const done = (!slides && this.moves(event.key)) || (this.on && this.letter(event.key));
    if (done || target instanceof HTMLCanvasElement) event.stopImmediatePropagation();
    if (done) event.preventDefault();
  }

  private moves(key: string): boolean {
    const { room } = this;
    const arrows: Record<string, readonly [number, number]> = {
      ArrowUp: [0, 1], ArrowDown: [0, -1], ArrowLeft: [-1, 0], ArrowRight: [1, 0],
    };
    const arrow = arrows[key];
    if (arrow && this.deeds.turn(arrow[0], arrow[1])) return true;
    if (key === "ArrowUp" || key === "ArrowDown") room.scroll(room.now.plane, key === "ArrowUp" ? 1 : -1);
    else if (key === "PageUp" || key === "PageDown") room.scroll(room.now.plane, key === "PageUp" ? PAGE : -PAGE);
    else if (key === "ArrowLeft" || key === "ArrowRight") room.stepLevel(key === "ArrowRight" ? 1 : -1);
    else return false;
    return true;
  }

  private letter(key: string): boolean {
    const { room } = this;
    const plane = PLANE_KEYS[key];
    if (/^[1-7]$/.test(key)) room.jump(`C${key}`);
    else if (key === "n" || key === "p") room.stepEvidence(key === "n" ? 1 : -1);
    else if (key === "w") room.cycleWindow();
    else if (key === "o") room.toggleOverlay();
    else if (plane) room.set({ plane });
    else if (key === "f") this.deeds.source();
    else if (key === "?") this.deeds.help();
    else return false;
    return true;
  }
}
