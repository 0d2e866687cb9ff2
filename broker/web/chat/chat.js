// @ts-check
/**
 * A chat in a hundred lines: a room is a channel, so whoever was away gets what was said meanwhile, in the order in
 * which the broker took it. How far somebody has read is a position, told on a second channel; nobody is asked who is
 * there.
 */

import { connect } from "../client/broker.js";
import { complain, find, h } from "../console/dom.js";
import { clockShort } from "../console/format.js";
import { session } from "../console/session.js";
import { theme } from "../console/theme.js";

const SHOWN = 500;
const TELL_MS = 300;

const talk = find(".talk");
const field = find("[name=text]");

/**
 * Enter a room.
 *
 * @param {string} name
 * @param {string} room
 */
async function enter(name, room) {
  const channel = `chat.${room}`;
  const bus = await connect("/v1/socket", {
    name: "chat", onstate: showState, timeoutMs: 30_000, ...(session.token ? { token: session.token } : {}),
  });
  document.title = `${room} · chat`;
  find("h1").textContent = room;
  /** How far each of the others has read. @type {Map<string, number>} */
  const read = new Map();
  /** What is on its way, by the mark that it carries. @type {Map<string, HTMLElement>} */
  const unsent = new Map();
  let newest = 0;
  let told = 0;

  bus.subscribe(channel, {
    from: { last: SHOWN },
    onevent: ({ event, seq }) => {
      if (!["resumed", "live", "lagging"].includes(event)) note(`${event}${seq ? ` before message ${seq}` : ""}`);
    },
  }, (message) => {
    const said = message.json();
    unsent.get(said.mark)?.remove();
    unsent.delete(said.mark);
    add(entry(said.from, said.text, said.from === name, message.seq, message.time));
    newest = message.seq;
    showRead();
    tellRead();
  });

  bus.subscribe(`${channel}.read`, { from: { last: SHOWN } }, (message) => {
    const { from, seq } = message.json();
    if (from !== name) read.set(from, Math.max(seq, read.get(from) ?? 0));
    showRead();
  });

  /** Mark one's own messages with who has read them. */
  function showRead() {
    for (const element of talk.querySelectorAll("li.mine[data-seq]")) {
      const by = [...read].filter(([, seq]) => seq >= Number(element.dataset.seq)).map(([who]) => who);
      find(".read", element).textContent = by.length ? `read by ${by.join(", ")}` : "stored";
    }
  }

  let telling = false;
  /** Tell the others how far one has read, now and then, and only while the page is seen. */
  function tellRead() {
    if (telling || document.hidden || newest <= told) return;
    telling = true;
    setTimeout(() => {
      telling = false;
      told = newest;
      bus.publish(`${channel}.read`, { from: name, seq: newest }).catch(complain);
    }, TELL_MS);
  }
  document.addEventListener("visibilitychange", tellRead);

  find(".say").addEventListener("submit", (/** @type {Event} */ event) => {
    event.preventDefault();
    const text = field.value.trim();
    if (!text) return;
    field.value = "";
    const mark = crypto.randomUUID();
    const element = entry(name, text, true, 0, Date.now() * 1000);
    unsent.set(mark, element);
    add(element);
    // The client keeps it while the connection is lost, and sends it so that it is stored once.
    bus.publish(channel, { from: name, text, mark }).catch((failure) => {
      element.remove();
      complain(failure);
    });
  });
  for (const element of [field, find(".say button")]) element.disabled = false;
  field.focus();
}

/**
 * Make what somebody said.
 *
 * @param {string} from @param {string} text @param {boolean} mine @param {number} seq 0 while it is on its way
 * @param {number} timeUs
 */
function entry(from, text, mine, seq, timeUs) {
  const state = h("span.read", {}, seq ? "" : "sending …");
  const when = clockShort(timeUs);
  const head = h("span.head", {}, mine ? [`${when} · `, state] : `${from} · ${when}`);
  return h(`li${mine ? ".mine" : ""}`, seq ? { "data-seq": seq } : {}, head, text);
}

/** @param {HTMLElement} element */
function add(element) {
  const atEnd = talk.scrollHeight - talk.scrollTop - talk.clientHeight < 80;
  // What is on its way stays below what has its place.
  const before = element.dataset.seq ? talk.querySelector("li.mine:not([data-seq])") : null;
  talk.insertBefore(element, before);
  while (talk.childElementCount > SHOWN) talk.firstElementChild?.remove();
  if (atEnd) talk.scrollTop = talk.scrollHeight;
}

/** @param {string} text */
function note(text) {
  add(h("li.note", { "data-note": true }, text));
}

/** @param {string} state @param {any} cause */
function showState(state, cause) {
  const element = find(".state");
  element.dataset.state = state;
  element.textContent = { connecting: "reconnecting", open: "live", closed: "cut off" }[state] ?? state;
  find(".lost").hidden = state !== "connecting";
  if (state === "closed" && cause) complain(cause);
}

const box = find(".enter");
const form = find("form", box);
find("[name=name]", form).value = sessionStorage.getItem("chat-name") ?? "";
find("[name=room]", form).value = decodeURIComponent(location.hash.slice(1)) || "lobby";
find(".theme").addEventListener("click", () => theme.toggle());
form.addEventListener("submit", () => {
  const { name, room, token } = Object.fromEntries(new FormData(form));
  sessionStorage.setItem("chat-name", String(name));
  if (token) session.token = String(token);
  location.hash = String(room);
  enter(String(name), String(room)).catch((failure) => {
    complain(failure);
    box.showModal();
  });
});
box.addEventListener("cancel", (/** @type {Event} */ event) => event.preventDefault());
box.showModal();
