// @ts-check
/** Elements, made from text and nothing else: whatever a message holds, none of it becomes markup. */

/**
 * Make an element.
 *
 * @param {string} tag its name, with classes behind dots: "div.card"
 * @param {Record<string, any>} [attributes] `on…` are listeners; true and false set and leave out
 * @param {...any} children elements, texts, lists of them; null and undefined are left out
 * @returns {any} the element
 */
export function h(tag, attributes = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const element = document.createElement(name);
  if (classes.length) element.className = classes.join(" ");
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(key, String(value));
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

/**
 * Find an element of the page, which has it.
 *
 * @param {string} selector
 * @param {ParentNode} [within]
 * @returns {any}
 */
export function find(selector, within = document) {
  const element = within.querySelector(selector);
  if (element === null) throw new Error(`page: no ${selector}`);
  return element;
}

/**
 * Make a table.
 *
 * @param {[string, string][]} columns each one's title and class
 * @param {any[][]} rows texts or elements
 * @param {string} nothing what stands there without rows
 */
export function table(columns, rows, nothing) {
  if (rows.length === 0) return h("p.soft", {}, nothing);
  const head = h("tr", {}, columns.map(([title, kind]) => h("th", { class: kind, scope: "col" }, title)));
  const body = rows.map((row) => h("tr", {}, row.map((cell, i) => h("td", { class: columns[i][1] }, cell))));
  return h("div.scroll", {}, h("table", {}, h("thead", {}, head), h("tbody", {}, body)));
}

/**
 * Make a list of facts.
 *
 * @param {[string, any][]} pairs names and what they are; undefined ones are left out
 */
export function facts(pairs) {
  const known = pairs.filter(([, value]) => value !== undefined && value !== null);
  return h("dl.facts", {}, known.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}

/** @type {ReturnType<typeof setTimeout> | undefined} */
let silence;

/**
 * Say something in passing.
 *
 * @param {string} text
 * @param {boolean} [bad] whether something failed
 */
export function say(text, bad = false) {
  const element = find(".said");
  element.textContent = text;
  element.classList.toggle("bad", bad);
  element.hidden = false;
  clearTimeout(silence);
  silence = setTimeout(() => { element.hidden = true; }, bad ? 10_000 : 4_000);
}

/**
 * Say why something failed.
 *
 * @param {any} failure
 */
export function complain(failure) {
  const hint = failure.hint ? ` — ${failure.hint}` : "";
  const told = failure.code ? `${failure.name} (${failure.code}): ${failure.detail}${hint}` : failure.message;
  say(String(told ?? failure), true);
}
