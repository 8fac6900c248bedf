import { DRAG_MODE, Niivue, NVImage, SLICE_TYPE } from "@niivue/niivue";
import { one } from "../common/dom";
import type { Plane, Vec3 } from "./data";
import { PLANES } from "./data";
import { toIndex } from "./geometry";
import type { Room, State } from "./state";

const SLICE: Readonly<Record<Plane, SLICE_TYPE>> = {
  axial: SLICE_TYPE.AXIAL,
  sagittal: SLICE_TYPE.SAGITTAL,
  coronal: SLICE_TYPE.CORONAL,
};
const BLACK = [0, 0, 0, 1];
const CT = 0;
/** The tint of the evidence, as `reports.images.heat_overlay` has it: nothing below 0.15, then orange to pale yellow. */
const HEAT = { R: [242, 242, 255], G: [120, 120, 224], B: [60, 60, 130], A: [0, 90, 255], I: [0, 8, 255] };
const HEAT_FLOOR = 0.15 * 255;
const HEAT_OPACITY = 0.42;
/** Outlines are drawn as they are; this is the tint inside them. */
const FILL_OPACITY = 0.14;
const OUTLINE = 0.9;
const NEIGHBOUR = [96, 100, 104, 255] as const;
/** From the patient's left front, a little from above: where most of each vertebra is seen. */
const VIEW = { azimuth: 125, elevation: 12, scale: 0.78 };

type ColorTable = { R: number[]; G: number[]; B: number[]; A: number[]; I: number[]; labels: string[] };
type Mm = { readonly mm: ArrayLike<number> };

/** NiiVue: three planes on one canvas below the panes, and the vertebrae in 3D on another. */
export class Rich {
  private constructor(
    private readonly room: Room,
    private readonly flat: Niivue,
    private readonly solid: Niivue,
  ) {}

  /**
   * Load everything and take over from the server's pictures.
   *
   * @throws Error when WebGL or a file is not to be had.
   */
  static async start(room: Room, lost: () => void): Promise<Rich> {
    const canvas = document.createElement("canvas");
    canvas.id = "flat";
    canvas.setAttribute("aria-hidden", "true"); // the panes say what it shows
    one("#stage", HTMLElement).prepend(canvas);
    const solidCanvas = one("#solid", HTMLCanvasElement);
    one(".pane.solid", HTMLElement).hidden = false;
    const shared = {
      backColor: BLACK, logLevel: "error" as const, dragAndDropEnabled: false, viewModeHotKey: "", clipPlaneHotKey: "",
      cycleClipPlaneHotKey: "", isOrientationTextVisible: false, loadingText: "", isColorbar: false,
    };
    const flat = new Niivue({
      ...shared, sliceType: SLICE_TYPE.MULTIPLANAR, isRadiologicalConvention: true, sagittalNoseLeft: true,
      crosshairColor: [0.44, 0.78, 0.76, 0.9], crosshairWidth: 0.6, crosshairWidthUnit: "percent", crosshairGap: 6,
      atlasOutline: room.now.overlay ? OUTLINE : 0,
      isNearestInterpolation: false, tileMargin: 0, multiplanarPadPixels: 0, trustCalMinMax: true,
      mouseEventConfig: {
        leftButton: { primary: DRAG_MODE.crosshair }, rightButton: DRAG_MODE.windowing, centerButton: DRAG_MODE.pan,
      },
      touchEventConfig: { singleTouch: DRAG_MODE.crosshair, doubleTouch: DRAG_MODE.pan },
    });
    const solid = new Niivue({ ...shared, sliceType: SLICE_TYPE.RENDER, isOrientCube: true, show3Dcrosshair: false });
    for (const item of [canvas, solidCanvas]) item.addEventListener("webglcontextlost", lost);
    await flat.attachToCanvas(canvas);
    canvas.tabIndex = -1; // NiiVue makes it focusable; the panes have the focus here
    await solid.attachToCanvas(solidCanvas);
    const rich = new Rich(room, flat, solid);
    await Promise.all([rich.loadVolumes(), rich.loadMeshes()]);
    rich.listen();
    return rich;
  }

  /** Stop drawing and give the memory back. */
  stop(): void {
    for (const viewer of [this.flat, this.solid]) viewer.cleanup();
    document.getElementById("flat")?.remove();
    one(".pane.solid", HTMLElement).hidden = true;
  }

  /** Turn the 3D view; false when it is not the one that has the focus. */
  turn(across: number, up: number): boolean {
    if (document.activeElement?.id !== "solid") return false;
    const { renderAzimuth, renderElevation } = this.solid.scene;
    this.solid.setRenderAzimuthElevation(renderAzimuth + 10 * across, renderElevation + 10 * up);
    return true;
  }

  /** The whole neck again, at its own size. */
  reset(): void {
    this.flat.setPan2Dxyzmm([0, 0, 0, 1]);
    this.solid.setScale(VIEW.scale);
    this.solid.setRenderAzimuthElevation(VIEW.azimuth, VIEW.elevation);
    this.setWindow(this.room.now);
  }

