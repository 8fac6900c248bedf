/** Bytes for people, powers of 1000: `1.4 GB`. */
export function bytes(count: number): string {
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  let unit = 0;
  let value = count;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${unit === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

/** A share of the whole in per cent, never 100 before the end. */
export function share(done: number): number {
  return done >= 1 ? 100 : Math.min(99, Math.floor(100 * done));
}

/** Time that is left, roughly, and the key of its words; null when there is no saying. */
export function left(seconds: number): { key: string; count: number } | null {
  if (!Number.isFinite(seconds)) return null;
  if (seconds < 5) return { key: "left-moment", count: 0 };
  if (seconds < 90) return { key: "left-seconds", count: Math.round(seconds) };
  return { key: "left-minutes", count: Math.round(seconds / 60) };
}
