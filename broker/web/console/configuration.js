// @ts-check
/** The settings in force, with what each is for; what is secret was hidden by the server. */

import { h, table } from "./dom.js";
import { snapshot } from "./session.js";

/** @type {[string, string][]} */
const COLUMNS = [["setting", "name mono"], ["value", "name mono"], ["what it is", ""]];

/**
 * Show them.
 *
 * @param {HTMLElement} main
 */
export function configurationView(main) {
  let over = false;
  const place = h("div.stack", {}, h("p.soft", {}, "Looking …"));
  main.append(place);
  snapshot().then(({ config }) => {
    if (over) return;
    const { profiles, ...sections } = config;
    const cards = Object.entries(sections).map(([name, settings]) => card(name, settings));
    const named = profiles.map((/** @type {any} */ each) => card(`profile ${each.pattern?.value ?? ""}`, each));
    place.replaceChildren(...cards, ...named);
  }).catch((failure) => {
    if (!over) place.replaceChildren(h("p.bad", {}, String(failure.message)));
  });
  return () => {
    over = true;
  };
}

/** @param {string} title @param {Record<string, any>} settings */
function card(title, settings) {
  const rows = Object.entries(settings).map(([name, { value, unit, doc, reloadable }]) => [
    name, `${written(value)}${unit ? ` ${unit}` : ""}`,
    h("span.soft", {}, doc, reloadable ? " Takes effect on a reload." : ""),
  ]);
  return h("section.card", {}, h("header", {}, h("h2", {}, title)), table(COLUMNS, rows, "Nothing to set."));
}

/** @param {any} value */
function written(value) {
  if (value === "" || value === null) return "–";
  return typeof value === "string" ? value : JSON.stringify(value);
}
