/** Subscriptions: what is kept of each to go on without a gap, and what waits for whoever reads. */

import type { Broker } from "./broker.js";
import { BrokerError, Message, report } from "./values.js";
import type { From, SubscribeOptions, SubscriptionEvent, Told } from "./values.js";

const CREDIT_BYTES = 1024 * 1024;

function toSequence(position: string): number {
  return Number(position.slice(position.indexOf(":") + 1));
}

function toEpoch(position: string): string {
  return position.slice(0, position.indexOf(":"));
}

function isPattern(filter: string): boolean {
  return filter.split(".").some((token) => token === "*" || token === ">");
}

/** A place of the bus, to be compared. */
interface Place {
  readonly text: string;
  readonly journal: string;
  readonly group: bigint;
  readonly index: bigint;
}

function toPlace(text: string): Place {
  const [journal, group, index] = text.split(":") as [string, string, string];
  return { text, journal, group: BigInt(group), index: BigInt(index) };
}

const INDEX_END = 2n ** 32n - 1n;

/** What was seen of a channel before its commit: it may come again. */
interface Mark {
  readonly epoch: string;
  readonly seq: number;
  readonly group: bigint;
}

/**
 * What comes of some channels: `for await` it, or give `subscribe` a function.
 *
 * It grants the server credit as its messages are taken, so what waits here is bounded, and a reader that is slow makes
 * nobody wait but itself.
 */
export class Subscription implements AsyncIterable<Message> {
  /** Why it ended, if the server ended it. */
  failure: BrokerError | null = null;
  /** Whether the server sends what comes: false before it has answered, and while the connection is lost. */
  ready = false;
  readonly #bus: Broker;
  readonly #options: SubscribeOptions;
  readonly #take: ((message: Message) => void) | null;
  readonly #byPosition: boolean;
  readonly #positions = new Map<string, string>();
  readonly #marks = new Map<string, Mark>();
  readonly #credit: number;
  #place: Place | null = null;
  #waiting: { messages: Message[]; bytes: number }[] = [];
  #consumed = 0;
  #ended = false;
  #wake: (() => void) | null = null;

  /** Use `Broker.subscribe`. */
  constructor(
    bus: Broker,
    readonly number: number,
    readonly filters: readonly string[],
    options: SubscribeOptions,
    take: ((message: Message) => void) | null,
  ) {
    const from = options.from ?? "new";
    const elsewhere = typeof from === "object" && ("bus" in from || "time" in from);
    this.#bus = bus;
    this.#options = options;
    this.#take = take;
    this.#byPosition = !elsewhere && !filters.some(isPattern);
    this.#credit = options.credit ?? CREDIT_BYTES;
  }

