// @ts-check
/** Consumers and work queues: what waits, what is under way, what died; pause them, and look at their jobs. */

import { complain, facts, h, say, table } from "./dom.js";
import { bytes, clock, duration, whole } from "./format.js";
import { repeat } from "./session.js";

/** @typedef {import("../client/broker.js").Broker} Broker */

const PAGE = 200;
const JOBS = 50;

/** @type {[string, string][]} */
const JOB_COLUMNS = [
  ["channel", "name"], ["sequence", "number"], ["attempt", "number"], ["due", ""], ["with", "number"],
];

/**
 * Show them, with the one that is named.
 *
 * @param {HTMLElement} main
 * @param {Broker} bus
 * @param {string} name of the consumer that is looked at; empty for none
 */
export function consumersView(main, bus, name) {
  const list = h("ul.list");
  const search = h("input", {
    type: "search", placeholder: "Names that begin with …", "aria-label": "Names that begin with", autocomplete: "off",
    spellcheck: "false", oninput: () => void load(),
  });
  const detail = h("div.stack");
  const chooser = h("section.card.chooser", {}, h("div.row", {}, h("label.wide", {}, search)), list);
  main.append(h(`div.pair${name ? ".chosen" : ""}`, {}, chooser, detail));

  async function load() {
    if (bus.state !== "open") return;
    try {
      const told = await bus.request("consumers", { prefix: search.value, limit: PAGE });
      list.replaceChildren(...told.consumers.map(entryOf));
      if (told.more) list.append(h("li.soft", {}, "… and more: search for them."));
      const none = search.value ? "No such consumer." : "No consumers yet.";
      if (told.consumers.length === 0) list.append(h("li.soft", {}, none));
    } catch (failure) {
      if (bus.state === "open") complain(failure);
    }
  }

  /** @param {any} consumer */
  function entryOf(consumer) {
    const waits = Number(consumer.ready ?? 0) + Number(consumer.lag ?? 0);
    const here = consumer.name === name ? { "aria-current": "true" } : {};
    return h("li", {}, h("a", { href: `#/consumers/${encodeURIComponent(consumer.name)}`, ...here },
      h("span.name", {}, consumer.name), h("span.count", {}, consumer.paused ? "paused" : whole(waits))));
  }

  const stopList = repeat(3_000, load);
  if (!name) {
    detail.append(h("section.card.wide-only", {}, h("p.soft", {}, "Choose a consumer to see its jobs.")));
    return stopList;
  }
  const stopDetail = consumerDetail(detail, bus, name);
  return () => {
    stopList();
    stopDetail();
  };
}

/**
 * Show one.
 *
 * @param {HTMLElement} place
 * @param {Broker} bus
 * @param {string} name
 */
function consumerDetail(place, bus, name) {
  const told = h("div.stack");
  const jobs = h("div");
  const pause = h("button", { type: "button", disabled: true, onclick: () => void toggle() }, "Pause");
  let paused = false;
  place.append(
    h("section.card", {},
      h("header", {}, h("a.narrow-only", { href: "#/consumers" }, "‹ all"), h("h2", {}, name), pause), told),
    h("section.card", {}, h("header", {}, h("h2", {}, "Jobs that come next")), jobs));

  async function toggle() {
    try {
      await bus.request("consumer_pause", { name, paused: !paused });
      say(paused ? `${name} goes on` : `${name} is paused: it gives out nothing`);
      await look();
    } catch (failure) {
      complain(failure);
    }
  }

  async function look() {
    if (bus.state !== "open") return;
    try {
      const info = await bus.request("consumer", { name });
      paused = info.paused === true;
      pause.disabled = false;
      pause.textContent = paused ? "Go on" : "Pause";
      told.replaceChildren(...describe(info));
      const waiting = await bus.request("consumer_peek", { name, limit: JOBS });
      jobs.replaceChildren(table(JOB_COLUMNS, waiting.jobs.map(jobOf), "Nothing waits."));
    } catch (failure) {
      if (bus.state === "open") told.replaceChildren(h("p.bad", {}, String(/** @type {Error} */ (failure).message)));
    }
  }

  return repeat(2_000, look);
}

/** @param {any} info */
function describe(info) {
  const idle = info.paused ? "paused" : "nobody takes jobs";
  const state = info.paused || !(info.members > 0) ? h("span.warn", {}, idle) : "gives out";
  return [
    facts([
      ["state", state],
      ["members", whole(info.members)],
      ["ready", whole(info.ready)],
      ["under way", whole(info.leased)],
      ["delayed", whole(info.delayed)],
      ["not looked at", info.lag === undefined ? undefined : whole(info.lag)],
      ["done", whole(info.acked)],
      ["again", whole(info.redelivered)],
      ["dead", h(info.dead > 0 ? "span.bad" : "span", {}, whole(info.dead))],
      ["keeps from retention", info.held_bytes ? bytes(Number(info.held_bytes)) : undefined],
    ]),
    facts([
      ["reads", (info.filters ?? []).join(", ")],
      ["mode", info.mode],
      ["lease", info.lease_ms === undefined ? undefined : info.lease_ms ? duration(info.lease_ms * 1000) : "for ever"],
      ["attempts", info.attempts_max ? whole(info.attempts_max) : undefined],
      ["dead letters", info.dead_letter],
    ]),
  ];
}

/** @param {any} job */
function jobOf(job) {
  return [
    job.channel, whole(job.seq), whole(job.attempt), job.due ? clock(Number(job.due)) : "now",
    job.member ? whole(job.member) : "–",
  ];
}
