// The page of one device: all that is known of it, its scores as they come, and commands as texts to sign.

import { Chart } from "./chart.js";
import { ago, bytes, element, number, pairs, pill, reason, table, when } from "./words.js";

const LOOKS = { critical: "critical", warning: "warning", info: "accent", success: "good", failed: "critical", rejected: "critical", rolled_back: "warning", expired: "warning", running: "accent", accepted: "accent", blocked: "warning" };

export function device(box, id, now) {
  const part = (title) => {
    const body = element("div");
    return { body, card: element("div", { className: "card" }, [element("h2", {}, title), body]) };
  };
  const parts = {
    title: { body: element("div", { className: "title" }) },
    scores: part("Scores"), alarms: part("Alarms"), health: part("Health"), models: part("Models"),
    outbox: part("Outbox and losses"), config: part("Configuration"), plans: part("Rollouts"), log: part("Events, results, losses"),
    command: part("Send a command"),
  };
  const { title, scores, plans, log, command: send, ...others } = parts;
  box.replaceChildren(
    element("p", {}, [element("a", { href: "#/" }, "← all devices")]),
    title.body,
    element("div", { className: "cards" }, [scores.card]),
    element("div", { className: "columns" }, Object.values(others).map((one) => one.card)),
    element("div", { className: "cards" }, [plans.card, log.card, send.card]),
  );
  title.body.append(element("h2", {}, id));
  parts.scores.body.textContent = "Waiting for the first score …";
  command(parts.command.body, id);
  const charts = new Map();
  let last = null;
  const events = new EventSource(`events?device=${encodeURIComponent(id)}`);
  events.addEventListener("device", (event) => {
    last = JSON.parse(event.data);
    show(parts, id, last, now);
  });
  events.addEventListener("scores", (event) => {
    for (const [pipeline, points] of Object.entries(JSON.parse(event.data))) {
      if (!charts.has(pipeline)) charts.set(pipeline, chart(parts.scores.body, pipeline, charts.size === 0));
      const { line, words } = charts.get(pipeline);
      line.add(points);
      words.textContent = line.words();
    }
  });
  events.addEventListener("error", () => {
    if (!last) title.body.replaceChildren(element("h2", {}, id), pill("not known here", "critical"));
  });
  const timer = setInterval(() => last && heading(title.body, id, last, now), 1000);
  return {
    close() {
      events.close();
      clearInterval(timer);
    },
  };
}

function chart(box, pipeline, first) {
  if (first) box.replaceChildren();
  const canvas = element("canvas");
  canvas.setAttribute("role", "img");
  const words = element("span");
  box.append(
    element("h3", {}, [`${pipeline}: `, words]),
    canvas,
    element("p", { className: "legend" }, [
      element("span", {}, [element("i", { className: "key line" }), "score"]),
      element("span", {}, [element("i", { className: "key line dash" }), "threshold"]),
      "last five minutes, since this page was opened",
    ]),
  );
  return { line: new Chart(canvas), words };
}

function heading(box, id, d, now) {
  const look = d.state === "online" ? (d.health?.degraded.length ? "warning" : "good") : d.state === "offline" ? "critical" : "";
  const word = d.state === "online" && d.health?.degraded.length ? "degraded" : d.state;
  const heard = d.heard_ms ? `heard ${ago(now() - d.heard_ms)} ago` : "nothing live heard yet";
  box.replaceChildren(
    element("h2", {}, id), pill(word, look),
    element("span", { className: "quiet" }, `kentledge ${d.version || "?"} · ${heard} · ${d.state} since ${when(d.state_ts)}`),
  );
}

