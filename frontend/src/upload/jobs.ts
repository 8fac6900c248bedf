// A list of jobs on the page, kept up to date.
import { all } from "../common/dom";

interface JobAnswer {
  readonly id: string;
  readonly state: string;
  readonly progress: number;
  readonly text: string;
  readonly message: string;
}

const BUSY = new Set(["queued", "running"]);
const EVERY_MS = 1000;

/** Ask again and again how far jobs are; when one ends, the page is loaded anew. */
export function follow(list: HTMLElement): void {
  const lines = all("li[data-job]", HTMLElement, list);
  if (!lines.some((line) => BUSY.has(line.dataset["state"] ?? ""))) return;
  const timer = window.setInterval(() => void ask(), EVERY_MS);

  async function ask(): Promise<void> {
    if (document.hidden) return;
    try {
      const answer = await fetch(list.dataset["api"] ?? "", { headers: { Accept: "application/json" } });
      if (answer.status === 401) window.location.reload();
      if (!answer.ok) return;
      const { jobs } = (await answer.json()) as { jobs: JobAnswer[] };
      const known = new Map(jobs.map((job) => [job.id, job]));
      for (const line of lines) show(line, known.get(line.dataset["job"] ?? ""));
    } catch {
      // The connection is away; the next question may get through.
    }
  }

  function show(line: HTMLElement, job: JobAnswer | undefined): void {
    if (job === undefined) return;
    if (BUSY.has(line.dataset["state"] ?? "") && !BUSY.has(job.state)) {
      window.clearInterval(timer);
      window.location.reload();
      return;
    }
    const bar = line.querySelector("progress");
    if (bar !== null) bar.value = job.progress;
    const said = line.querySelector('[data-part="text"]');
    if (said !== null && BUSY.has(job.state) && said.textContent !== job.text) said.textContent = job.text;
  }
}
