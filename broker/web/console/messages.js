// @ts-check
/** Messages as the console shows them. */

import { Message } from "../client/values.js";
import { h } from "./dom.js";
import { bytes, clock, readable, whole } from "./format.js";

const PRIORITIES = ["critical", "high", "normal", "low"];

/**
 * Show a message.
 *
 * @param {Message} message
 * @param {string} [kind] a class
 */
export function messageElement(message, kind = "") {
  const payload = message.bytes;
  const headers = Object.entries(message.headers).map(([name, value]) => `${name}: ${JSON.stringify(value)}`);
  const head = [
    h("strong", { title: `position ${message.position}` }, whole(message.seq)),
    h("time", {}, clock(message.time)),
    h("span", {}, bytes(payload.length)),
    message.key === undefined ? null : h("span", {}, `key ${message.key}`),
    message.id === undefined ? null : h("span", {}, `id ${message.id}`),
    message.publisher === undefined ? null : h("span", {}, `by ${message.publisher}`),
    message.priority === 2 ? null : h("span", {}, PRIORITIES[message.priority]),
    ...headers.map((text) => h("span", {}, text)),
  ];
  return h(`div.message${kind && `.${kind}`}`, {}, h("div.head", {}, head), h("pre", {}, readable(payload)));
}

/**
 * Show what stands for a message that is not there.
 *
 * @param {string} text
 */
export function noteElement(text) {
  return h("div.message.note", {}, text);
}

/**
 * Show a chunk of an answer to `history`.
 *
 * @param {any} chunk
 * @returns {HTMLElement[]} its messages, ascending
 */
export function chunkElements(chunk) {
  return chunk.messages.map((/** @type {any} */ told) => told.gone === undefined
    ? messageElement(new Message(chunk.channel, chunk.epoch, told))
    : noteElement(`${whole(told.seq)}: ${whole(told.count)} ${told.gone}`));
}
