// @ts-check
/** Connections: who is there, what they have open, and what waits for them. */

import { h, table } from "./dom.js";
import { bytes, whole } from "./format.js";
import { repeat, snapshot } from "./session.js";

/** @type {[string, string][]} */
const COLUMNS = [
  ["connection", "number"], ["name", "name"], ["peer", "name"], ["subscriptions", "number"], ["lagging", "number"],
  ["queued", "number"],
];

/**
 * Show them.
 *
 * @param {HTMLElement} main
 */
export function connectionsView(main) {
  const told = h("div");
  const count = h("span.soft");
  main.append(h("section.card", {}, h("header", {}, h("h2", {}, "Connections"), count), told));
  return repeat(2_000, async () => {
    try {
      const { connections, more_connections: more, stats } = await snapshot();
      const all = whole(stats.connections);
      count.textContent = more ? `the first ${whole(connections.length)} of ${all}` : all;
      told.replaceChildren(table(COLUMNS, connections.map(rowOf), "Nobody is connected."));
    } catch (failure) {
      told.replaceChildren(h("p.bad", {}, String(/** @type {Error} */ (failure).message)));
    }
  });
}

/** @param {any} each */
function rowOf(each) {
  return [
    whole(each.connection), each.name || "–", each.peer || "–", whole(each.subscriptions),
    each.lagging > 0 ? h("span.warn", {}, whole(each.lagging)) : "0", bytes(each.queued_bytes),
  ];
}
