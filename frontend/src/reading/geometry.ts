import type { Grid, Plane, Vec3 } from "./data";
import { AXIS } from "./data";

/** LPS millimetres of an index x, y, z. */
export function toWorld(grid: Grid, index: Vec3): Vec3 {
  const row = (k: number): number => {
    const [a = 0, b = 0, c = 0, d = 0] = grid.affine[k] ?? [];
    return a * index[0] + b * index[1] + c * index[2] + d;
  };
  return [row(0), row(1), row(2)];
}

/** The voxel nearest to LPS millimetres, inside the grid. */
export function toIndex(grid: Grid, world: Vec3): Vec3 {
  const m = grid.affine;
  const at = (r: number, c: number): number => m[r]?.[c] ?? 0;
  const [x, y, z] = [world[0] - at(0, 3), world[1] - at(1, 3), world[2] - at(2, 3)];
  const det = (a: Vec3, b: Vec3, c: Vec3): number =>
    a[0] * (b[1] * c[2] - b[2] * c[1]) - b[0] * (a[1] * c[2] - a[2] * c[1]) + c[0] * (a[1] * b[2] - a[2] * b[1]);
  const column = (c: number): Vec3 => [at(0, c), at(1, c), at(2, c)];
  const [i, j, k, w]: readonly Vec3[] = [column(0), column(1), column(2), [x, y, z]];
  if (!i || !j || !k || !w) return [0, 0, 0];
  const whole = det(i, j, k); // Cramer's rule; the server promises that the axes are independent
  return clamped(grid, [det(w, j, k) / whole, det(i, w, k) / whole, det(i, j, w) / whole]);
}

/** The nearest voxel inside the grid. */
export function clamped(grid: Grid, index: Vec3): Vec3 {
  const inside = (value: number, count: number): number => Math.min(Math.max(Math.round(value), 0), count - 1);
  return [inside(index[0], grid.shape[2]), inside(index[1], grid.shape[1]), inside(index[2], grid.shape[0])];
}

/** How many pictures a plane has. */
export function count(grid: Grid, plane: Plane): number {
  return grid.shape[2 - AXIS[plane]] ?? 1;
}

/** The slice of the scan in the middle of a slice of the view. */
export function sourceSlice(grid: Grid, view: number): number {
  return grid.first_slice + view * grid.slices + Math.floor((grid.slices - 1) / 2);
}

/** Where the crosshair lies in a plane's picture, 0 to 1 from its left and top; radiological display. */
export function onPicture(grid: Grid, plane: Plane, at: Vec3): readonly [number, number] {
  const share = (axis: 0 | 1 | 2): number => (at[axis] + 0.5) / (grid.shape[2 - axis] ?? 1);
  if (plane === "axial") return [share(0), share(1)];
  return [share(plane === "sagittal" ? 1 : 0), 1 - share(2)];
}

/** The index under a point of a plane's picture, the reverse of `onPicture`. */
export function fromPicture(grid: Grid, plane: Plane, at: Vec3, left: number, top: number): Vec3 {
  const along = (axis: 0 | 1 | 2, share: number): number => share * (grid.shape[2 - axis] ?? 1) - 0.5;
  if (plane === "axial") return clamped(grid, [along(0, left), along(1, top), at[2]]);
  if (plane === "sagittal") return clamped(grid, [at[0], along(1, left), along(2, 1 - top)]);
  return clamped(grid, [along(0, left), at[1], along(2, 1 - top)]);
}
