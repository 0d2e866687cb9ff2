// @ts-check
/** The overview: what is wrong, rates, latencies, memory, and who reads too slowly; asked for once a second. */

import { h, table } from "./dom.js";
import { bytes, duration, short, whole } from "./format.js";
import { Plot } from "./plot.js";
import { repeat, snapshot } from "./session.js";

/** @typedef {Record<string, number>} Second */

const SECONDS = 300;

/** Rows of one second each, ascending; kept when another view is shown. @type {Second[]} */
let seconds = [];
let run = 0;

/** @type {[string, string][]} */
const READERS = [
  ["connection", "number"], ["who", "name"], ["reads", "name"], ["behind", "number"], ["for", "number"],
  ["queued", "number"],
];

/**
 * Show it.
 *
 * @param {HTMLElement} main
 */
export function overviewView(main) {
  const tiles = h("div.tiles");
  const wrong = h("section.card", { "aria-live": "polite" }, h("p.soft", {}, "Looking …"));
  const readers = h("div");
  const rates = new Plot("Messages a second", ["in", "out"], (value) => short(value));
  const latencies = new Plot("Latency, 99 of 100 below", ["commit", "delivery", "loop"], duration);
  const memory = new Plot("Memory of the process", ["resident"], bytes, 1024);
  const groups = new Plot("Commits a second", ["groups"], (value) => short(value));
  const plots = [rates, latencies, memory, groups];
  main.append(h("div.stack", {}, wrong, tiles, h("div.plots", {}, plots.map((plot) => plot.element)),
    h("section.card", {}, h("header", {}, h("h2", {}, "Readers that lag")), readers)));

  function draw() {
    const samples = (/** @type {(now: Second, before: Second | undefined) => (number | null)[]} */ values) =>
      seconds.map((each, i) => ({ timeUs: each.time_us, values: values(each, seconds[i - 1]) }));
    rates.show(samples((a, b) => [rate(a, b, "records_in"), rate(a, b, "records_out")]));
    latencies.show(samples((a) => [a.commit_p99_us, a.delivery_p99_us, a.loop_lag_p99_us]));
    memory.show(samples((a) => [a.memory_bytes]));
    groups.show(samples((a, b) => [rate(a, b, "groups")]));
  }

  async function ask() {
    try {
      const begunMs = performance.now();
      const missing = seconds.length === 0 ? SECONDS : Math.ceil((Date.now() - lastSeenMs) / 1000) + 2;
      const told = await snapshot(Math.min(missing, SECONDS));
      lastSeenMs = Date.now();
      if (told.server.run !== run) seconds = [];
      run = told.server.run;
      const newest = seconds.at(-1)?.time_us ?? 0;
      seconds.push(...told.seconds.filter((/** @type {Second} */ each) => each.time_us > newest));
      seconds.splice(0, Math.max(0, seconds.length - SECONDS));
      tiles.replaceChildren(...tilesOf(told, (performance.now() - begunMs) * 1000));
      wrong.replaceChildren(judged(told));
      readers.replaceChildren(table(READERS, told.readers.map(readerOf), "Nobody lags."));
      draw();
    } catch (failure) {
      const why = String(/** @type {Error} */ (failure).message);
      wrong.replaceChildren(h("p", {}, h("strong.bad", {}, "No figures. "), h("span", {}, why)));
    }
  }

  const stop = repeat(1_000, ask);
  const redraw = () => plots.forEach((plot) => plot.draw());
  window.addEventListener("theme", redraw);
  draw();
  return () => {
    stop();
    window.removeEventListener("theme", redraw);
  };
}

let lastSeenMs = 0;

/** @param {Second | undefined} now @param {Second | undefined} before @param {string} name */
function rate(now, before, name) {
  if (!now || !before || now.time_us <= before.time_us || now.time_us - before.time_us > 5e6) return null;
  return Math.max(0, (now[name] - before[name]) / ((now.time_us - before.time_us) / 1e6));
}

/** @param {any} told @param {number} roundTripUs */
function tilesOf(told, roundTripUs) {
  const stats = told.stats;
  const each = (/** @type {string} */ name, /** @type {string} */ value, /** @type {string} */ more) =>
    h("div.tile", {}, h("div.name", {}, name), h("div.value", {}, value), h("div.more", {}, more));
  const now = seconds.at(-1);
  const before = seconds.at(-2);
  const perSecond = (/** @type {string} */ name) => {
    const found = rate(now, before, name);
    return found === null ? "–" : `${short(found)}/s`;
  };
  const out = rate(now, before, "bytes_out");
  const used = Math.round((100 * stats.memory_used_bytes) / stats.memory_budget_bytes);
  const upUs = told.server.time_us - told.server.started_us;
  return [
    each("in", perSecond("records_in"), `${whole(stats.records_in)} in all`),
    each("out", perSecond("records_out"), out === null ? "" : `${bytes(out)}/s`),
    each("commit", now ? duration(now.commit_p50_us) : "–", now ? `99 of 100 in ${duration(now.commit_p99_us)}` : ""),
    each("delivery", now ? duration(now.delivery_p50_us) : "–",
      now ? `99 of 100 in ${duration(now.delivery_p99_us)}` : ""),
    each("round trip", duration(roundTripUs), "of this page"),
    each("connections", whole(stats.connections), `${whole(stats.subscriptions)} subscriptions`),
    each("memory", bytes(stats.rss_anon_bytes), `messages: ${used} % of their budget`),
    each("channels", whole(stats.channels), `${whole(stats.consumers)} consumers`),
    each("up", duration(upUs), `version ${told.server.version}`),
  ];
}

/** @param {any} told */
function judged(told) {
  if (told.troubles.length === 0) {
    return h("p", {}, h("strong.good", {}, "Nothing is wrong. "),
      h("span.soft", {}, "Commits, readers, memory and storage are as they should be."));
  }
  return h("ul.findings", {}, told.troubles.map((/** @type {any} */ { serious, detail, advice }) => h("li", {},
    h(`span.mark.${serious ? "bad" : "warn"}`, {}, serious ? "failing" : "look at"),
    h("span", {}, `${detail}. `, h("span.soft", {}, advice)))));
}

/** @param {any} reader */
function readerOf(reader) {
  const behind = reader.behind_messages === undefined
    ? `${whole(reader.behind_groups)} groups`
    : `${whole(reader.behind_messages)} messages`;
  return [
    whole(reader.connection), `${reader.name || "–"} (${reader.peer})`, reader.filters.join(", "), behind,
    duration(reader.since_s * 1e6), bytes(reader.queued_bytes),
  ];
}
