/** The worklist: keys, a search that answers while one types, and lines that keep themselves up to date. */

import { localTimes } from "../common/times";

const form = document.querySelector<HTMLFormElement>("#filters");
const list = document.querySelector<HTMLElement>("#list");
const news = document.querySelector<HTMLElement>("#news");

/** Keeps the lines up to date without moving what one looks at. */
class Lines {
  private etag = "";
  private timer = 0;
  private asked = 0;

  constructor(
    private readonly form: HTMLFormElement,
    private readonly list: HTMLElement,
  ) {
    document.addEventListener("visibilitychange", () => {
      if (document.visibilityState === "visible") void this.refresh();
    });
    this.wait();
  }

  /** Ask for the lines; `changed` when the filters are others than before. */
  async refresh(changed = false): Promise<void> {
    window.clearTimeout(this.timer);
    const number = ++this.asked;
    try {
      if (document.visibilityState === "visible" || changed) {
        const answer = await this.ask(changed);
        // A later question makes this answer worthless.
        if (number !== this.asked) return;
        if (answer !== null) this.show(answer);
      }
    } catch {
      // The line is down: the next look comes anyway.
    }
    this.wait();
  }

  private wait(): void {
    window.clearTimeout(this.timer);
    const busy = Number(this.list.querySelector<HTMLElement>(".below")?.dataset["busy"] ?? 0) > 0;
    this.timer = window.setTimeout(() => void this.refresh(), (busy ? 4 : 30) * 1000);
  }

  private async ask(changed: boolean): Promise<string | null> {
    const data = new FormData(this.form);
    const searching = String(data.get("search") ?? "").trim() !== "";
    const headers: Record<string, string> = { "X-Part": "list" };
    const query = new URLSearchParams();
    for (const [name, value] of data) {
      const usual = value === "" || value === "open" || value === "priority";
      if (typeof value === "string" && !usual && name !== "csrf_token" && name !== "search") query.set(name, value);
    }
    const page = new URLSearchParams(window.location.search).get("page");
    if (page !== null && !changed) query.set("page", page);
    let answer: Response;
    if (searching) {
      headers["X-CSRFToken"] = String(data.get("csrf_token"));
      answer = await fetch("/", { method: "POST", body: data, headers, credentials: "same-origin" });
    } else {
      if (this.etag !== "" && !changed) headers["If-None-Match"] = this.etag;
      answer = await fetch(`/?${query}`, { headers, credentials: "same-origin", redirect: "manual" });
      if (changed) window.history.replaceState(null, "", query.size > 0 ? `/?${query}` : "/");
    }
    if (answer.type === "opaqueredirect" || answer.status === 401) window.location.reload(); // logged out meanwhile
    if (!answer.ok) return null;
    this.etag = searching ? "" : (answer.headers.get("ETag") ?? "");
    return answer.text();
  }

  private show(html: string): void {
    const fresh = new DOMParser().parseFromString(html, "text/html").body;
    localTimes(fresh);
    const old = this.list.querySelector<HTMLElement>(".below")?.dataset["counts"] ?? "";
    const at = this.list.contains(document.activeElement) ? chosen() : null;
    this.list.replaceChildren(...fresh.childNodes);
    if (at !== null) linkOf(at)?.focus({ preventScroll: true });
    const counts = this.list.querySelector<HTMLElement>(".below")?.dataset["counts"] ?? "";
    if (counts !== old && news !== null) {
      news.textContent = "";
      news.textContent = news.dataset["text"] ?? "";
    }
    for (const pair of counts.trim().split(" ")) {
      const [name, count] = pair.split(":");
      const shown = document.querySelector(`[data-count="${name}"]`);
      if (shown !== null && count !== undefined) shown.textContent = count;
    }
  }
}

function rows(): HTMLElement[] {
  return [...document.querySelectorAll<HTMLElement>("#list tbody tr[data-id]")];
}

function linkOf(id: string): HTMLElement | null {
  return document.querySelector<HTMLElement>(`#list tr[data-id="${CSS.escape(id)}"] a`);
}

/** The study whose line has the focus. */
function chosen(): string | null {
  return document.activeElement?.closest<HTMLElement>("tr[data-id]")?.dataset["id"] ?? null;
}

function move(step: 1 | -1): void {
  const all = rows();
  const at = all.findIndex((row) => row.dataset["id"] === chosen());
  const next = all[at < 0 ? (step > 0 ? 0 : all.length - 1) : Math.min(Math.max(at + step, 0), all.length - 1)];
  const link = next?.querySelector<HTMLElement>("a");
  link?.focus({ preventScroll: true });
  next?.scrollIntoView({ block: "nearest" });
}

function onKey(event: KeyboardEvent): void {
  const target = event.target as HTMLElement;
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if (target.matches("input, select, textarea")) {
    if (event.key === "Escape") target.blur();
    return;
  }
  switch (event.key) {
    case "j":
      return move(1);
    case "k":
      return move(-1);
    case "u":
      return document.querySelector<HTMLElement>("#upload")?.click();
    case "/":
      event.preventDefault();
      return document.querySelector<HTMLElement>("input[name=search]")?.focus();
  }
}

if (form !== null && list !== null) {
  form.classList.add("live");
  localTimes(document);
  const lines = new Lines(form, list);
  let typing = 0;
  form.addEventListener("input", (event) => {
    window.clearTimeout(typing);
    const pause = (event.target as HTMLElement).matches("input") ? 250 : 0;
    typing = window.setTimeout(() => void lines.refresh(true), pause);
  });
  form.addEventListener("submit", (event) => {
    const pressed = event.submitter as HTMLButtonElement | null;
    // Buttons of tabs and pages say more than the form does: those go the usual way.
    if (pressed !== null && pressed.name !== "") return;
    event.preventDefault();
    void lines.refresh(true);
  });
  document.addEventListener("keydown", onKey);
}