function show(parts, id, d, now) {
  heading(parts.title.body, id, d, now);
  if (!d.follows) parts.scores.body.textContent = "Too many devices are followed at the moment: close other pages of devices.";
  const alarms = Object.entries(d.alarms).map(([name, a]) => [
    pill(a.phase === "raised" ? a.severity : a.phase, a.phase === "raised" ? LOOKS[a.severity] : ""),
    name, a.of, a.value?.toPrecision(4), a.level?.toPrecision(4), a.peak?.toPrecision(4), when(a.ts),
  ]);
  put(parts.alarms, alarms.length ? table(["", "Alarm", "Of", "Value#", "Limit#", "Peak#", "Since"], alarms) : "None is raised.");
  const h = d.health;
  const degraded = h?.degraded ?? [];
  put(parts.health, !h ? "No up/h yet: it comes once a minute." : element("div", {}, [
    degraded.length ? element("ul", { className: "plain warning-text" }, degraded.map((text) => element("li", {}, text))) : element("p", {}, "Healthy."),
    pairs([["running for", ago(h.uptime_s * 1000)], ["memory", bytes(h.rss_kib * 1024)], ["clock", clock(d.clk)],
      ["disk", h.disk_ok ? "can be written" : "CANNOT be written"], ["models serving", `${h.models_serving} of ${h.models}`]]),
  ]));
  const slots = Object.entries(d.reported.models).map(([name, m]) => {
    const slot = (s) => (s.version ? `${s.version} (${s.state})` : s.state) + (s.why ? `: ${s.why}` : "");
    return [name, m.serving, slot(m.a), slot(m.b)];
  });
  put(parts.models, element("div", {}, [
    d.serving.length ? table(["Pipeline", "Model", "Slot"], d.serving.map((s) => [s.pipeline, s.model + (s.unsigned ? " (unsigned)" : ""), s.slot])) : "No model serves.",
    slots.length ? table(["Model", "Serving", "Slot a", "Slot b"], slots) : "",
  ]));
  put(parts.outbox, !h ? "No up/h yet." : pairs([
    ["records in RAM", number(h.ram_records)], ["records stored", `${number(h.stored_records)}, ${bytes(h.stored_bytes)}`],
    ["records delivered", `${number(h.delivered)} since the start`], ["records lost", `${number(h.lost)} ever`],
  ]));
  const r = d.reported;
  put(parts.config, element("div", {}, [pairs([
    ["remote layer", r.digest ? r.digest.slice(0, 19) + "…" : "none"], ["desired version", r.version || "none"],
    ["state", r.state + (r.text ? `: ${r.text}` : "")], ["streams", d.streams.join(", ")],
  ]), ...(r.set_aside.length ? [element("p", { className: "warning-text" }, `set aside: ${r.set_aside.join("; ")}`)] : [])]));
  const plans = Object.entries(d.plans).map(([name, p]) => [name, p.seq, pill(p.state, LOOKS[p.state] ?? ""), p.wave, [reason(p.why), p.text].filter(Boolean).join(": "), when(p.since)]);
  put(parts.plans, plans.length ? table(["Plan", "Sequence#", "State", "Wave#", "Why", "Since"], plans) : "None.");
  const log = [...d.log].reverse().map((line) => [when(line.ts), line.kind, line.what, pill(line.state, LOOKS[line.state] ?? ""), line.text]);
  put(parts.log, log.length ? table(["Time (UTC)", "", "What", "", "Text"], log) : "Nothing yet: events are shown from now on.");
}

const clock = (clk) => ({ sync: "synchronised", hold: "set, not confirmed now", unset: "NOT set" })[clk] ?? "?";
const put = (part, content) => part.body.replaceChildren(content);

// A command is a text that the holder of a key signs; the signed file comes back here.
function command(box, id) {
  const kind = element("select", {}, ["restart", "reboot", "config.set", "model.install", "model.rollback", "model.calibrate", "alarm.ack", "log.pull", "os.install"].map((name) => element("option", {}, name)));
  const issuer = element("input", { value: "ops", size: 10 });
  const args = element("input", { value: "{}", size: 40, spellcheck: false });
  const made = element("div");
  const form = element("form", {}, [
    element("label", {}, ["Command", kind]), element("label", {}, ["Key (issuer)", issuer]), element("label", {}, ["Arguments, JSON", args]),
    element("button", {}, "Show the text to sign"),
  ]);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      const asked = { to: id, type: kind.value, issuer: issuer.value, args: JSON.parse(args.value || "{}") };
      sign(made, await post("api/inner", asked), issuer.value);
    } catch (why) {
      made.replaceChildren(element("p", { className: "critical-text" }, why.message));
    }
  });
  box.append(element("p", { className: "quiet" }, "This page holds no key and sends nothing by itself. It shows a text; sign it with minisign where your key is, and bring the signature back."), form, made);
}

function sign(box, text, issuer) {
  const file = `${text.id}.json`;
  const save = element("a", { download: file, href: URL.createObjectURL(new Blob([text.signed])) }, `Save ${file}`);
  const signature = element("input", { type: "file", accept: ".minisig" });
  const said = element("p");
  said.setAttribute("role", "status");
  signature.addEventListener("change", async () => {
    try {
      const done = await post("api/signed", { signed: text.signed, sig: await signature.files[0].text() });
      said.className = "";
      said.textContent = `Sent as ${done.id}. The result appears above, under “Events, results, losses”.`;
    } catch (why) {
      said.className = "critical-text";
      said.textContent = why.message;
    }
  });
  box.replaceChildren(
    element("h3", {}, "1. Save the text"), element("pre", {}, text.signed), element("p", {}, [save]),
    element("h3", {}, "2. Sign it"), element("pre", {}, `minisign -S -s ${issuer}.sec -m ${file}`),
    element("h3", {}, "3. Send it with its signature"), element("label", {}, [`${file}.minisig `, signature]), said,
  );
}

async function post(path, body) {
  const answer = await fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  const read = await answer.json();
  if (!answer.ok) throw new Error(read.error);
  return read;
}
