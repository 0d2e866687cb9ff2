/**
 * The browser client in Node, against a real server: what it promises, with connections that are cut at any moment.
 *
 * BROKER_URL is the server's WebSocket, CLIENT the module to test, WS the package `ws`.
 */

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

const { BrokerError, connect } = await import(process.env.CLIENT);
const { WebSocket } = await import(process.env.WS);
const URL = process.env.BROKER_URL;

/** A WebSocket that remembers itself, so that a test can cut it off as a network does: without a farewell. */
class Cuttable extends WebSocket {
  static open = new Set();
  static sent = 0;

  constructor(...all) {
    super(...all);
    Cuttable.open.add(this);
    this.on("close", () => Cuttable.open.delete(this));
  }

  send(text) {
    Cuttable.sent += 1;
    super.send(text);
  }

  static cut() {
    for (const socket of Cuttable.open) socket.terminate();
  }

  /** Cut all a few times: after many short connections the client waits for seconds, as it should. */
  static async cutting(times, everyMs) {
    for (let i = 0; i < times; i += 1) {
      await pause(everyMs);
      Cuttable.cut();
    }
  }
}

let bus;
let count = 0;
const unused = (name) => `${name}.${process.pid}.${(count += 1)}`;
const open = (options = {}) => connect(URL, { WebSocket: Cuttable, name: "test", ...options });
const pause = (ms) => new Promise((done) => setTimeout(done, ms));

async function take(subscription, wanted) {
  const found = [];
  for await (const message of subscription) {
    found.push(message);
    if (found.length === wanted) break;
  }
  return found;
}

before(async () => { bus = await open(); });
after(() => bus.close());

test("what is published comes back as it was", async () => {
  const channel = unused("kinds");
  const bytes = Uint8Array.from({ length: 70_000 }, (_, i) => (i * 7) % 256);
  const options = { key: "k", headers: { kind: "note", n: 3 }, priority: 1 };
  const receipts = await Promise.all([
    bus.publish(channel, "größer ✓", options),
    bus.publish(channel, bytes),
    bus.publish(channel, { a: [1, null, "x"] }),
    bus.publish(channel, ""),
  ]);
  assert.deepEqual(receipts.map((receipt) => receipt.seq), [1, 2, 3, 4]);
  const [first, second, third, fourth] = await take(bus.subscribe(channel, { from: "all" }), 4);
  assert.equal(first.text, "größer ✓");
  assert.equal(first.key, "k");
  assert.deepEqual(first.headers, { kind: "note", n: 3 });
  assert.equal(first.priority, 1);
  assert.equal(first.position, receipts[0].position);
  assert.deepEqual(second.bytes, bytes);
  assert.deepEqual(third.json(), { a: [1, null, "x"] });
  assert.equal(fourth.text, "");
  assert.ok(Math.abs(first.time / 1000 - Date.now()) < 60_000);
});

test("what is published in one turn goes in few frames, in order", async () => {
  const channel = unused("batch");
  const sent = Cuttable.sent;
  const receipts = await Promise.all(Array.from({ length: 1_000 }, (_, i) => bus.publish(channel, String(i))));
  assert.deepEqual(receipts.map((receipt) => receipt.seq), Array.from({ length: 1_000 }, (_, i) => i + 1));
  assert.ok(Cuttable.sent - sent < 10, `${Cuttable.sent - sent} frames`);
});

test("a channel is read without a gap and published to once, however often the connections are cut", async () => {
  const channel = unused("cut");
  const events = [];
  const [writer, reader] = await Promise.all([open(), open()]);
  const subscription = reader.subscribe(channel, { onevent: (event) => events.push(event) });
  const taken = take(subscription, 3_000);
  const cutting = Cuttable.cutting(5, 90);
  const receipts = [];
  for (let i = 0; i < 300; i += 1) {
    for (let j = 0; j < 10; j += 1) receipts.push(writer.publish(channel, `${i * 10 + j}`));
    await pause(3);
  }
  const stored = await Promise.all(receipts);
  await cutting;
  const messages = await taken;
  assert.deepEqual(messages.map((message) => Number(message.text)), messages.map((_, i) => i));
  assert.deepEqual(messages.map((message) => message.seq), messages.map((_, i) => i + 1));
  assert.deepEqual(stored.map((receipt) => receipt.seq), stored.map((_, i) => i + 1));
  assert.ok(events.some(({ event }) => event === "resumed"), "no connection was cut");
  assert.deepEqual(events.filter(({ event }) => !["resumed", "lagging", "live"].includes(event)), []);
  await Promise.all([writer.close(), reader.close()]);
});

test("so is a pattern", async () => {
  const root = unused("pattern");
  const [writer, reader] = await Promise.all([open(), open()]);
  const subscription = reader.subscribe(`${root}.>`);
  const taken = take(subscription, 1_000);
  while (!subscription.ready) await pause(5);
  const cutting = Cuttable.cutting(5, 90);
  for (let i = 0; i < 200; i += 1) {
    for (let j = 0; j < 5; j += 1) void writer.publish(`${root}.${j}`, String(i));
    await pause(3);
  }
  await cutting;
  await writer.close(20_000);
  const seen = new Map();
  for (const message of await taken) {
    const last = seen.get(message.channel) ?? -1;
    assert.equal(Number(message.text), last + 1, message.channel);
    seen.set(message.channel, last + 1);
  }
  assert.deepEqual([...seen.values()], [199, 199, 199, 199, 199]);
  await reader.close();
});

