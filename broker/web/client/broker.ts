/**
 * The client for browsers and Node: publish, subscribe, ask and request over the JSON dialect of the broker.
 *
 * What it promises: messages of a channel come in their order, once each, and without a gap across lost connections, or
 * an event says what is missing; a publish is stored once, however often the connection is lost meanwhile, and what is
 * published to one channel is stored in the order of the calls. It connects anew by itself, with jitter, and takes up
 * where it stood. It needs nothing but a WebSocket.
 *
 * The words are those of the broker's specification: a position is "epoch:sequence", a place of the bus
 * "journal:group:index", times are microseconds since 1970.
 */

import { Line } from "./line.js";
import { Subscription } from "./subscription.js";
import { BrokerError, Message } from "./values.js";
import { closedError, encodePayload, jitter, lostError, report, toError, withoutUndefined } from "./values.js";
import type { ConnectOptions, Payload, PublishOptions, Receipt, Socket } from "./values.js";
import type { State, SubscribeOptions, Told } from "./values.js";

export { BrokerError, Message, Subscription };
export type { ConnectOptions, Payload, PublishOptions, Receipt, Socket, State, SubscribeOptions };
export type { From, SubscriptionEvent } from "./values.js";

export interface AskOptions {
  headers?: Record<string, unknown>;
  /** How long the answer may take, in milliseconds; 5,000 unless said. */
  timeoutMs?: number;
}

const QUEUE_BYTES_MAX = 8 * 1024 * 1024;
const PAUSE_FIRST_MS = 100;
const PAUSE_MAX_MS = 5_000;
/** A connection that lasted so long is followed by another at once. */
const LASTED_MS = 3_000;
/** How long the server may take to welcome. */
const WELCOME_MS = 15_000;
/** How long the server has to say anything when the page wakes up. */
const PROBE_MS = 4_000;

interface Question {
  readonly resolve: (told: any) => void;
  readonly reject: (failure: BrokerError) => void;
}

/** A connection to a broker that is made anew whenever it is lost. Use `connect`. */
export class Broker {
  state: State = "connecting";
  /** What WELCOME told of the connection that is there, or was there last. */
  welcome: Record<string, unknown> = {};
  readonly #url: string;
  readonly #options: ConnectOptions;
  readonly #line: Line;
  readonly #subscriptions = new Map<number, Subscription>();
  readonly #questions = new Map<string, Question>();
  #socket: Socket | null = null;
  #journal: string | null = null;
  #count = 0;
  #losses = 0;
  #openedMs = 0;
  #heardMs = 0;
  #pingedMs = 0;
  #retryAfterMs: number | null = null;
  #retry: ReturnType<typeof setTimeout> | null = null;
  #watch: ReturnType<typeof setInterval> | null = null;
  #probe: ReturnType<typeof setTimeout> | null = null;
  #refresh: ReturnType<typeof setTimeout> | null = null;
  /** What the server said of this connection before it ends it, and what ended the last one. */
  #failure: BrokerError | null = null;
  #last: BrokerError | null = null;
  #first: Question | null = null;
  #drained: (() => void) | null = null;

  /** Use `connect`. */
  constructor(url: string, options: ConnectOptions) {
    this.#url = url;
    this.#options = options;
    const transmit = (message: Told): void => this.#transmit(message);
    const reconnect = (detail: string): void => this.#lose(lostError(detail));
    this.#line = new Line(transmit, reconnect, options.queueBytesMax ?? QUEUE_BYTES_MAX);
  }

