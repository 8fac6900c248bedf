// @ts-check
// What makes every page a little nicer; each page works without. Words come with the elements, as data-* attributes.

/** Moments in the reader's own zone; the machine-readable one stays in `datetime`. */
for (const time of document.querySelectorAll("time[datetime]")) {
  const moment = new Date(time.getAttribute("datetime") ?? "");
  if (Number.isNaN(moment.getTime())) continue;
  time.setAttribute("title", time.textContent ?? "");
  time.textContent = moment.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
}

/** A button beside what is to be copied: links and keys that are shown once. */
for (const secret of document.querySelectorAll("[data-copy]")) {
  if (!navigator.clipboard) break; // only over https, and on this machine
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = secret.getAttribute("data-copy");
  const row = document.createElement("span");
  row.className = "shown";
  secret.replaceWith(row);
  row.append(secret, button);
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(secret.textContent ?? "");
    button.textContent = secret.getAttribute("data-copied");
  });
}

/** A password can be looked at while it is typed. */
for (const input of document.querySelectorAll("input[data-show]")) {
  if (!(input instanceof HTMLInputElement)) continue;
  const button = document.createElement("button");
  button.type = "button";
  button.className = "quiet";
  button.textContent = input.dataset.show ?? "";
  button.setAttribute("aria-controls", input.id);
  const row = document.createElement("span");
  row.className = "peek";
  input.replaceWith(row);
  row.append(input, button);
  if (input.autofocus) input.focus();
  button.addEventListener("click", () => {
    const hidden = input.type === "text";
    input.type = hidden ? "password" : "text";
    button.textContent = (hidden ? input.dataset.show : input.dataset.hide) ?? "";
  });
  // Managers of passwords look for fields of this type when a form is sent.
  input.form?.addEventListener("submit", () => (input.type = "password"));
}

/** One press sends a form once: a second one, before the next page is there, does nothing. */
document.addEventListener("submit", (event) => {
  const form = event.target;
  if (!(form instanceof HTMLFormElement) || form.method !== "post" || event.defaultPrevented) return;
  if (form.dataset.sent) event.preventDefault();
  form.dataset.sent = "yes";
  setTimeout(() => delete form.dataset.sent, 3000); // a download leaves the page where it is
});
// Coming back to a page that the browser kept, forms can be sent again.
addEventListener("pageshow", () => {
  for (const form of document.forms) delete form.dataset.sent;
});