test("a refused publish harms none behind it", async () => {
  const channel = unused("refused");
  const all = [
    bus.publish(channel, "1"),
    bus.publish("not a channel", "2"),
    bus.publish(channel, "3", { expect: "9:9" }),
    bus.publish(channel, "4"),
    bus.publish(channel, "5", { id: "x".repeat(65) }),
    bus.publish(channel, "6"),
  ];
  const settled = await Promise.allSettled(all);
  assert.deepEqual(settled.map(({ status }) => status), ["fulfilled", "rejected", "rejected", "fulfilled", "rejected", "fulfilled"]);
  assert.equal(settled[1].reason.name, "INVALID_CHANNEL");
  assert.equal(settled[2].reason.name, "CONFLICT");
  assert.match(settled[2].reason.head, /^\d+:1$/);
  const messages = await take(bus.subscribe(channel, { from: "all" }), 3);
  assert.deepEqual(messages.map((message) => message.text), ["1", "4", "6"]);
});

test("a message that is too large is refused alone", async () => {
  const channel = unused("large");
  const settled = await Promise.allSettled([
    bus.publish(channel, "small"),
    bus.publish(channel, "x".repeat(1_100_000)),
    bus.publish(channel, "x".repeat(3_000_000)),
    bus.publish(channel, "small"),
  ]);
  assert.deepEqual(settled.map(({ status }) => status), ["fulfilled", "rejected", "rejected", "fulfilled"]);
  assert.equal(settled[1].reason.name, "PAYLOAD_TOO_LARGE");
  assert.equal(settled[2].reason.name, "PAYLOAD_TOO_LARGE");
});

test("an id is stored once", async () => {
  const channel = unused("ids");
  const first = await bus.publish(channel, "one", { id: "a" });
  const again = await bus.publish(channel, "one", { id: "a" });
  assert.equal(again.duplicate, true);
  assert.equal(again.position, first.position);
});

test("what waits for answers is bounded", async () => {
  const small = await open({ queueBytesMax: 1_000 });
  const settled = await Promise.allSettled(Array.from({ length: 30 }, () => small.publish(unused("queue"), "x".repeat(90))));
  assert.ok(settled.some(({ status, reason }) => status === "rejected" && reason.name === "LIMIT"));
  assert.ok(settled.some(({ status }) => status === "fulfilled"));
  await small.close();
});

test("a reader that takes nothing gets no more than its credit", async () => {
  const channel = unused("slow");
  const payload = "x".repeat(1_000);
  const reader = await open();
  const subscription = reader.subscribe(channel, { credit: 20_000, from: "all" });
  await Promise.all(Array.from({ length: 1_000 }, () => bus.publish(channel, payload)));
  await reader.ping();
  const batches = subscription.batches();
  let bytes = 0;
  let messages = 0;
  while (messages < 1_000) {
    const { value } = await batches.next();
    messages += value.length;
    bytes += value.length * 1_000;
  }
  assert.equal(messages, 1_000);
  assert.equal(bytes, 1_000_000);
  await reader.close();
});

test("questions are answered", async () => {
  const channel = unused("ask");
  const helper = await open();
  helper.subscribe(channel, {}, (message) => helper.answer(message, `${message.text}!`));
  let answer;
  while (answer === undefined) {
    answer = await bus.ask(channel, "well").catch((failure) => {
      assert.equal(failure.name, "NO_RESPONDERS");
    });
  }
  assert.equal(answer.text, "well!");
  const { channels } = await bus.request("channels", { prefix: "kinds.", details: true });
  assert.equal(channels.at(-1).head, 4);
  assert.ok((await bus.ping()) < 5_000);
  await assert.rejects(bus.request("nothing"), (failure) => failure instanceof BrokerError && failure.name === "UNKNOWN_OPERATION");
  await helper.close();
});

test("a subscription that is refused says why", async () => {
  await assert.rejects(take(bus.subscribe("a..b"), 1), (failure) => failure.code === 3006 || failure.code === 3005);
});

test("a token is asked for at each connection, and states are told", async () => {
  const states = [];
  let tokens = 0;
  const told = await open({ token: () => `t${(tokens += 1)}`, onstate: (state) => states.push(state) });
  Cuttable.cut();
  while (tokens < 2 || told.state !== "open") await pause(5);
  await told.close();
  assert.deepEqual(states, ["open", "connecting", "open", "closed"]);
  await assert.rejects(told.publish("a", "b"), (failure) => failure.name === "CLOSED");
});

test("without a server the first connection gives up", async () => {
  await assert.rejects(connect("ws://127.0.0.1:9/", { WebSocket, timeoutMs: 300 }), (failure) => failure.name === "CONNECTION_LOST");
});
