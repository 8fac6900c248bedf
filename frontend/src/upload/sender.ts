// Sends files in pieces. Every piece that is acknowledged is on the server's disk; whatever happens, the server says
// where each file goes on.
import type { Named } from "./files";

/** Pieces that travel at the same time: small files would otherwise wait for each other's answers. */
const AT_ONCE = 3;
/** Seconds between tries while the connection is away. */
const WAITS = [1, 2, 5, 10, 20, 30];
/** Over which the rate is measured. */
const RATE_SECONDS = 10;

/** Why sending stopped; nothing that arrived is lost. */
export interface Trouble {
  readonly kind: "paused" | "logged-out" | "changed" | "failed";
  readonly said: string;
}

export type End = Trouble | { readonly kind: "cancelled" } | { readonly kind: "done"; readonly upload: string };

interface Options {
  readonly api: string;
  readonly deidentify: boolean;
  readonly token: string;
}

interface RemoteFile {
  readonly id: string;
  readonly name: string;
  readonly size: number;
  readonly received: number;
}

interface Remote {
  readonly id: string;
  readonly state: string;
  readonly deidentify: boolean;
  readonly chunk_bytes: number;
  readonly files: readonly RemoteFile[];
}

/** One file on its way. */
interface Way {
  readonly id: string;
  readonly item: Named;
  sent: number;
}

class Halt extends Error {
  constructor(readonly why: Trouble) {
    super(why.kind);
  }
}

class Refused extends Error {
  constructor(
    readonly status: number,
    readonly body: { message?: string; received?: number },
  ) {
    super(body.message ?? `${status}`);
  }
}

export class Sender {
  onProgress: (sent: number, rate: number) => void = () => {};
  onWait: (seconds: number) => void = () => {};
  private readonly key = newKey();
  private readonly size: number;
  private token: string;
  private upload: string | null = null;
  private announced: Promise<string> | null = null;
  private ways: Way[] = [];
  private chunk = 2 ** 20;
  private aborter = new AbortController();
  private marks: { at: number; sent: number }[] = [];

  constructor(
    private readonly files: readonly Named[],
    private readonly options: Options,
  ) {
    this.token = options.token;
    this.size = files.reduce((sum, item) => sum + item.file.size, 0);
  }

  get share(): number {
    return this.size > 0 ? this.sent() / this.size : 0;
  }

  /** Send what is missing; ends when all is there, or with the reason why it stopped. */
  async run(resuming: (share: number) => void): Promise<End> {
    this.aborter = new AbortController();
    this.marks = [];
    try {
      const before = await this.patiently(() => this.open());
      if (before > 0) resuming(before);
      const queue = this.ways.filter((way) => way.sent < way.item.file.size);
      const work = async (): Promise<void> => {
        for (let way = queue.shift(); way !== undefined; way = queue.shift()) await this.sendFile(way);
      };
      await Promise.all(Array.from({ length: AT_ONCE }, work));
      const upload = this.upload ?? "";
      await this.patiently(() => this.ask("POST", `${this.options.api}/${upload}/finish`));
      return { kind: "done", upload };
    } catch (error) {
      const why = error instanceof Halt ? error.why : null;
      this.aborter.abort(); // the other pieces stop too
      if (why !== null) return why;
      return { kind: "failed", said: error instanceof Error ? error.message : String(error) };
    }
  }

  /** Stop; `run` ends with `paused`. */
  stop(): void {
    this.aborter.abort();
  }

  /** Throw away what has arrived. */
  async discard(): Promise<void> {
    this.stop();
    await this.announced?.catch(() => null);
    if (this.upload === null) return;
    const headers = { "X-CSRFToken": this.token };
    // When this fails, the page still lists the upload, with a button that discards it.
    await fetch(`${this.options.api}/${this.upload}`, { method: "DELETE", headers }).catch(() => null);
  }

  private sent(): number {
    return this.ways.reduce((sum, way) => sum + way.sent, 0);
  }

  /** Find the upload that these files belong to, or begin one; gives the share that is there already. */
  private async open(): Promise<number> {
    const known = (await this.ask("GET", this.options.api)) as { uploads: Remote[]; csrf: string };
    this.token = known.csrf; // the page may have outlived its session
    const mine = known.uploads.find((one) => one.id === this.upload) ?? known.uploads.find((one) => this.fits(one));
    const remote = mine ?? (await this.announce());
    this.upload = remote.id;
    this.chunk = remote.chunk_bytes;
    const names = new Map<string, Named[]>();
    for (const item of this.files) names.set(mark(item.name, item.file.size), [...(names.get(mark(item.name, item.file.size)) ?? []), item]);
    this.ways = remote.files.flatMap((file) => {
      const item = names.get(mark(file.name, file.size))?.shift();
      return item === undefined ? [] : [{ id: file.id, item, sent: file.received }];
    });
    return mine === undefined ? 0 : this.share;
  }

  /** Whether an interrupted upload is of exactly these files. */
  private fits(remote: Remote): boolean {
    if (remote.state !== "receiving" || remote.files.length !== this.files.length) return false;
    if (remote.deidentify !== this.options.deidentify) return false;
    const theirs = remote.files.map((file) => mark(file.name, file.size)).sort();
    const ours = this.files.map((item) => mark(item.name, item.file.size)).sort();
    return theirs.every((one, k) => one === ours[k]);
  }

