// The page: one stream of events for the fleet, one more for the device that is open. It shows; it changes nothing.

import { List } from "./list.js";
import { device as devicePage } from "./device.js";
import { rollouts as rolloutsPage } from "./rollouts.js";
import { ago, element, number } from "./words.js";

const $ = (id) => document.getElementById(id);
const fleet = new Map();
let columns = [];
let skew = 0;
let state = { lost: null, plans: [] };
const filters = { tile: "all", cause: "", text: "", version: "", order: "attention" };

// ---- rows ----

function take(values) {
  const row = {};
  columns.forEach((name, i) => { row[name] = values[i]; });
  row.rank = rank(row);
  row.note = note(row);
  row.causes = causesOf(row);
  row.text = [row.id, row.state, row.version, row.models, row.alarm_names, row.problem, row.plans].join(" ").toLowerCase();
  fleet.set(row.id, row);
}

// What needs attention first.
function rank(row) {
  if (row.worst === 3) return 50;
  if (row.state === "offline") return 40;
  if (row.degraded) return 30;
  if (/failed|rolled_back/.test(row.plans)) return 25;
  if (row.worst === 2) return 20;
  if (row.state === "stopping" || row.state === "unknown") return 10;
  if (row.worst === 1) return 8;
  return row.backlog > 0 ? 5 : 0;
}

function note(row) {
  const parts = [];
  if (row.alarms) parts.push(`${["", "info", "warning", "critical"][row.worst]}: ${row.alarm_names}`);
  if (row.problem) parts.push(row.problem);
  if (/failed|rolled_back/.test(row.plans)) parts.push(`plan ${row.plans.replaceAll("rolled_back", "rolled back")}`);
  if (row.clk === "unset") parts.push("clock is not set");
  return parts.join(" · ");
}

// ---- overview ----

const TILES = [
  ["all", "devices", "", () => true],
  ["online", "online", "good", (row) => row.state === "online"],
  ["offline", "offline", "critical", (row) => row.state === "offline"],
  ["critical", "critical alarms", "critical", (row) => row.worst === 3],
  ["warning", "other alarms", "warning", (row) => row.worst === 1 || row.worst === 2],
  ["degraded", "degraded", "warning", (row) => row.degraded > 0],
  ["backlog", "with backlog", "", (row) => row.backlog > 0],
  ["clock", "clock not set", "warning", (row) => row.clk === "unset"],
];

const tiles = new Map(TILES.map(([name, label, look]) => {
  const tile = element("button", { type: "button", className: "tile" }, [element("b"), element("span", {}, label)]);
  tile.addEventListener("click", () => {
    filters.tile = filters.tile === name ? "all" : name;
    refresh();
  });
  $("tiles").append(tile);
  return [name, { tile, look }];
}));

// The same problem on many devices is one line: numbers in it do not count. Pairs of what is compared and what is shown.
const causesOf = (row) => [
  ...(row.alarm_names ? row.alarm_names.split(", ").map((name) => `alarm ${name}`) : []),
  ...(row.problem ? [row.problem] : []),
  ...(row.plans ? row.plans.split(", ").filter((plan) => /failed|rolled_back/.test(plan)).map((plan) => `plan ${plan.replace("_back", " back")}`) : []),
].map((text) => [text.replace(/\d[\d.,:]*/g, "#"), text]);

// What is counted in one walk over all devices.
function sums() {
  const [all, causes, versions] = [new Map(TILES.map(([name]) => [name, 0])), new Map(), new Map()];
  const count = (row) => {
    for (const [name, , , is] of TILES) if (is(row)) all.set(name, all.get(name) + 1);
    for (const [cause, sample] of row.causes) {
      const known = causes.get(cause);
      if (known) known.n += 1;
      else causes.set(cause, { n: 1, sample });
    }
    versions.set(row.version, (versions.get(row.version) || 0) + 1);
  };
  return { all, causes, versions, count };
}

function overview({ all, causes, versions }) {
  for (const [name, { tile, look }] of tiles) {
    const n = all.get(name);
    tile.firstChild.textContent = number(n);
    tile.className = `tile ${n ? look : ""}`;
    tile.setAttribute("aria-pressed", filters.tile === name && name !== "all");
  }
  const worst = [...causes].sort((a, b) => b[1].n - a[1].n).slice(0, 8);
  $("wrong").hidden = worst.length === 0;
  $("causes").replaceChildren(...worst.map(([cause, { n, sample }]) => {
    const button = element("button", { type: "button", title: sample }, [element("b", {}, number(n)), element("span", {}, sample)]);
    button.setAttribute("aria-pressed", filters.cause === cause);
    button.addEventListener("click", () => {
      filters.cause = filters.cause === cause ? "" : cause;
      refresh();
    });
    return element("li", {}, [button]);
  }));
  const known = [...versions].sort().map(([version, n]) => `${version}|${n}`).join();
  if ($("version").known !== known) {
    $("version").known = known;
    const options = [...versions].filter(([version]) => version).sort();
    $("version").replaceChildren(
      element("option", { value: "" }, "all"),
      ...options.map(([version, n]) => element("option", { value: version }, `${version} (${number(n)})`)),
    );
    $("version").value = filters.version;
  }
}