  /** The positions up to which messages were received, by channel; empty for a subscription with a pattern. */
  get positions(): Record<string, string> {
    return Object.fromEntries(this.#positions);
  }

  /** The place of the bus up to which everything was received, if it stands by the bus. */
  get place(): string | null {
    return this.#place?.text ?? null;
  }

  /** End it; what waits here is dropped. */
  close(): void {
    if (this.#ended) return;
    this.#waiting = [];
    this.end(null);
    this.#bus.forget(this);
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Message, void, undefined> {
    for await (const batch of this.batches()) yield* batch;
  }

  /** What comes, as it comes: the messages that the server sent together, of one channel each time. */
  async *batches(): AsyncGenerator<Message[], void, undefined> {
    try {
      for (;;) {
        const next = this.#waiting.shift();
        if (next !== undefined) {
          if (next.messages.length > 0) yield next.messages;
          this.#grant(next.bytes);
        } else if (this.#ended) {
          if (this.failure !== null) throw this.failure;
          return;
        } else {
          await new Promise<void>((wake) => { this.#wake = wake; });
        }
      }
    } finally {
      this.close();
    }
  }

  /** @internal What asks the server for it, from where it stands. */
  request(): Told {
    let from: From = this.#options.from ?? "new";
    if (this.#options.group === undefined) {
      if (this.#byPosition && this.#positions.size > 0) from = { after: this.positions };
      else if (this.#place !== null) from = { bus: this.#place.text };
    }
    this.#consumed = 0;
    // What waits here is granted when it is taken; the server may send the rest at once.
    const held = this.#waiting.reduce((sum, each) => sum + each.bytes, 0);
    const group = this.#options.group === undefined ? {} : { group: this.#options.group };
    const credit = Math.max(0, this.#credit - held);
    return { op: "subscribe", sub: this.number, filters: this.filters, from, credit, ...group };
  }

  /** @internal The journal is another one: what positions meant is over. */
  startAnew(): void {
    for (const [channel, position] of this.#positions) {
      this.#tell({ event: "diverged", channel, after: "0:0", seq: toSequence(position) });
      this.#positions.set(channel, "0:0");
    }
    this.#marks.clear();
  }

  /** @internal */
  onSubscribed(told: Told): void {
    const again = this.#positions.size > 0 || this.#place !== null;
    this.ready = true;
    for (const each of told["channels"] as { channel: string; outcome: string; position?: string }[]) {
      if (this.#byPosition && each.position !== undefined) this.#positions.set(each.channel, each.position);
      if (each.outcome === "new" || (each.outcome === "resumed" && !again)) continue;
      const after = each.position === undefined ? {} : { after: each.position };
      this.#tell({ event: each.outcome, channel: each.channel, ...after });
    }
    if (!this.#byPosition && told["bus"] !== undefined) {
      const place = toPlace(told["bus"] as string);
      if (place.journal !== this.#place?.journal) this.#marks.clear();
      this.#place = place;
    }
  }

  /** @internal */
  onDeliver(told: Told): void {
    const channel = told["channel"] as string;
    const epoch = told["epoch"] as string;
    const records = told["messages"] as Told[];
    const bytes = Number(told["bytes"] ?? 0);
    const known = this.#byPosition ? this.#judge(channel, epoch, records) : this.#passedOver(channel, epoch);
    const messages: Message[] = [];
    for (const record of records) {
      const seq = Number(record["seq"]);
      if (record["gone"] !== undefined) {
        const count = Number(record["count"] ?? 1);
        if (seq + count - 1 > known) {
          this.#tell({ event: "gone", channel, seq, count, reason: String(record["gone"]) });
        }
      } else if (seq > known) {
        messages.push(new Message(channel, epoch, record));
      }
    }
    const position = told["position"] as string;
    if (this.#byPosition) {
      if (toSequence(position) > known) this.#positions.set(channel, position);
    } else {
      this.#move(channel, position, told["bus"] as string | undefined, told["early"] === true);
    }
    if (this.#take !== null) {
      for (const message of messages) this.#hand(message, this.#take);
      this.#grant(bytes);
      return;
    }
    this.#waiting.push({ messages, bytes });
    this.#wakeUp();
  }

  /** @internal */
  onEvent(told: Told): void {
    const event: SubscriptionEvent = { event: String(told["event"]), channel: String(told["channel"] ?? "") };
    if (told["count"] !== undefined) event.count = Number(told["count"]);
    if (told["first"] !== undefined) event.seq = Number(told["first"]);
    this.#tell(event);
  }

  /** @internal It is over: whoever waits for messages gets those that came, then the end or the failure. */
  end(failure: BrokerError | null): void {
    this.#ended = true;
    this.ready = false;
    this.failure = failure;
    if (failure !== null) this.#tell({ event: "failed", channel: "", reason: failure.name });
    this.#wakeUp();
  }

  /** Judge a delivery by the channel's position; returns the sequence up to which it was received before. */
  #judge(channel: string, epoch: string, records: Told[]): number {
    const position = this.#positions.get(channel);
    if (position === undefined || records.length === 0) return 0;
    const last = toSequence(position);
    const first = Number(records[0]!["seq"]);
    if (first > last + 1) {
      this.#tell({ event: "gap", channel, after: position, seq: first });
    } else if (first <= last && epoch !== toEpoch(position)) {
      this.#tell({ event: "diverged", channel, after: `${toEpoch(position)}:${first - 1}`, seq: last });
      return first - 1;
    }
    return first > last ? first - 1 : last;
  }

  /** The sequence up to which a channel was seen early, on a subscription that stands by the bus. */
  #passedOver(channel: string, epoch: string): number {
    const mark = this.#marks.get(channel);
    return mark !== undefined && mark.epoch === epoch ? mark.seq : 0;
  }

  /** Note how far a subscription that stands by the bus has come. */
  #move(channel: string, position: string, bus: string | undefined, early: boolean): void {
    const place = bus === undefined ? null : toPlace(bus);
    if (early) {
      // The place of an early delivery is two groups before its own: those may still be under way.
      const group = place === null ? 2n : place.group + 2n;
      const epoch = toEpoch(position);
      this.#marks.set(channel, { epoch, seq: Math.max(toSequence(position), this.#passedOver(channel, epoch)), group });
    }
    const here = this.#place;
    if (place === null) return;
    if (here !== null && !(place.group > here.group || (place.group === here.group && place.index > here.index))) return;
    this.#place = place;
    for (const [name, mark] of this.#marks) {
      const passed = mark.group < place.group || (mark.group === place.group && place.index === INDEX_END);
      if (passed) this.#marks.delete(name);
    }
  }

  /** A program's function that fails is the program's affair: the messages behind it come all the same. */
  #hand<T>(what: T, take: (what: T) => void): void {
    try {
      take(what);
    } catch (failure) {
      report(failure);
    }
  }

  #grant(bytes: number): void {
    this.#consumed += bytes;
    if (this.#consumed * 4 < this.#credit || !this.ready) return;
    this.#bus.grant(this, this.#consumed);
    this.#consumed = 0;
  }

  #tell(event: SubscriptionEvent): void {
    if (this.#options.onevent !== undefined) this.#hand(event, this.#options.onevent);
  }

  #wakeUp(): void {
    const wake = this.#wake;
    this.#wake = null;
    wake?.();
  }
}
