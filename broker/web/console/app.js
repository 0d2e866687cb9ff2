// @ts-check
/** The console's frame: the connection, which view is shown, the keys, and what is asked in boxes. */

import { connect } from "../client/broker.js";
import { channelsView } from "./channels.js";
import { configurationView } from "./configuration.js";
import { connectionsView } from "./connections.js";
import { consumersView } from "./consumers.js";
import { complain, find, h, say } from "./dom.js";
import { overviewView } from "./overview.js";
import { setUpPublishing } from "./publishing.js";
import { session } from "./session.js";
import { theme } from "./theme.js";

/** @typedef {import("../client/broker.js").Broker} Broker */

/**
 * Views fill `main`, and return what ends them. These ask over HTTP alone, so that there is something to see of a
 * broker that takes no more connections;
 *
 * @type {Record<string, (main: HTMLElement) => (() => void)>}
 */
const ALONE = { overview: overviewView, connections: connectionsView, configuration: configurationView };

/**
 * these need one.
 *
 * @type {Record<string, (main: HTMLElement, bus: Broker, name: string) => (() => void)>}
 */
const CONNECTED = { channels: channelsView, consumers: consumersView };

/** @type {any} */
const main = find("main");
/** @type {Broker | null} */
let bus = null;
let leave = () => {};
/** One sign-in at a time: two connections would both be this page's. */
let signing = false;

/** Connect, with the token of this tab if it has one. */
async function open() {
  const { token } = session;
  find(".sign-in").textContent = token ? "Signed in" : "Sign in";
  try {
    const signed = token ? { token } : {};
    bus = await connect("/v1/socket", { name: "console", onstate: show, timeoutMs: 30_000, ...signed });
    find(".sign-in-box").close();
    if (!(String(document.body.dataset.view) in ALONE)) route();
  } catch (failure) {
    const { name, detail, hint } = /** @type {import("../client/broker.js").BrokerError} */ (failure);
    if (name === "CONNECTION_LOST") complain(failure);
    else askToken(`${name}: ${detail}${hint ? ` — ${hint}` : ""}`);
  }
}

/** @param {string} why */
function askToken(why = "") {
  const box = find(".sign-in-box");
  find(".outcome", box).textContent = why;
  if (!box.open) box.showModal();
}

/** @param {string} state @param {any} [cause] */
function show(state, cause) {
  const element = find(".state");
  element.dataset.state = state;
  element.textContent = { connecting: "reconnecting", open: "live", closed: "cut off" }[state] ?? state;
  element.title = cause ? String(cause.message) : "";
}

/** Show the view that the address names. */
function route() {
  const [, view, ...rest] = location.hash.split("/");
  const chosen = view && (view in ALONE || view in CONNECTED) ? view : "overview";
  leave();
  main.replaceChildren();
  for (const link of document.querySelectorAll(".bar nav a")) {
    if (link.getAttribute("href") === `#/${chosen}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${chosen} · broker`;
  document.body.dataset.view = chosen;
  leave = () => {};
  if (chosen in ALONE) leave = ALONE[chosen](main);
  else if (bus !== null) leave = CONNECTED[chosen](main, bus, decodeURIComponent(rest.join("/")));
  else main.append(h("p.soft", {}, "Connecting …"));
}

/** @param {string} token */
async function signIn(token) {
  if (signing) return;
  signing = true;
  find(".sign-in-box .outcome").textContent = "Signing in …";
  session.token = token;
  await bus?.close(0);
  bus = null;
  route();
  await open();
  signing = false;
}

function setUpSigningIn() {
  const box = find(".sign-in-box");
  const field = find("[name=token]", box);
  find(".sign-in").addEventListener("click", () => askToken());
  find("form", box).addEventListener("submit", (/** @type {Event} */ event) => {
    event.preventDefault();
    const token = field.value.trim();
    field.value = "";
    void signIn(token);
  });
  find(".out", box).addEventListener("click", () => {
    box.close();
    void signIn("");
  });
}

/** @param {KeyboardEvent} event */
function onKey(event) {
  const within = /** @type {HTMLElement} */ (event.target);
  if (event.ctrlKey || event.metaKey || event.altKey || within.closest("input, textarea, select, dialog")) return;
  const links = [...document.querySelectorAll(".bar nav a")];
  const number = Number(event.key);
  if (number >= 1 && number <= links.length) location.hash = String(links[number - 1].getAttribute("href"));
  else if (event.key === "/") main.querySelector("input[type=search]")?.focus();
  else if (event.key === "j" || event.key === "k") step(event.key === "j" ? 1 : -1);
  else if (event.key === "p") find(".publish").click();
  else if (event.key === "t") theme.toggle();
  else if (event.key === "?") find(".keys-box").showModal();
  else return;
  event.preventDefault();
}

/** @param {number} by go to the next entry of the list, or the one before */
function step(by) {
  /** @type {HTMLAnchorElement[]} */
  const entries = [...main.querySelectorAll(".list a")];
  if (entries.length === 0) return;
  const here = entries.findIndex((entry) => entry.hasAttribute("aria-current"));
  const next = entries[Math.max(0, Math.min(entries.length - 1, here + by))];
  next.click();
}

document.addEventListener("keydown", onKey);
window.addEventListener("hashchange", route);
for (const button of document.querySelectorAll("dialog .leave")) {
  button.addEventListener("click", () => button.closest("dialog")?.close());
}
find(".keys").addEventListener("click", () => find(".keys-box").showModal());
find(".theme").addEventListener("click", () => theme.toggle());
setUpSigningIn();
setUpPublishing(() => bus, (receipt) => say(`stored in ${receipt.channel} at ${receipt.position}`));
route();
void open();