  private async announce(): Promise<Remote> {
    const files = this.files.map((item) => ({ name: item.name, size: item.file.size }));
    const body = JSON.stringify({ key: this.key, deidentify: this.options.deidentify, files });
    // It is not broken off: the server may have begun the upload already, and only its answer says which one it is.
    const answer = this.ask("POST", this.options.api, body, { "Content-Type": "application/json" }, null);
    this.announced = answer.then((remote) => (this.upload = (remote as Remote).id));
    this.announced.catch(() => null); // whoever asked is told
    return (await answer) as Remote;
  }

  private async sendFile(way: Way): Promise<void> {
    while (way.sent < way.item.file.size) {
      await this.patiently(async () => {
        const piece = await this.read(way);
        const headers: Record<string, string> = { "Content-Type": "application/octet-stream" };
        const digest = await sha256(piece);
        if (digest !== null) headers["X-Chunk-SHA256"] = digest;
        const url = `${this.options.api}/${this.upload}/files/${way.id}?offset=${way.sent}`;
        try {
          way.sent = ((await this.ask("PUT", url, piece, headers)) as { received: number }).received;
        } catch (error) {
          // An answer was lost on its way: the piece is there already, and the server says how far the file is.
          if (!(error instanceof Refused && error.status === 409 && error.body.received !== undefined)) throw error;
          way.sent = error.body.received;
        }
        this.report();
      });
    }
  }

  private async read(way: Way): Promise<ArrayBuffer> {
    try {
      return await way.item.file.slice(way.sent, way.sent + this.chunk).arrayBuffer();
    } catch {
      throw new Halt({ kind: "changed", said: way.item.name });
    }
  }

  private report(): void {
    const now = performance.now() / 1000;
    const sent = this.sent();
    this.marks = [...this.marks.filter((one) => one.at > now - RATE_SECONDS), { at: now, sent }];
    const first = this.marks[0];
    const rate = first !== undefined && now > first.at ? (sent - first.sent) / (now - first.at) : 0;
    this.onProgress(sent, rate);
  }

  /** Do something again and again while the connection, or the server, is away. */
  private async patiently<T>(action: () => Promise<T>): Promise<T> {
    for (let tries = 0; ; tries += 1) {
      if (this.aborter.signal.aborted) throw new Halt({ kind: "paused", said: "" });
      try {
        return await action();
      } catch (error) {
        if (error instanceof Halt) throw error;
        if (this.aborter.signal.aborted) throw new Halt({ kind: "paused", said: "" });
        if (error instanceof Refused && !passing(error)) throw new Halt(troubleOf(error));
        const wait = WAITS[Math.min(tries, WAITS.length - 1)] ?? 30;
        this.onWait(wait);
        await this.sleep(wait);
      }
    }
  }

  private sleep(seconds: number): Promise<void> {
    return new Promise((good) => {
      const timer = window.setTimeout(good, 1000 * seconds);
      const wake = (): void => {
        window.clearTimeout(timer);
        good();
      };
      this.aborter.signal.addEventListener("abort", wake, { once: true });
      window.addEventListener("online", wake, { once: true });
    });
  }

  private async ask(
    method: string,
    url: string,
    body?: BodyInit,
    extra: Record<string, string> = {},
    signal: AbortSignal | null = this.aborter.signal,
  ): Promise<unknown> {
    const headers: Record<string, string> = { Accept: "application/json", ...extra };
    if (method !== "GET") headers["X-CSRFToken"] = this.token;
    const request: RequestInit = { method, headers, signal };
    const answer = await fetch(url, body === undefined ? request : { ...request, body });
    const said = (await answer.json().catch(() => ({}))) as object;
    if (!answer.ok) throw new Refused(answer.status, said);
    return said;
  }
}

/** Whether a refusal is of the moment: the server restarts, is busy, or the piece was changed on its way. */
function passing(error: Refused): boolean {
  return error.status === 422 || error.status === 429 || error.status === 502 || error.status === 503 || error.status === 504;
}

function troubleOf(error: Refused): Trouble {
  return { kind: error.status === 401 ? "logged-out" : "failed", said: error.message };
}

function mark(name: string, size: number): string {
  return `${name.replace(/\\/g, "/").replace(/^\/+|\/+$/g, "")}\u0000${size}`;
}

/** Browsers have digests on https and on this machine only; elsewhere pieces go without. */
async function sha256(data: ArrayBuffer): Promise<string | null> {
  if (!window.isSecureContext) return null;
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", data));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** A random UUID (RFC 9562, version 4); `crypto.randomUUID` is for secure contexts alone. */
function newKey(): string {
  const raw = crypto.getRandomValues(new Uint8Array(16));
  raw[6] = ((raw[6] ?? 0) & 0x0f) | 0x40;
  raw[8] = ((raw[8] ?? 0) & 0x3f) | 0x80;
  const hex = Array.from(raw, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join("-");
}
