// The upload page: files, folders and zips are sent in pieces, and go on after whatever happens in between. The plain
// form that the page is made of does the same in one piece, without this script.
import { all, dataBlock, filled, one } from "../common/dom";
import { filesOf, named, type Named } from "../upload/files";
import { follow } from "../upload/jobs";
import { Sender, type Trouble } from "../upload/sender";
import { bytes, left, share } from "../upload/words";

const texts = dataBlock("strings") as Record<string, string>;

function text(key: string, values: Record<string, string | number> = {}): string {
  return filled(texts[`uploads.script.${key}`] ?? key, values);
}

class UploadPage {
  private readonly form = one("#upload", HTMLFormElement);
  private readonly drop = one("#drop", HTMLElement);
  private readonly card = one("#sending", HTMLElement);
  private readonly title = one("#sending-title", HTMLElement);
  private readonly bar = one("#sending-bar", HTMLProgressElement);
  private readonly line = one("#sending-text", HTMLElement);
  private readonly trouble = one("#sending-trouble", HTMLElement);
  private readonly login = one("#sending-login", HTMLAnchorElement);
  private readonly goOn = one("#sending-continue", HTMLButtonElement);
  private readonly pause = one("#sending-pause", HTMLButtonElement);
  private readonly cancel = one("#sending-cancel", HTMLButtonElement);
  private readonly before = one("#trouble", HTMLElement);
  private sender: Sender | null = null;
  private done = false;

  constructor() {
    const files = one("#files", HTMLInputElement);
    const folder = one("#folder", HTMLInputElement);
    one("#plain", HTMLElement).hidden = true;
    one("#plain-send", HTMLElement).hidden = true;
    one("#pick", HTMLElement).hidden = false;
    one("#drop-text", HTMLElement).hidden = false;
    one("#pick-files", HTMLButtonElement).addEventListener("click", () => files.click());
    one("#pick-folder", HTMLButtonElement).addEventListener("click", () => folder.click());
    for (const input of [files, folder]) {
      input.addEventListener("change", () => {
        const chosen = named(input.files);
        if (chosen.length > 0) void this.begin(chosen);
        else this.say(text("no-files"));
      });
    }
    this.form.addEventListener("submit", (event) => event.preventDefault());
    this.takeDrops();
    this.pause.addEventListener("click", () => this.sender?.stop());
    this.goOn.addEventListener("click", () => void this.send());
    this.cancel.addEventListener("click", () => void this.giveUp());
    window.addEventListener("beforeunload", (event) => {
      if (this.sender !== null && !this.done) event.preventDefault();
    });
  }

  private takeDrops(): void {
    // A file that misses the box would be opened by the browser, and the page would be gone.
    for (const kind of ["dragover", "drop"]) window.addEventListener(kind, (event) => event.preventDefault());
    this.drop.addEventListener("dragover", () => this.drop.classList.add("over"));
    this.drop.addEventListener("dragleave", () => this.drop.classList.remove("over"));
    this.drop.addEventListener("drop", (event) => {
      this.drop.classList.remove("over");
      const data = event.dataTransfer;
      if (data === null || this.sender !== null) return;
      this.say(text("reading"), false);
      void filesOf(data).then((found) => (found.length > 0 ? this.begin(found) : this.say(text("no-files"))));
    });
  }

  private say(words: string, trouble = true): void {
    this.before.textContent = words;
    this.before.hidden = words === "";
    this.before.classList.toggle("alert", trouble);
  }

  /** What is wrong with the files before anything is sent; empty when nothing is. */
  private wrong(files: readonly Named[]): string {
    const limit = (name: string): number => Number(this.form.dataset[name]);
    const most = limit("fileBytes");
    const large = files.find((item) => item.file.size > most);
    if (large !== undefined) {
      return text("too-large", { name: large.name, size: bytes(large.file.size), most: bytes(most) });
    }
    const size = files.reduce((sum, item) => sum + item.file.size, 0);
    const whole = limit("uploadBytes");
    if (size > whole) return text("upload-too-large", { size: bytes(size), most: bytes(whole) });
    const count = limit("files");
    return files.length > count ? text("too-many", { count: files.length, most: count }) : "";
  }

