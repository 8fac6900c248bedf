import type { Evidence, Plane, RoomData, Vec3 } from "./data";
import { AXIS, t } from "./data";
import { clamped, toIndex, toWorld } from "./geometry";
import { percent } from "../common/dom";

export interface State {
  readonly at: Vec3; // index x, y, z of the view
  readonly window: string;
  readonly overlay: boolean;
  readonly level: string | null;
  readonly evidence: number; // of facts.evidence, -1 for none
  readonly plane: Plane; // that keys scroll
}

type Listener = (now: State, before: State, by: string) => void;

/** What is shown, and the ways to change it. Viewers and panel listen; nobody else holds state. */
export class Room {
  private state: State;
  private readonly listeners: Listener[] = [];

  constructor(
    readonly data: RoomData,
    readonly say: (text: string) => void,
  ) {
    const { index, level, window, overlay } = data.look;
    const at: Vec3 = [index.sagittal, index.coronal, index.axial];
    this.state = { at, window, overlay, level, evidence: -1, plane: "axial" };
    const here = data.facts.evidence.findIndex((one) => one.level === level && one.view_slice === at[2]);
    this.state = { ...this.state, evidence: here };
  }

  get now(): State {
    return this.state;
  }

  get world(): Vec3 {
    return toWorld(this.data.facts.grid, this.state.at);
  }

  /** Hear of every change; `by` says who made it. */
  on(listener: Listener): void {
    this.listeners.push(listener);
  }

  /** Change some of what is shown. */
  set(change: Partial<State>, by = ""): void {
    const before = this.state;
    this.state = { ...before, ...change };
    for (const listener of this.listeners) listener(this.state, before, by);
  }

  moveTo(index: Vec3, by = ""): void {
    this.set({ at: clamped(this.data.facts.grid, index) }, by);
  }

  scroll(plane: Plane, steps: number): void {
    const at: [number, number, number] = [...this.state.at];
    at[AXIS[plane]] += steps;
    this.set({ at: clamped(this.data.facts.grid, at), plane });
  }

  /** To a level's strongest evidence, or its body. */
  jump(level: string): void {
    const { facts } = this.data;
    const own = facts.evidence.map((one, k) => ({ one, k })).filter(({ one }) => one.level === level);
    const best = own.reduce<{ one: Evidence; k: number } | null>((a, b) => (a && a.one.score >= b.one.score ? a : b), null);
    if (best) return this.showEvidence(best.k);
    const jump = facts.levels.find((item) => item.level === level)?.jump_mm ?? null;
    const at = jump === null ? this.state.at : toIndex(facts.grid, jump);
    this.set({ level, evidence: -1, at });
    this.say(jump === null ? t("said.not-shown", { level }) : this.describe(level));
  }

  /** To one piece of evidence. */
  showEvidence(number: number): void {
    const { facts } = this.data;
    const one = facts.evidence[number];
    if (!one) return this.say(t("said.no-evidence"));
    const [x, y] = toIndex(facts.grid, one.at_mm);
    this.set({ level: one.level, evidence: number, at: [x, y, one.view_slice] });
    const own = facts.evidence.filter((item) => item.level === one.level);
    this.say(
      t("said.evidence", {
        level: one.level,
        number: own.indexOf(one) + 1,
        count: own.length,
        slice: one.slice_index,
        score: percent(one.score),
      }),
    );
  }

  /** To the next or previous piece of evidence, level by level from head to feet, round and round. */
  stepEvidence(step: 1 | -1): void {
    const { evidence } = this.data.facts;
    if (!evidence.length) return this.say(t("said.no-evidence"));
    const { evidence: here, level } = this.state;
    if (here >= 0) return this.showEvidence((here + step + evidence.length) % evidence.length);
    const own = evidence.findIndex((one) => one.level === level);
    this.showEvidence(own >= 0 ? own : step > 0 ? 0 : evidence.length - 1);
  }

  stepLevel(step: 1 | -1): void {
    const names = this.data.facts.levels.map((item) => item.level);
    const here = names.indexOf(this.state.level ?? "");
    const next = names[Math.min(Math.max(here + step, 0), names.length - 1)];
    if (next) this.jump(next);
  }

  cycleWindow(): void {
    const names = Object.keys(this.data.windows);
    this.setWindow(names[(names.indexOf(this.state.window) + 1) % names.length] ?? "bone");
  }

  setWindow(window: string): void {
    this.set({ window });
    this.say(t("said.window", { name: t(`window.${window}`) }));
  }

  toggleOverlay(): void {
    this.set({ overlay: !this.state.overlay });
    this.say(t(this.state.overlay ? "said.overlay-on" : "said.overlay-off"));
  }

  private describe(level: string): string {
    const title = document.querySelector(`#${level} .verdict`)?.textContent ?? "";
    return `${level}: ${title.replace(/\s+/g, " ").trim()}`;
  }
}
