import { dataBlock, filled } from "../common/dom";

export type Vec3 = readonly [number, number, number];
export type Plane = "axial" | "sagittal" | "coronal";
export const PLANES: readonly Plane[] = ["axial", "sagittal", "coronal"];
/** Which of x, y, z the pictures of a plane follow each other along. */
export const AXIS: Readonly<Record<Plane, 0 | 1 | 2>> = { sagittal: 0, coronal: 1, axial: 2 };

export interface Grid {
  readonly shape: Vec3; // voxels z, y, x
  readonly spacing: Vec3; // mm x, y, z
  readonly affine: readonly (readonly number[])[]; // index x, y, z, 1 to LPS mm
  readonly first_slice: number;
  readonly slices: number;
}

export interface Evidence {
  readonly level: string;
  readonly slice_index: number;
  readonly view_slice: number;
  readonly at_mm: Vec3;
  readonly box_px: readonly [number, number, number, number];
  readonly score: number;
}

export interface LevelPlace {
  readonly level: string;
  readonly center_mm: Vec3 | null;
  readonly jump_mm: Vec3 | null;
  readonly mesh: string | null;
}

export interface Facts {
  readonly source_shape: Vec3;
  readonly source_spacing: Vec3;
  readonly grid: Grid;
  readonly levels: readonly LevelPlace[];
  readonly evidence: readonly Evidence[];
  readonly neighbours: string | null;
  readonly files: Readonly<Record<string, number>>;
}

export interface RoomData {
  readonly base: string;
  readonly answers: string;
  readonly facts: Facts;
  readonly colours: Readonly<Record<string, string>>;
  readonly windows: Readonly<Record<string, readonly [number, number]>>;
  readonly look: {
    readonly level: string | null;
    readonly index: Readonly<Record<Plane, number>>;
    readonly window: string;
    readonly overlay: boolean;
  };
  readonly types: Readonly<Record<string, string>>;
  readonly strings: Readonly<Record<string, string>>;
}

/** What the server wrote into the page. It is ours, so its shape is taken as it is. */
export const room = dataBlock("room-data") as RoomData;

/** A string of the catalogue, keys below `read.`. */
export function t(key: string, values: Readonly<Record<string, string | number>> = {}): string {
  return filled(room.strings[`read.${key}`] ?? key, values);
}