const ORDERS = {
  id: (a, b) => order(a.id, b.id),
  backlog: (a, b) => b.backlog - a.backlog || order(a.id, b.id),
  lost: (a, b) => b.lost - a.lost || order(a.id, b.id),
  version: (a, b) => order(a.version, b.version) || order(a.id, b.id),
  heard: (a, b) => (a.heard ?? 0) - (b.heard ?? 0) || order(a.id, b.id),
};
const order = (a, b) => (a < b ? -1 : a > b ? 1 : 0);

const list = new List($("list"), {
  height: () => (window.innerWidth <= 760 ? 56 : 34),
  make: (row) => {
    for (const name of ["id", "state", "note", "models", "backlog num", "lost num", "version quiet", "heard quiet"]) {
      const cell = element("span", { className: name });
      cell.setAttribute("role", "gridcell");
      row.append(cell);
    }
  },
  fill: (element, row) => {
    const [id, stateCell, noteCell, models, backlog, lost, version, heard] = element.children;
    id.textContent = row.id;
    pill(stateCell, row);
    noteCell.textContent = row.note;
    noteCell.className = `note ${row.worst === 3 ? "critical-text" : row.rank >= 20 ? "warning-text" : "quiet"}`;
    models.textContent = row.models;
    backlog.textContent = row.backlog ? number(row.backlog) : "";
    lost.textContent = row.lost ? number(row.lost) : "";
    version.textContent = row.version;
    heard.textContent = row.heard ? ago(Date.now() + skew - row.heard) : "–";
    element.title = row.note;
  },
  open: (row) => { location.hash = `#/device/${row.id}`; },
});

function pill(cell, row) {
  const [word, look] = row.state === "online" ? (row.degraded ? ["degraded", "warning"] : ["online", "good"])
    : row.state === "offline" ? ["offline", "critical"] : [row.state, ""];
  if (cell.shown !== word) {
    cell.shown = word;
    cell.replaceChildren(element("span", { className: `pill ${look}` }, word));
  }
}

// Whether a device passes the filters as they are now.
function wish() {
  const is = TILES.find(([name]) => name === filters.tile)[3];
  const words = filters.text.toLowerCase().split(/\s+/).filter(Boolean);
  const { version, cause } = filters;
  return (row) => is(row)
    && (!version || row.version === version)
    && words.every((word) => row.text.includes(word))
    && (!cause || row.causes.some(([of]) => of === cause));
}

// What needs attention first: by rank, then by id. Rows come nearly in the order of their ids, and sorting what is nearly sorted is
// fast; so each rank is sorted by itself.
function sorted(rows) {
  if (filters.order !== "attention") return rows.sort(ORDERS[filters.order]);
  const ranks = new Map();
  for (const row of rows) {
    const same = ranks.get(row.rank);
    if (same) same.push(row);
    else ranks.set(row.rank, [row]);
  }
  return [...ranks].sort(([a], [b]) => b - a).flatMap(([, same]) => same.sort(ORDERS.id));
}

// ---- work in slices: some milliseconds at a time, in order ----

const SLICE_MS = 8;
const work = [];
const wake = new MessageChannel();
wake.port1.onmessage = () => {
  const until = performance.now() + SLICE_MS;
  while (work.length && performance.now() < until) work.shift()();
  if (work.length) wake.port2.postMessage(0);
};
function after(act) {
  work.push(act);
  if (work.length === 1) wake.port2.postMessage(0);
}

// ---- drawing: at most four times a second, and never in the middle of something ----

let waiting = false;
let again = false;
let drawn = 0;
export function refresh() {
  again = waiting;
  if (waiting) return;
  waiting = true;
  setTimeout(() => requestAnimationFrame(draw), Math.max(0, 250 - (performance.now() - drawn)));
}

function draw() {
  again = false;
  const page = route();
  if (page === "devices") return walk();
  if (page === "rollouts") rolloutsPage($("rollouts"), state.plans || []);
  end();
}

// Counts and filters all devices, some hundreds in a task: the browser may answer the operator in between, also where other programs
// take the processor away for a while.
const EACH = 250;
function walk() {
  const [counted, is, found, rows] = [sums(), wish(), [], [...fleet.values()]];
  for (let from = 0; from < rows.length; from += EACH) {
    after(() => {
      for (const row of rows.slice(from, from + EACH)) {
        counted.count(row);
        if (is(row)) found.push(row);
      }
    });
  }
  after(() => overview(counted));
  after(() => {
    const all = sorted(found);
    after(() => {
      show(all);
      end();
    });
  });
}

