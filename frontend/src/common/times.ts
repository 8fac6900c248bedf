/** Moments in the reader's own zone: the time of today, the day of the rest. */
export function localTimes(root: ParentNode): void {
  const today = new Date().toDateString();
  for (const element of root.querySelectorAll<HTMLTimeElement>("time[datetime]")) {
    const moment = new Date(element.dateTime);
    const format: Intl.DateTimeFormatOptions =
      moment.toDateString() === today
        ? { hour: "2-digit", minute: "2-digit" }
        : { day: "numeric", month: "short", year: "numeric" };
    element.textContent = moment.toLocaleString(document.documentElement.lang, format);
    element.title = moment.toLocaleString(document.documentElement.lang);
  }
}
