import { one } from "../common/dom";
import { AnswerForms } from "../reading/answers";
import { room as data, t } from "../reading/data";
import { Keys } from "../reading/keys";
import { press, setUpHelp, setUpPanel, setUpSource } from "../reading/panel";
import { Panes } from "../reading/plain";
import type { Rich } from "../reading/rich";
import { Room } from "../reading/state";

const live = one("#live", HTMLElement);
const note = one("#state", HTMLElement);
const room = new Room(data, (text) => {
  live.textContent = text;
});
const panes = new Panes(room);
let rich: Rich | null = null;

setUpPanel(room);
const keys = new Keys(room, { help: setUpHelp(), source: setUpSource(room), turn: (across, up) => rich?.turn(across, up) ?? false });
const switchOf = press("#keys", () => {
  keys.on = !keys.on;
  switchOf.setAttribute("aria-pressed", String(keys.on));
  live.textContent = t(keys.on ? "said.keys-on" : "said.keys-off");
});
new AnswerForms();
document.documentElement.dataset["room"] = "plain";
void enrich();

/** Load NiiVue once the page is there and readable; stay with the server's pictures when that is not to be. */
async function enrich(): Promise<void> {
  const asked = new URLSearchParams(location.search);
  if (asked.get("plain") === "1") return;
  if (!hasWebGl(asked.get("rich") === "1")) {
    note.textContent = t("no-webgl");
    return;
  }
  const bytes = Object.entries(data.facts.files).reduce((sum, [name, size]) => (/^map/.test(name) ? sum : sum + size), 0);
  note.textContent = t("loading", { size: `${(bytes / 1e6).toFixed(0)}\u00a0MB` });
  try {
    const { Rich: Viewer } = await import("../reading/rich");
    rich = await Viewer.start(room, () => giveUp(t("lost")));
    panes.draw(false);
    press("#reset", () => rich?.reset());
    note.textContent = "";
    live.textContent = t("loaded");
    document.documentElement.dataset["room"] = "rich";
  } catch (error) {
    giveUp(t("failed", { reason: error instanceof Error ? error.message : String(error) }));
  }
}

function giveUp(reason: string): void {
  rich?.stop();
  rich = null;
  document.getElementById("flat")?.remove();
  one(".pane.solid", HTMLElement).hidden = true;
  one("#reset", HTMLElement).hidden = true;
  panes.draw(true);
  note.textContent = reason;
  document.documentElement.dataset["room"] = "plain";
}

/** Whether a graphics card draws volumes here; `force` takes a browser that says of itself that it is slow at it. */
function hasWebGl(force: boolean): boolean {
  const context = document.createElement("canvas").getContext("webgl2", { failIfMajorPerformanceCaveat: !force });
  context?.getExtension("WEBGL_lose_context")?.loseContext();
  return context !== null;
}