function end() {
  const plans = state.plans || [];
  const [running, halted] = [plans.filter((plan) => plan.active).length, plans.filter((plan) => plan.halted && !plan.complete).length];
  $("rollout-count").hidden = running + halted === 0;
  $("rollout-count").className = `count ${halted ? "halted" : ""}`;
  $("rollout-count").textContent = halted ? `${halted} halted` : `${running} running`;
  waiting = false;
  drawn = performance.now();
  // Something changed in the meantime.
  if (again) refresh();
}

function show(rows) {
  list.show(rows);
  const bar = $("list").offsetWidth - $("list").clientWidth;
  document.querySelector(".heads").style.paddingRight = `${bar + 12}px`;
  const filtered = filters.tile !== "all" || filters.cause || filters.text || filters.version;
  $("clear").hidden = !filtered;
  $("shown").textContent = filtered ? `${number(rows.length)} of ${number(fleet.size)}` : `${number(rows.length)} devices`;
}

// ---- pages ----

let open = null;
let wanted = null;
let turned = false;
function route() {
  const [, page, ...rest] = decodeURI(location.hash).split("/");
  return page === "device" && rest.length === 2 ? "device" : page === "rollouts" ? "rollouts" : "devices";
}

function turn() {
  const page = route();
  for (const name of ["devices", "device", "rollouts"]) $(name).hidden = name !== page;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.dataset.page === page) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  open?.close();
  open = null;
  if (page === "device") {
    const id = decodeURI(location.hash).split("/").slice(2).join("/");
    document.title = `${id} · Kentledge fleet`;
    open = devicePage($("device"), id, () => Date.now() + skew);
    $("main").focus({ preventScroll: true });
  } else {
    document.title = "Kentledge fleet";
    if (page === "devices") (wanted ?? (turned ? $("list") : null))?.focus({ preventScroll: true });
    wanted = null;
  }
  turned = true;
  refresh();
}

// ---- events ----

function listen() {
  const events = new EventSource("events");
  // The browser may hand over many events at once: they wait as text.
  const on = (kind, act) => events.addEventListener(kind, (event) => after(() => act(JSON.parse(event.data))));
  on("begin", (begin) => {
    columns = begin.columns;
    skew = begin.now - Date.now();
    fleet.clear();
  });
  on("rows", (rows) => {
    // Before what waits already: in order.
    const parts = [];
    for (let i = 0; i < rows.length; i += 50) parts.push(() => rows.slice(i, i + 50).forEach(take));
    work.unshift(...parts);
    refresh();
  });
  on("whole", () => after(() => {
    document.body.dataset.whole = fleet.size;
    refresh();
  }));
  on("state", (now) => {
    state = now;
    skew = now.now - Date.now();
    connection(state.lost && `no connection to the broker: ${state.lost}`);
    refresh();
  });
  events.addEventListener("error", () => connection("the console does not answer; trying again"));
}

function connection(bad) {
  $("link").textContent = bad || "live";
  $("link").className = bad ? "bad" : "";
}

// ---- the operator ----

$("search").addEventListener("input", (event) => { filters.text = event.target.value; refresh(); });
$("version").addEventListener("change", (event) => { filters.version = event.target.value; refresh(); });
$("order").addEventListener("change", (event) => { filters.order = event.target.value; refresh(); });
$("clear").addEventListener("click", () => {
  Object.assign(filters, { tile: "all", cause: "", text: "", version: "" });
  $("search").value = "";
  $("version").value = "";
  refresh();
});
$("search").addEventListener("keydown", (event) => {
  if (event.key === "ArrowDown" || event.key === "Enter") {
    $("list").focus();
    list.go(0);
    event.preventDefault();
  }
});
document.addEventListener("keydown", (event) => {
  const typing = /INPUT|TEXTAREA|SELECT/.test(event.target.tagName);
  if (event.key === "/" && !typing) {
    if (route() === "devices") {
      $("search").focus();
    } else {
      wanted = $("search");
      location.hash = "#/";
    }
    event.preventDefault();
  }
  if (event.key === "Escape") {
    if (typing) event.target.blur();
    else if (route() !== "devices") location.hash = "#/";
  }
});
const THEMES = ["auto", "light", "dark"];
function theme(name) {
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  $("theme").textContent = `Theme: ${name}`;
  localStorage.setItem("theme", name);
}
$("theme").addEventListener("click", () => {
  theme(THEMES[(THEMES.indexOf(localStorage.getItem("theme") || "auto") + 1) % THEMES.length]);
});
theme(localStorage.getItem("theme") || "auto");

window.addEventListener("hashchange", turn);
// Ages of what is shown.
setInterval(refresh, 5000);
turn();
listen();
