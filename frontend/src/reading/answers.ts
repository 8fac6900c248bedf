import { all, filled, one } from "../common/dom";
import { room as data, t } from "./data";

interface Answer {
  readonly verdict: "accept" | "reject" | "correct";
  readonly fracture: boolean | null;
  readonly type: string | null;
  readonly comment: string;
  readonly by: string;
  readonly at: string;
}

interface Answers {
  readonly signed: { readonly by: string; readonly at: string } | null;
  readonly may_answer: boolean;
  readonly types: readonly string[];
  readonly levels: Readonly<Record<string, { readonly answer: Answer | null }>>;
}

const FRACTURE: Readonly<Record<string, boolean | null>> = { yes: true, no: false, unsure: null };

/** The readers' own answers: shown, filled in, sent. What was typed stays until the server has it. */
export class AnswerForms {
  private readonly forms: readonly HTMLFormElement[];

  constructor() {
    this.forms = all("form.answer", HTMLFormElement);
    for (const form of this.forms) {
      form.addEventListener("change", () => this.unfold(form));
      form.addEventListener("submit", (event) => {
        event.preventDefault();
        void this.save(form);
      });
    }
    void this.load();
  }

  private async load(): Promise<void> {
    try {
      const response = await fetch(data.answers, { headers: { Accept: "application/json" } });
      if (response.ok) this.fill((await response.json()) as Answers);
    } catch {
      // The page of answers, which needs no script, is linked below the forms.
    }
  }

  private fill(answers: Answers): void {
    for (const form of this.forms) {
      const level = form.dataset["level"] ?? "";
      if (level !== "patient") form.hidden = !document.querySelector(`.level[data-level="${level}"]:not([hidden])`);
      else form.hidden = false;
      this.offer(form, answers);
      this.show(form, answers.levels[level]?.answer ?? null, answers);
    }
  }

  /** The types that can be chosen. */
  private offer(form: HTMLFormElement, answers: Answers): void {
    const select = form.querySelector("select");
    if (!select || select.options.length > 1) return;
    for (const type of answers.types) select.add(new Option(typeName(type), type));
  }

  private show(form: HTMLFormElement, answer: Answer | null, answers: Answers): void {
    const level = form.dataset["level"] ?? "";
    const kept = one(".kept", HTMLElement, form);
    kept.textContent = answer
      ? t("answers.kept", { verdict: t(`answers.said-${answer.verdict}`), by: answer.by, at: moment(answer.at) })
      : t("answers.none");
    if (!answers.may_answer) kept.textContent += ` ${t("answers.may-not")}`;
    if (answers.signed) {
      kept.textContent += ` ${filled(t("answers.signed"), { by: answers.signed.by, at: moment(answers.signed.at) })}`;
    }
    for (const field of all("input, select, textarea, button", HTMLElement, form)) field.toggleAttribute("disabled", !answers.may_answer);
    if (answer) {
      check(form, "verdict", answer.verdict);
      const said = Object.entries(FRACTURE).find(([, value]) => value === answer.fracture)?.[0];
      if (answer.verdict === "correct" && said) check(form, "fracture", said);
      const select = form.querySelector("select");
      if (select) select.value = answer.type ?? "";
      one("textarea", HTMLTextAreaElement, form).value = answer.comment;
    }
    this.unfold(form);
    const tick = document.querySelector<HTMLElement>(`.level-list a[data-level="${level}"] .answered`);
    if (tick) {
      tick.hidden = answer === null;
      tick.textContent = answer ? `✓ ${t(`answers.said-${answer.verdict}`)}` : "";
    }
  }

  /** What is to be corrected appears with the wish to correct. */
  private unfold(form: HTMLFormElement): void {
    const said = new FormData(form);
    const correct = said.get("verdict") === "correct";
    one(".correction", HTMLElement, form).hidden = !correct;
    const kind = form.querySelector<HTMLElement>(".kind");
    if (kind) kind.hidden = said.get("fracture") !== "yes";
  }

  private async save(form: HTMLFormElement): Promise<void> {
    const button = one("button", HTMLButtonElement, form);
    const outcome = one(".outcome", HTMLElement, form);
    if (button.disabled) return;
    button.disabled = true;
    outcome.textContent = t("answers.saving");
    try {
      const response = await this.send(form);
      if (response.status === 401) throw new Error(t("answers.expired"));
      const said = (await response.json()) as Answers & { readonly message?: string };
      if (!response.ok) throw new Error(said.message ?? String(response.status));
      this.show(form, said.levels[form.dataset["level"] ?? ""]?.answer ?? null, said);
      outcome.textContent = t("answers.saved");
    } catch (error) {
      const reason = error instanceof TypeError ? t("answers.offline") : error instanceof Error ? error.message : "";
      outcome.textContent = t("answers.error", { reason });
    } finally {
      button.disabled = false;
    }
  }

  private async send(form: HTMLFormElement): Promise<Response> {
    const said = new FormData(form);
    const verdict = String(said.get("verdict") ?? "");
    const body: Record<string, unknown> = { level: form.dataset["level"], verdict, comment: String(said.get("comment") ?? "").trim() };
    if (verdict === "correct") {
      const fracture = FRACTURE[String(said.get("fracture") ?? "unsure")] ?? null;
      body["fracture"] = fracture;
      if (fracture) body["type"] = String(said.get("type") ?? "") || null;
    }
    const post = (token: string): Promise<Response> =>
      fetch(data.answers, {
        method: "POST",
        headers: { "Content-Type": "application/json", Accept: "application/json", "X-CSRFToken": token },
        body: JSON.stringify(body),
      });
    const first = await post(one('meta[name="csrf-token"]', HTMLMetaElement).content);
    if (first.status !== 400) return first;
    // The page stood open for long, or somebody logged in again in another tab: ask for a token of now.
    const answer = (await first.clone().json()) as { readonly error?: string };
    if (answer.error !== "csrf") return first;
    const session = await fetch("/api/session", { headers: { Accept: "application/json" } });
    return session.ok ? post(((await session.json()) as { csrf: string }).csrf) : session;
  }
}

function check(form: HTMLFormElement, name: string, value: string): void {
  const input = form.querySelector<HTMLInputElement>(`input[name="${name}"][value="${value}"]`);
  if (input) input.checked = true;
}

/** `dens-ii` as people write it. */
function typeName(type: string): string {
  return data.types[type] ?? type.split("-").map((part) => (/^i{1,3}$/.test(part) ? part.toUpperCase() : part)).join(" ");
}

function moment(iso: string): string {
  const when = new Date(iso);
  return Number.isNaN(when.valueOf()) ? iso : when.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
}