  private async begin(files: readonly Named[]): Promise<void> {
    if (this.sender !== null) return; // a second click, or a second drop
    const wrong = this.wrong(files);
    this.say(wrong);
    if (wrong !== "") return;
    const size = files.reduce((sum, item) => sum + item.file.size, 0);
    const box = document.querySelector("#deidentify");
    this.sender = new Sender(files, {
      api: this.form.dataset["api"] ?? "",
      deidentify: box instanceof HTMLInputElement && box.checked,
      token: one('input[name="csrf_token"]', HTMLInputElement, this.form).value,
    });
    this.sender.onProgress = (sent, rate) => this.show(sent, size, rate);
    this.sender.onWait = (seconds) => {
      this.line.textContent = text("offline", { count: seconds });
    };
    this.title.textContent = text(files.length === 1 ? "chosen.one" : "chosen.other", { count: files.length, size: bytes(size) });
    this.form.hidden = true;
    this.card.hidden = false;
    await this.send();
  }

  private async send(): Promise<void> {
    const sender = this.sender;
    if (sender === null) return;
    this.trouble.hidden = this.login.hidden = this.goOn.hidden = true;
    this.pause.hidden = false;
    const end = await sender.run((found) => {
      this.line.textContent = text("resuming", { share: share(found) });
    });
    if (end.kind === "done") {
      this.done = true;
      this.line.textContent = text("finishing");
      window.location.assign(`${this.form.dataset["show"]}/${end.upload}`);
    } else if (end.kind !== "cancelled") {
      this.halt(end, sender.share);
    }
  }

  /** Stopped, with nothing lost: say why, and offer to go on. */
  private halt(why: Trouble, done: number): void {
    const words = {
      paused: text("paused", { share: share(done) }),
      "logged-out": text("logged-out"),
      changed: text("changed", { name: why.said }),
      failed: text("failed", { why: why.said }),
    }[why.kind];
    this.trouble.textContent = words;
    this.trouble.hidden = false;
    this.trouble.classList.toggle("alert", why.kind !== "paused");
    this.login.hidden = why.kind !== "logged-out";
    this.pause.hidden = true;
    this.goOn.hidden = why.kind === "changed";
    if (!this.goOn.hidden) this.goOn.focus();
  }

  private async giveUp(): Promise<void> {
    this.done = true;
    const sender = this.sender;
    this.sender = null;
    await sender?.discard();
    this.card.hidden = true;
    this.form.hidden = false;
    this.done = false;
    for (const input of all('input[type="file"]', HTMLInputElement, this.form)) input.value = "";
    this.say(text("cancelled"), false);
  }

  private show(sent: number, size: number, rate: number): void {
    this.bar.value = size > 0 ? sent / size : 1;
    const words = text("sending", { done: bytes(sent), size: bytes(size), rate: bytes(rate) });
    const time = rate > 0 ? left((size - sent) / rate) : null;
    this.line.textContent = time === null ? words : text(time.key, { text: words, count: time.count });
  }
}

/** A page that waits until an upload has been looked at. */
function watch(box: HTMLElement): void {
  const ask = async (): Promise<void> => {
    try {
      const answer = await fetch(box.dataset["api"] ?? "", { headers: { Accept: "application/json" } });
      if (answer.status === 401 || answer.status === 404) window.location.reload();
      const said = (await answer.json()) as { state?: string };
      if (answer.ok && said.state !== box.dataset["state"]) window.location.reload();
    } catch {
      // The connection is away; the next question may get through.
    }
  };
  window.setInterval(() => void ask(), 1000);
}

if (document.querySelector("#upload") !== null) new UploadPage();
for (const box of all("#watch", HTMLElement)) watch(box);
for (const list of all("#jobs", HTMLElement)) follow(list);
