// @ts-check
/** Channels: search by prefix, and of one what it holds, what comes, and what was, by position and by time. */

import { channelDetail } from "./channel.js";
import { complain, h } from "./dom.js";
import { whole } from "./format.js";

const PAGE = 100;

/**
 * Show them, with the one that is named.
 *
 * @param {HTMLElement} main
 * @param {import("../client/broker.js").Broker} bus
 * @param {string} name of the channel that is looked at; empty for none
 */
export function channelsView(main, bus, name) {
  const list = h("ul.list");
  const more = h("button.plain", { type: "button", hidden: true, onclick: () => void load(last) }, "More");
  const search = h("input", {
    type: "search", placeholder: "Names that begin with …", "aria-label": "Names that begin with", value: prefix,
    autocomplete: "off", spellcheck: "false",
    oninput: () => {
      prefix = search.value;
      void load("");
    },
  });
  const detail = h("div.stack");
  const chooser = h("section.card.chooser", {}, h("div.row", {}, h("label.wide", {}, search)), list, more);
  main.append(h(`div.pair${name ? ".chosen" : ""}`, {}, chooser, detail));
  let last = "";
  let asked = 0;

  /** @param {string} after the last name that is there already; empty to begin anew */
  async function load(after) {
    const ticket = ++asked;
    try {
      const told = await bus.request("channels", { prefix, after, limit: PAGE, details: true });
      // Whoever types on has asked for something else meanwhile.
      if (ticket !== asked) return;
      const entries = told.channels.map(entryOf);
      if (after) list.append(...entries);
      else list.replaceChildren(...entries);
      last = told.channels.at(-1)?.name ?? last;
      more.hidden = !told.more;
      if (list.childElementCount === 0) list.append(h("li.soft", {}, prefix ? "No such channel." : "No channels yet."));
    } catch (failure) {
      complain(failure);
    }
  }

  /** @param {any} channel */
  function entryOf(channel) {
    const held = Number(channel.head) - Number(channel.first) + 1;
    const here = channel.name === name ? { "aria-current": "true" } : {};
    return h("li", {}, h("a", { href: `#/channels/${encodeURIComponent(channel.name)}`, ...here },
      h("span.name", {}, channel.name), h("span.count", {}, whole(held))));
  }

  void load("");
  if (name) return channelDetail(detail, bus, name);
  const hint = "Choose a channel to see what it holds, and what comes.";
  detail.append(h("section.card.wide-only", {}, h("p.soft", {}, hint)));
  return () => {};
}

/** What is searched for; kept while other views are shown. */
let prefix = "";
