// Numbers, times and elements.

export function element(name, members = {}, children = []) {
  const made = Object.assign(document.createElement(name), members);
  made.append(...(Array.isArray(children) ? children : [children]));
  return made;
}

export const number = (n) => Number(n ?? 0).toLocaleString("en");

export function ago(ms) {
  const s = Math.max(0, Math.round(ms / 1000));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 172800) return `${Math.floor(s / 3600)} h`;
  return `${Math.floor(s / 86400)} d`;
}

export const when = (ts) => (ts ? ts.replace("T", " ").replace(/(\.\d+)?Z$/, "") : "–");

export const bytes = (n) => (n >= 1 << 20 ? `${(n / (1 << 20)).toFixed(1)} MiB` : n >= 1024 ? `${(n / 1024).toFixed(0)} KiB` : `${n} B`);

export const pill = (word, look) => element("span", { className: `pill ${look}` }, word);

// Why a plan does not start on a device.
const REASONS = {
  gate: "the gate of its wave is closed", hold: "its wave's hold time", spread: "its moment in the wave", halted: "the plan is halted",
  link: "no connection that is old enough", clock: "its clock is not synchronised", key: "the plan's key is not trusted any more",
  cohort: "it left the cohort", busy: "another job runs", other_plan: "another plan runs", outside: "it is in no wave", expired: "the plan expired",
};
export const reason = (word) => REASONS[word] ?? word;

// Rows of cells as a table; a cell is a text or an element.
export function table(heads, rows) {
  const cells = (kind, row) => element("tr", {}, row.map((cell, i) => element(kind, { className: heads[i].endsWith("#") ? "num" : "" }, [cell ?? ""])));
  return element("table", {}, [
    element("thead", {}, [cells("th", heads.map((head) => head.replace("#", "")))]),
    element("tbody", {}, rows.map((row) => cells("td", row))),
  ]);
}

export const pairs = (list) => element("dl", {}, list.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, [value ?? "–"])]));
