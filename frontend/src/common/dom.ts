/** The first element that a selector finds; its absence is a fault of the template. */
export function one<T extends Element>(selector: string, kind: new () => T, within: ParentNode = document): T {
  const found = within.querySelector(selector);
  if (!(found instanceof kind)) throw new Error(`the page has no ${selector}`);
  return found;
}

/** All elements that a selector finds, of one kind. */
export function all<T extends Element>(selector: string, kind: new () => T, within: ParentNode = document): T[] {
  return [...within.querySelectorAll(selector)].filter((item): item is T => item instanceof kind);
}

/** A data block of the page: `<script type="application/json" id="…">`. */
export function dataBlock(id: string): unknown {
  return JSON.parse(one(`#${id}`, HTMLScriptElement).textContent ?? "null");
}

/** Fills `{name}` in a string of the catalogue. */
export function filled(text: string, values: Readonly<Record<string, string | number>>): string {
  return text.replace(/\{(\w+)\}/g, (whole, name: string) => (name in values ? String(values[name]) : whole));
}

/** A probability in the words of the report: never 0 or 100, which no method can promise. */
export function percent(value: number | null): string {
  if (value === null) return "–";
  if (value < 0.01) return "<1\u00a0%";
  return value > 0.99 ? ">99\u00a0%" : `${Math.round(value * 100)}\u00a0%`;
}

/** A signed number with a true minus sign. */
export function signed(value: number, digits = 1): string {
  return value.toFixed(digits).replace("-", "\u2212");
}