  /** @internal */
  open(): Promise<Broker> {
    const timeoutMs = this.#options.timeoutMs ?? 10_000;
    globalThis.addEventListener?.("online", this.#wake);
    globalThis.document?.addEventListener("visibilitychange", this.#wake);
    return new Promise((resolve, reject) => {
      const limit = setTimeout(() => {
        this.#stop(this.#last ?? lostError(`no connection to ${this.#url} within ${timeoutMs} ms`));
      }, timeoutMs);
      this.#first = {
        resolve: () => { clearTimeout(limit); resolve(this); },
        reject: (failure) => { clearTimeout(limit); reject(failure); },
      };
      void this.#connect();
    });
  }

  /** Publish a message; resolves when it has the durability that its channel promises. */
  publish(channel: string, payload: Payload, options: PublishOptions = {}): Promise<Receipt> {
    if (this.state === "closed") return Promise.reject(this.#last ?? closedError());
    const message = { ...encodePayload(payload), ...withoutUndefined({
      key: options.key,
      headers: options.headers,
      message_id: options.id,
      priority: options.priority,
      expires_s: options.expiresS,
    }) };
    const alone = withoutUndefined({ expect: options.expect, at: options.at, delay_ms: options.delayMs });
    return this.#line.publish(channel, message, Object.keys(alone).length > 0 ? alone : null);
  }

  /** Read channels, or all that a pattern selects; with a function it is called for each message, at once. */
  subscribe(
    filters: string | readonly string[],
    options: SubscribeOptions = {},
    take: ((message: Message) => void) | null = null,
  ): Subscription {
    if (this.state === "closed") throw this.#last ?? closedError();
    this.#count += 1;
    const names = typeof filters === "string" ? [filters] : filters;
    const subscription = new Subscription(this, this.#count, names, options, take);
    this.#subscriptions.set(subscription.number, subscription);
    if (this.state === "open") this.#transmit(subscription.request());
    return subscription;
  }

  /** Ask what REQUEST asks (specification §13, §18); resolves to the keys of REPLY. */
  request(what: string, members: Record<string, unknown> = {}): Promise<any> {
    return this.#ask({ ...members, op: "request", what });
  }

  /** Publish a request and wait for its first answer. */
  async ask(channel: string, payload: Payload, options: AskOptions = {}): Promise<Message> {
    const headers = options.headers === undefined ? {} : { headers: options.headers };
    const limitMs = options.timeoutMs ?? 5_000;
    const told = await this.#ask({ op: "ask", channel, ...encodePayload(payload), ...headers }, limitMs);
    return new Message(channel, "0", told as Told);
  }

  /** Answer a message that was asked: one with the header `reply-to`. */
  answer(message: Message, payload: Payload): void {
    const to = message.headers["reply-to"];
    if (typeof to !== "string") throw new BrokerError(3011, "INVALID_RECORD", "answer: the message has no `reply-to`");
    this.#transmit({ op: "answer", to, ...encodePayload(payload) });
  }

  /** Measure how long the server takes to answer, in milliseconds. */
  async ping(): Promise<number> {
    const begunMs = performance.now();
    await this.#ask({ op: "ping" });
    return performance.now() - begunMs;
  }

  /** Wait until what was published is answered, `timeoutMs` at most, then end the connection for good. */
  async close(timeoutMs = 5_000): Promise<void> {
    if (this.state === "closed") return;
    if (!this.#line.idle) {
      let limit: ReturnType<typeof setTimeout> | undefined;
      await new Promise<void>((done) => {
        this.#drained = done;
        limit = setTimeout(done, timeoutMs);
      });
      clearTimeout(limit);
    }
    this.#stop(null);
  }

  /** @internal */
  forget(subscription: Subscription): void {
    if (!this.#subscriptions.delete(subscription.number) || this.state !== "open") return;
    this.#transmit({ op: "unsubscribe", sub: subscription.number });
  }

  /** @internal */
  grant(subscription: Subscription, bytes: number): void {
    if (this.#subscriptions.has(subscription.number)) this.#transmit({ op: "credit", sub: subscription.number, bytes });
  }

  async #connect(): Promise<void> {
    this.#retry = null;
    let token: string | undefined;
    try {
      token = await this.#token();
    } catch (failure) {
      // Whoever gives tokens may be out of reach as well, and for as long.
      this.#lose(lostError(`no token: ${failure instanceof Error ? failure.message : String(failure)}`));
      return;
    }
    if (this.state === "closed") return;
    const Made = this.#options.WebSocket ?? (globalThis.WebSocket as unknown as ConnectOptions["WebSocket"]);
    if (Made === undefined) {
      const hint = "Give `connect` the one of the package `ws`.";
      this.#stop(new BrokerError(3018, "INVALID_CONFIG", "no WebSocket here", hint));
      return;
    }
    const socket = this.#socket = new Made(this.#url, ["broker.json.v1"]);
    this.#failure = null;
    this.#openedMs = this.#heardMs = this.#pingedMs = performance.now();
    socket.onopen = () => {
      const name = this.#options.name ?? "broker.js";
      socket.send(JSON.stringify({ op: "hello", name, producer: this.#line.producer, ...withoutUndefined({ token }) }));
    };
    socket.onmessage = (event) => {
      if (this.#socket !== socket) return;
      this.#heardMs = performance.now();
      this.#on(JSON.parse(event.data as string) as Told);
    };
    socket.onerror = () => undefined;
    socket.onclose = (event) => {
      if (this.#socket === socket) this.#lose(this.#failure ?? lostError(`WebSocket closed with ${String(event.code)}`));
    };
    this.#watch ??= setInterval(() => this.#look(), 1_000);
  }

  async #token(): Promise<string | undefined> {
    const { token } = this.#options;
    return typeof token === "function" ? await token() : token;
  }

  #on(told: Told): void {
    const op = told["op"];
    const subscription = this.#subscriptions.get(told["sub"] as number);
    if (op === "deliver") subscription?.onDeliver(told);
    else if (op === "published") this.#line.onPublished(told);
    else if (op === "subscribed") subscription?.onSubscribed(told);
    else if (op === "event") subscription?.onEvent(told);
    else if (op === "reply" || op === "answer" || op === "pong" || op === "token") this.#answered(told);
    else if (op === "welcome") this.#onWelcome(told);
    else if (op === "error") this.#onError(told);
    else if (op === "going_away") this.#retryAfterMs = Number(told["retry_after_ms"] ?? PAUSE_FIRST_MS);
    if (this.#drained !== null && this.#line.idle) this.#drained();
  }

  #onWelcome(told: Told): void {
    const same = this.#journal === null || this.#journal === told["journal"];
    this.#journal = told["journal"] as string;
    this.#last = null;
    this.#retryAfterMs = null;
    this.welcome = told;
    this.state = "open";
    const limits = told["limits"] as Told | undefined;
    this.#line.onWelcome(Number(told["highest"] ?? 0), same, Number(limits?.["text_bytes_max"] ?? Infinity));
    for (const subscription of this.#subscriptions.values()) {
      if (!same) subscription.startAnew();
      this.#transmit(subscription.request());
    }
    this.#refreshBefore(Number(told["expires"] ?? 0));
    this.#first?.resolve(this);
    this.#first = null;
    this.#tell(null);
  }

  #onError(told: Told): void {
    const refused = told["refused"];
    if (refused === undefined) {
      // The close that follows finds the reason here.
      this.#failure = toError(told);
      this.#retryAfterMs = this.#failure.retryAfterMs;
    } else if (refused === "publish") this.#line.onRefused(told);
    else if (refused === "subscribe") this.#onEnded(told);
    else this.#answered(told);
  }

  /** The server has ended a subscription, or not begun it. */
  #onEnded(told: Told): void {
    const subscription = this.#subscriptions.get(told["sub"] as number);
    if (subscription === undefined) return;
    const failure = toError(told);
    const passing = failure.code < 3000;
    subscription.ready = false;
    if (!passing) {
      this.#subscriptions.delete(subscription.number);
      subscription.end(failure);
      return;
    }
    const socket = this.#socket;
    setTimeout(() => {
      const wanted = this.#subscriptions.has(subscription.number) && this.#socket === socket;
      if (wanted) this.#transmit(subscription.request());
    }, jitter(failure.retryAfterMs ?? PAUSE_FIRST_MS));
  }

  #answered(told: Told): void {
    const question = this.#questions.get(String(told["id"]));
    if (question === undefined) return;
    this.#questions.delete(String(told["id"]));
    if (told["op"] === "error") question.reject(toError(told));
    else question.resolve(told);
  }

  #ask(message: Told, timeoutMs: number | null = null): Promise<any> {
    if (this.state !== "open") return Promise.reject(this.#last ?? lostError("there is no connection now"));
    this.#count += 1;
    const id = `q${this.#count}`;
    return new Promise((resolve, reject) => {
      let limit: ReturnType<typeof setTimeout> | undefined;
      const over = <T>(settle: (value: T) => void) => (value: T) => { clearTimeout(limit); settle(value); };
      this.#questions.set(id, { resolve: over(resolve), reject: over(reject) });
      this.#transmit({ ...message, id });
      if (timeoutMs === null) return;
      limit = setTimeout(() => {
        this.#questions.delete(id);
        this.#transmit({ op: "ask", cancel: true, id });
        reject(new BrokerError(1007, "TIMEOUT", `no answer within ${timeoutMs} ms`));
      }, timeoutMs);
    });
  }

  /** Give the server a fresh token some time before the one that it has expires. */
  #refreshBefore(expires: number): void {
    if (this.#refresh !== null) clearTimeout(this.#refresh);
    this.#refresh = null;
    if (typeof this.#options.token !== "function" || !(expires > 0)) return;
    const leftMs = expires / 1_000 - Date.now();
    const waitMs = Math.min(Math.max(leftMs - Math.min(30_000, leftMs / 4), 1_000), 2 ** 31 - 1);
    this.#refresh = setTimeout(() => {
      this.#token().then((token) => this.#ask({ op: "token", token })).then(
        (told: Told) => this.#refreshBefore(Number(told["expires"] ?? 0)),
        // The server ends the connection when the old one expires, and the next connection asks anew.
        () => undefined,
      );
    }, waitMs);
  }

  /** Look whether the server is still there: one that sleeps, or a path that is gone, says nothing. */
  #look(): void {
    if (this.#socket === null) return;
    const nowMs = performance.now();
    const pingMs = Number(this.welcome["ping_s"] ?? 0) * 1_000;
    if (this.state !== "open") {
      if (nowMs - this.#openedMs > WELCOME_MS) this.#lose(lostError(`no welcome within ${WELCOME_MS} ms`));
    } else if (pingMs > 0 && this.#pingedMs > this.#heardMs) {
      // Silence alone proves nothing: a page in the background looks once a minute.
      if (nowMs - this.#pingedMs > 2 * pingMs) this.#lose(lostError("no answer to a ping"));
    } else if (pingMs > 0 && nowMs - this.#heardMs > pingMs) {
      this.#pingedMs = nowMs;
      this.#transmit({ op: "ping", id: "look" });
    }
  }

  /** The page is seen again, or the network is back: find out at once instead of in a minute. */
  readonly #wake = (): void => {
    if (this.state === "closed" || globalThis.document?.visibilityState === "hidden") return;
    if (this.#retry !== null) {
      clearTimeout(this.#retry);
      void this.#connect();
    } else if (this.state === "open" && this.#probe === null) {
      const sentMs = performance.now();
      this.#transmit({ op: "ping", id: "look" });
      this.#probe = setTimeout(() => {
        this.#probe = null;
        if (this.state === "open" && this.#heardMs < sentMs) this.#lose(lostError("no answer after waking up"));
      }, PROBE_MS);
    }
  };

  #transmit(message: Told): void {
    if (this.state === "open") this.#socket?.send(JSON.stringify(message));
  }

  /** This connection is over; the next one comes after a while, if the reason leaves any sense in it. */
  #lose(cause: BrokerError): void {
    if (this.state === "closed") return;
    this.#drop();
    const fresh = cause.name === "TOKEN_EXPIRED" && typeof this.#options.token === "function";
    if (cause.code >= 3000 && cause.code < 4000 && !fresh) {
      this.#stop(cause);
      return;
    }
    this.#last = cause;
    this.#line.onLost();
    for (const subscription of this.#subscriptions.values()) subscription.ready = false;
    for (const question of this.#questions.values()) question.reject(cause);
    this.#questions.clear();
    const lasted = this.state === "open" && performance.now() - this.#openedMs > LASTED_MS;
    this.#losses = lasted ? 0 : this.#losses + 1;
    let pauseMs = Math.random() * Math.min(PAUSE_FIRST_MS * 2 ** this.#losses, PAUSE_MAX_MS);
    if (this.#retryAfterMs !== null) pauseMs = jitter(this.#retryAfterMs);
    else if (lasted) pauseMs = Math.random() * PAUSE_FIRST_MS;
    this.#retry = setTimeout(() => void this.#connect(), pauseMs);
    this.#become("connecting", cause);
  }

  #drop(): void {
    const socket = this.#socket;
    this.#socket = null;
    if (socket === null) return;
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.close();
  }

  /** It is over for good. */
  #stop(cause: BrokerError | null): void {
    this.#drop();
    for (const timer of [this.#retry, this.#probe, this.#refresh]) if (timer !== null) clearTimeout(timer);
    if (this.#watch !== null) clearInterval(this.#watch);
    globalThis.removeEventListener?.("online", this.#wake);
    globalThis.document?.removeEventListener("visibilitychange", this.#wake);
    this.#last = cause;
    const failure = cause ?? closedError();
    this.#line.end(failure);
    for (const question of this.#questions.values()) question.reject(failure);
    for (const subscription of this.#subscriptions.values()) subscription.end(cause);
    this.#questions.clear();
    this.#subscriptions.clear();
    this.#first?.reject(failure);
    this.#first = null;
    this.#become("closed", cause);
  }

  #become(state: State, cause: BrokerError | null): void {
    this.state = state;
    this.#tell(cause);
  }

  #tell(cause: BrokerError | null): void {
    try {
      this.#options.onstate?.(this.state, cause);
    } catch (failure) {
      report(failure);
    }
  }
}

/**
 * Connect to a broker.
 *
 * @param url of its WebSocket, "wss://host/v1/socket"; in a page a path is enough
 * @returns when the server has answered
 * @throws BrokerError when it refuses, or when there is none within `timeoutMs`
 */
export function connect(url: string, options: ConnectOptions = {}): Promise<Broker> {
  const base = globalThis.location?.href;
  const full = base === undefined ? new URL(url) : new URL(url, base);
  full.protocol = full.protocol.replace(/^http/, "ws");
  return new Broker(full.href, options).open();
}