  private async loadVolumes(): Promise<void> {
    const { base, windows, facts } = this.room.data;
    const { window, overlay } = this.room.now;
    const [low, high] = windows[window] ?? [0, 1];
    this.flat.addColormap("cspine-evidence", HEAT);
    const load = (file: string, options: object): Promise<NVImage> => NVImage.loadFromUrl({ url: `${base}/view/${file}`, ...options });
    const wanted = [
      load("ct.nii.gz", { colormap: "gray", cal_min: low, cal_max: high }),
      load("labels.nii.gz", { opacity: overlay ? FILL_OPACITY : 0, cal_min: 0, cal_max: 8 }),
    ];
    if (facts.evidence.length) {
      const limits = { cal_min: HEAT_FLOOR, cal_max: 255, opacity: overlay ? HEAT_OPACITY : 0 };
      wanted.push(load("evidence.nii.gz", { colormap: "cspine-evidence", ...limits }));
    }
    // All at once: NiiVue would draw anew for each.
    const volumes = await Promise.all(wanted);
    const [ct, labels] = volumes;
    if (!ct || !labels) return;
    labels.setColormapLabel(this.labelColours());
    this.flat.volumes = volumes;
    this.flat.setVolume(ct, CT);
    this.arrange();
    this.setCross();
  }

  private labelColours(): ColorTable {
    const levels = this.room.data.facts.levels.map((item) => item.level);
    const colours = ["#000000", ...levels.map((level) => this.room.data.colours[level] ?? "#d5d9dc")].map(rgb);
    return {
      R: colours.map(([r]) => r), G: colours.map(([, g]) => g), B: colours.map(([, , b]) => b),
      A: colours.map((_, k) => (k ? 60 : 0)), I: colours.map((_, k) => k), labels: ["", ...levels],
    };
  }

  private async loadMeshes(): Promise<void> {
    const { base, facts, colours } = this.room.data;
    const meshes = facts.levels.flatMap(({ level, mesh }) =>
      mesh === null ? [] : [{ url: `${base}/view/${mesh}`, name: mesh, rgba255: [...rgb(colours[level] ?? "#d5d9dc"), 255] }],
    );
    if (facts.neighbours !== null) {
      meshes.push({ url: `${base}/view/${facts.neighbours}`, name: facts.neighbours, rgba255: [...NEIGHBOUR] });
    }
    await this.solid.loadMeshes(meshes);
    this.solid.setScale(VIEW.scale);
    this.solid.setRenderAzimuthElevation(VIEW.azimuth, VIEW.elevation);
  }

  private listen(): void {
    this.flat.onLocationChange = (location: unknown): void => {
      const { mm } = location as Mm;
      const [x = 0, y = 0, z = 0] = Array.from(mm);
      this.room.moveTo(toIndex(this.room.data.facts.grid, [-x, -y, z]), "rich");
    };
    this.room.on((now, before, by) => {
      if (now.at !== before.at && by !== "rich") this.setCross();
      if (now.window !== before.window) this.setWindow(now);
      if (now.overlay !== before.overlay) {
        this.setOverlay(now.overlay);
      }
    });
    const stage = one("#stage", HTMLElement);
    stage.addEventListener("arranged", () => this.arrange());
    new ResizeObserver(() => this.arrange()).observe(stage);
    // Which pane the pointer is in decides what the keys scroll.
    for (const plane of PLANES) {
      const pane = one(`.pane[data-plane="${plane}"]`, HTMLElement);
      one("#flat", HTMLElement).addEventListener("pointerdown", (event) => {
        const box = pane.getBoundingClientRect();
        if (event.clientX >= box.left && event.clientX < box.right && event.clientY >= box.top && event.clientY < box.bottom) {
          this.room.set({ plane }, "rich");
        }
      });
    }
  }

  /** Put NiiVue's tiles where the panes are. */
  private arrange(): void {
    const canvas = one("#flat", HTMLCanvasElement);
    const stage = canvas.getBoundingClientRect();
    if (!stage.width || !stage.height) return;
    this.flat.resizeListener();
    this.solid.resizeListener();
    const tiles = PLANES.flatMap((plane) => {
      const box = one(`.pane[data-plane="${plane}"] .picture`, HTMLElement).getBoundingClientRect();
      if (!box.width || !box.height) return [];
      const share = (value: number, whole: number): number => Math.min(Math.max(value / whole, 0), 1);
      const [left, top] = [share(box.left - stage.left, stage.width), share(box.top - stage.top, stage.height)];
      const size = [share(box.width, stage.width - 1), share(box.height, stage.height - 1)];
      const position: [number, number, number, number] = [left, top, Math.min(size[0] ?? 0, 1 - left), Math.min(size[1] ?? 0, 1 - top)];
      return [{ sliceType: SLICE[plane], position }];
    });
    this.flat.setCustomLayout(tiles);
  }

  private setCross(): void {
    const [x, y, z]: Vec3 = this.room.world;
    this.flat.scene.crosshairPos = this.flat.mm2frac([-x, -y, z]);
    this.flat.drawScene();
  }

  private setWindow(now: State): void {
    const volume = this.flat.volumes[CT];
    const [low, high] = this.room.data.windows[now.window] ?? [0, 1];
    if (!volume) return;
    volume.cal_min = low;
    volume.cal_max = high;
    this.flat.refreshLayers(volume, CT); // the others stay as they are
    this.flat.drawScene();
  }

  private setOverlay(shown: boolean): void {
    this.flat.opts.atlasOutline = shown ? OUTLINE : 0;
    this.flat.volumes.forEach((volume, layer) => {
      if (layer === CT) return;
      volume.opacity = shown ? (layer === 1 ? FILL_OPACITY : HEAT_OPACITY) : 0;
      this.flat.refreshLayers(volume, layer);
    });
    this.flat.drawScene();
  }
}

function rgb(hex: string): [number, number, number] {
  const value = parseInt(hex.slice(1), 16);
  return [(value >> 16) & 255, (value >> 8) & 255, value & 255];
}
