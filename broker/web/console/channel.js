// @ts-check
/** One channel: what it holds, what comes, and what was. */

import { complain, facts, h } from "./dom.js";
import { duration, whole } from "./format.js";
import { chunkElements, messageElement, noteElement } from "./messages.js";
import { openPublishing } from "./publishing.js";

/** @typedef {import("../client/broker.js").Broker} Broker */

const LEVELS = ["", "ephemeral", "accepted", "synced", "replicated"];
const TAIL = 20;
const SHOWN = 500;
const PAGE = 50;

/**
 * Show it.
 *
 * @param {HTMLElement} place
 * @param {Broker} bus
 * @param {string} name
 * @returns {() => void} ends it
 */
export function channelDetail(place, bus, name) {
  const told = h("div");
  const about = h("section.card", {}, h("header", {}, h("a.narrow-only", { href: "#/channels" }, "‹ all"),
    h("h2", {}, name), h("button", { type: "button", onclick: () => openPublishing(name) }, "Publish")), told);
  const body = h("div");
  const tabs = h("div.row", { role: "tablist" }, ["live", "history"].map((kind) =>
    h("button", { type: "button", role: "tab", "data-tab": kind, onclick: () => choose(kind) }, kind)));
  place.append(about, h("section.card", {}, h("header", {}, tabs), body));
  let leave = () => {};
  let over = false;

  /** @param {string} kind */
  function choose(kind) {
    leave();
    body.replaceChildren();
    for (const tab of tabs.children) tab.setAttribute("aria-selected", String(tab.dataset.tab === kind));
    leave = kind === "live" ? liveTail(body, bus, name) : history(body, bus, name);
  }

  async function describe() {
    if (bus.state !== "open") return;
    try {
      const info = await bus.request("channel", { name });
      if (!over) told.replaceChildren(factsOf(info));
    } catch (failure) {
      const why = String(/** @type {Error} */ (failure).message);
      if (!over && bus.state === "open") told.replaceChildren(h("p.bad", {}, why));
    }
  }

  choose("live");
  void describe();
  const timer = setInterval(() => void describe(), 2_000);
  return () => {
    over = true;
    clearInterval(timer);
    leave();
  };
}

/** @param {any} info */
function factsOf(info) {
  const held = Number(info.head) - Number(info.first) + 1;
  return facts([
    ["holds", whole(held)],
    ["first", whole(info.first)],
    ["head", whole(info.head)],
    ["epoch", info.epoch],
    ["level", LEVELS[info.level] ?? String(info.level)],
    ["bytes", info.bytes === undefined ? undefined : whole(info.bytes)],
    ["subscribers", info.subscribers === undefined ? undefined : whole(info.subscribers)],
  ]);
}

/**
 * Show what comes, behind the last few that came.
 *
 * @param {HTMLElement} place
 * @param {Broker} bus
 * @param {string} name
 */
function liveTail(place, bus, name) {
  const list = h("div.messages", { tabindex: "0", "aria-label": "Messages, the newest first" });
  const count = h("span.soft.small");
  let seen = 0;
  let held = false;
  /** @type {HTMLElement[]} */
  let waiting = [];
  const hold = h("button", {
    type: "button", "aria-pressed": "false",
    onclick: () => {
      held = !held;
      hold.setAttribute("aria-pressed", String(held));
      draw();
    },
  }, "Hold");
  place.append(h("div.row", {}, hold, count), list);

  // Messages may come by the hundred thousand: what is shown is made once a frame, of the newest alone.
  let asked = 0;
  function draw() {
    asked = 0;
    count.textContent = held ? `held; ${whole(waiting.length)} more` : `${whole(seen)} came`;
    if (held) return;
    list.prepend(...waiting.reverse());
    waiting = [];
    while (list.childElementCount > SHOWN) list.lastElementChild?.remove();
  }

  /** @param {HTMLElement} element */
  function show(element) {
    waiting.push(element);
    if (waiting.length > SHOWN) waiting.shift();
    if (asked === 0) asked = requestAnimationFrame(draw);
  }

  const subscription = bus.subscribe(name, {
    from: { last: TAIL },
    onevent: ({ event, seq, count: run, reason }) => {
      if (event === "resumed" && seq === undefined) return;
      const what = [event, seq === undefined ? "" : `at ${seq}`, run ? `${run} messages` : "", reason ?? ""];
      show(noteElement(what.filter(Boolean).join(", ")));
    },
  }, (message) => {
    seen += 1;
    show(messageElement(message, "new"));
  });
  draw();
  return () => {
    subscription.close();
    cancelAnimationFrame(asked);
  };
}

/**
 * Show what was: pages of the stored messages, from a position, from a time, or from the end.
 *
 * @param {HTMLElement} place
 * @param {Broker} bus
 * @param {string} name
 */
function history(place, bus, name) {
  const list = h("div.messages", { tabindex: "0", "aria-label": "Messages, the newest last" });
  const at = h("input", { type: "text", inputmode: "numeric", pattern: "[0-9]*", size: "12", placeholder: "sequence" });
  const time = h("input", { type: "datetime-local", step: "1" });
  const older = h("button", {
    type: "button", disabled: true, onclick: () => void read({ before: first, reverse: true }),
  }, "‹ Older");
  const newer = h("button", {
    type: "button", disabled: true, onclick: () => void read({ after: last }),
  }, "Newer ›");
  const told = h("span.soft.small", { role: "status" });
  const form = h("form.row", {
    onsubmit: (/** @type {Event} */ event) => {
      event.preventDefault();
      if (at.value) void read({ after: Math.max(0, Number(at.value) - 1) });
      else if (time.value) void read({ from_us: Math.round(new Date(time.value).getTime() * 1000) });
      else void read({ reverse: true });
    },
  }, h("label", {}, "From sequence", at), h("label", {}, "or from time", time), h("button.main", {}, "Read"),
  older, newer, told);
  place.append(h("div.stack", {}, form, list));
  let first = 0;
  let last = 0;
  let asked = 0;

  /** @param {Record<string, any>} bounds */
  async function read(bounds) {
    const begunMs = performance.now();
    const ticket = ++asked;
    try {
      const answer = await bus.request("history", { channel: name, limit: PAGE, ...bounds });
      // Something else was asked for meanwhile.
      if (ticket !== asked) return;
      const chunks = answer.chunks;
      if (chunks.length > 0) {
        first = Number(chunks[0].messages[0].seq);
        const end = chunks.at(-1).messages.at(-1);
        last = Number(end.seq) + Number(end.count ?? 1) - 1;
      }
      list.replaceChildren(...chunks.flatMap(chunkElements));
      if (chunks.length === 0) list.append(h("p.soft", {}, "Nothing is stored there."));
      older.disabled = chunks.length === 0 || first <= Number(answer.first);
      newer.disabled = chunks.length === 0 || last >= Number(answer.head);
      const took = duration((performance.now() - begunMs) * 1000);
      told.textContent = `${whole(answer.first)} to ${whole(answer.head)} are stored; read in ${took}`;
      if (bounds.reverse) list.scrollTop = list.scrollHeight;
    } catch (failure) {
      complain(failure);
    }
  }

  void read({ reverse: true });
  return () => {};
}
