// Rollouts: a card for each plan, a bar for each wave.

import { element, number, pairs, pill, reason, table, when } from "./words.js";

const STATES = ["success", "running", "blocked", "waiting", "rolled_back", "failed", "skipped", "none"];
const NAMES = { rolled_back: "rolled back", none: "not reported" };

// Failures that are shown at once.
const SHOWN = 8;

let shown = "";
export function rollouts(box, plans) {
  const now = JSON.stringify(plans);
  if (now === shown) return;
  shown = now;
  if (!plans.length) {
    box.replaceChildren(element("div", { className: "card" }, [
      element("h2", {}, "Rollouts"),
      element("p", {}, "There is no plan at the broker."),
      element("pre", {}, "kentledge-fleet plan make model pump-anomaly-1.3.0.kmb --to plant/_all --waves 1,10,100"),
    ]));
    return;
  }
  box.replaceChildren(
    element("p", { className: "legend" }, STATES.map((state) => element("span", {}, [element("i", { className: `key s-${state}` }), NAMES[state] ?? state]))),
    ...plans.map(card),
  );
}

function card(plan) {
  const status = plan.halted ? pill("HALTED", "critical") : plan.expired ? pill("expired", "warning") : plan.active ? pill("running", "accent") : plan.complete ? pill("done", "good") : pill("no wave is open", "");
  const failed = plan.failures.map((f) => [element("a", { href: `#/device/${f.device}` }, f.device), f.wave, pill(f.state.replace("_", " "), f.state === "failed" ? "critical" : "warning"), f.why]);
  const l = plan.limits;
  return element("div", { className: "card plan" }, [
    element("div", { className: "title" }, [element("h2", {}, plan.name), status, element("span", { className: "quiet" }, `${plan.kind}: ${plan.what} · to ${plan.to}`)]),
    ...plan.waves.map((wave) => bar(wave, l)),
    pairs([
      ["limits", `halts when more than ${percent(l.failed_max)} of a wave fail; waits while more than ${percent(l.offline_max)} are offline${l.concurrent_max ? `; at most ${number(l.concurrent_max)} at a time` : ""}`],
      ["signed", `${when(plan.issued)} by ${plan.issuer}, sequence ${plan.seq}; no device starts after ${when(plan.expires_at)} (UTC)`],
      ...(plan.outside ? [["outside", `${number(plan.outside)} devices are in no wave`]] : []),
      ...(plan.reasons.length ? [["not started", plan.reasons.map(([why, n]) => `${number(n)}: ${reason(why)}`).join(" · ")]] : []),
    ]),
    failed.length ? element("div", {}, [
      element("h3", {}, `Failed: ${number(sum(plan, "failed") + sum(plan, "rolled_back"))}`),
      table(["Device", "Wave#", "State", "Why"], failed.slice(0, SHOWN)),
      failed.length > SHOWN ? element("details", {}, [element("summary", {}, "more of them"), table(["Device", "Wave#", "State", "Why"], failed.slice(SHOWN))]) : "",
    ]) : "",
  ]);
}

const sum = (plan, state) => plan.waves.reduce((n, wave) => n + (wave.counts[state] ?? 0), 0);
const percent = (share) => `${+(share * 100).toFixed(2)} %`;

function bar(wave, limits) {
  const total = Math.max(1, wave.devices);
  const parts = STATES.filter((state) => wave.counts[state]).map((state) => {
    const part = element("i", { className: `s-${state}`, title: `${NAMES[state] ?? state}: ${wave.counts[state]}` });
    part.style.width = `${(100 * wave.counts[state]) / total}%`;
    return part;
  });
  const words = STATES.filter((state) => wave.counts[state]).map((state) => `${number(wave.counts[state])} ${NAMES[state] ?? state}`).join(", ");
  const bad = (wave.counts.failed ?? 0) + (wave.counts.rolled_back ?? 0);
  const line = element("div", { className: "bar" }, parts);
  line.setAttribute("role", "img");
  line.setAttribute("aria-label", words || "no device");
  return element("div", { className: "wave" }, [
    element("span", {}, [element("b", {}, `Wave ${wave.wave}`), ` to ${percent(wave.share)} `, pill(wave.open ? "open" : "closed", wave.open ? "accent" : "")]),
    element("div", {}, [line, element("small", { className: bad / total > limits.failed_max ? "critical-text" : "quiet" }, words || "no device")]),
    element("span", { className: "quiet" }, `${number(wave.devices)} devices${wave.devices > wave.online ? `, ${number(wave.devices - wave.online)} offline` : ""}`),
  ]);
}
