/** What goes in and out: payloads, positions, messages, errors, and the options of each call. */

/** What is published: a text, bytes, or any other value as its JSON. */
export type Payload = string | Uint8Array | ArrayBuffer | object | number | boolean | null;

/** Where a subscription begins. */
export type From =
  | "new"
  | "all"
  | { after: Record<string, string> }
  | { bus: string }
  | { time: number }
  | { last: number };

/** Whether there is a connection: `closed` is for good. */
export type State = "connecting" | "open" | "closed";

/** The part of WebSocket that is used, so that another one can take its place. */
export interface Socket {
  onopen: ((event: any) => void) | null;
  onmessage: ((event: any) => void) | null;
  onclose: ((event: any) => void) | null;
  onerror: ((event: any) => void) | null;
  send(text: string): void;
  close(code?: number): void;
}

export interface ConnectOptions {
  /** What the server knows the client by, or a function that gives a fresh one for each connection and before expiry. */
  token?: string | (() => string | Promise<string>);
  /** A name for the server's log. */
  name?: string;
  /** Told of each change of the state, with what caused it. */
  onstate?: (state: State, cause: BrokerError | null) => void;
  /** How long the first connection may take, in milliseconds; 10,000 unless said. Later ones may take for ever. */
  timeoutMs?: number;
  /** How many bytes of publishes may wait for their answers; 8 MiB unless said. More are refused with LIMIT. */
  queueBytesMax?: number;
  /** The WebSocket to use, where there is none by that name (Node before 22): that of the package `ws`. */
  WebSocket?: new (url: string, protocols: string[]) => Socket;
}

export interface PublishOptions {
  key?: string;
  headers?: Record<string, unknown>;
  /** The message's id: what is published again with it is stored once. */
  id?: string;
  /** 0 critical, 1 high, 2 normal, 3 low. */
  priority?: number;
  expiresS?: number;
  /** The position that the channel's head must have; else CONFLICT. */
  expect?: string;
  /** When it is to be published, microseconds since 1970; needs an id. */
  at?: number;
  /** Or in so many milliseconds. */
  delayMs?: number;
}

/** Where a message was stored; of one that is published later only `due` is known. */
export interface Receipt {
  channel: string;
  position: string;
  seq: number;
  level: number;
  duplicate: boolean;
  due?: number;
}

export interface SubscribeOptions {
  from?: From;
  /** The live group that it is a member of. */
  group?: string;
  /** How many bytes may be under way or wait for whoever reads; 1 MiB unless said. */
  credit?: number;
  /** Told of what happens to the subscription and is no message. */
  onevent?: (event: SubscriptionEvent) => void;
}

/**
 * What happens to a subscription: `resumed`; `gap` (messages between `after` and `seq` are not there any more, or were
 * dropped), `diverged` (what was read behind `after` was taken by a crash), `trimmed`, `gone` (a run of `count`
 * messages from `seq` on, for the reason that is given), `lagging`, `live`, `dropped`, and what later servers add.
 */
export interface SubscriptionEvent {
  event: string;
  channel: string;
  after?: string;
  seq?: number;
  count?: number;
  reason?: string;
}

/** An answer of the server that is no success. Its thousand says what to do: 1 retry, 2 resume, 3 stop, 4 storage. */
export class BrokerError extends Error {
  constructor(
    readonly code: number,
    override readonly name: string,
    readonly detail: string,
    readonly hint: string = "",
    readonly retryAfterMs: number | null = null,
    /** With CONFLICT: what the channel's head is. */
    readonly head: string | null = null,
  ) {
    super(`${name} (${code}): ${detail}`);
  }
}

/** A message of a channel. */
export class Message {
  readonly channel: string;
  readonly epoch: string;
  readonly seq: number;
  /** When the server took it, microseconds since 1970. */
  readonly time: number;
  readonly key: string | undefined;
  readonly headers: Record<string, unknown>;
  readonly id: string | undefined;
  readonly publisher: string | undefined;
  readonly priority: number;
  readonly #text: string | undefined;
  readonly #base64: string | undefined;

  constructor(channel: string, epoch: string, told: Told) {
    this.channel = channel;
    this.epoch = epoch;
    this.seq = Number(told["seq"] ?? 0);
    this.time = Number(told["time"] ?? 0);
    this.key = told["key"] as string | undefined;
    this.headers = (told["headers"] as Record<string, unknown> | undefined) ?? {};
    this.id = told["message_id"] as string | undefined;
    this.publisher = told["publisher"] as string | undefined;
    this.priority = Number(told["priority"] ?? 2);
    this.#text = told["text"] as string | undefined;
    this.#base64 = told["base64"] as string | undefined;
  }

  /** Where it is: what `from: {after: …}` takes. */
  get position(): string {
    return `${this.epoch}:${this.seq}`;
  }

  /** The payload as text; what is no UTF-8 in it is replaced. */
  get text(): string {
    return this.#text ?? new TextDecoder().decode(this.bytes);
  }

  /** The payload. */
  get bytes(): Uint8Array {
    if (this.#base64 === undefined) return new TextEncoder().encode(this.#text ?? "");
    return Uint8Array.from(atob(this.#base64), (letter) => letter.charCodeAt(0));
  }

  /** The value of a payload that is JSON; throws SyntaxError if it is none. */
  json(): any {
    return JSON.parse(this.text);
  }
}

/** What the server sends, or is sent. */
export type Told = Record<string, unknown>;

export function closedError(): BrokerError {
  return new BrokerError(3020, "CLOSED", "the connection was closed by this program");
}

export function lostError(detail: string): BrokerError {
  return new BrokerError(2003, "CONNECTION_LOST", detail);
}

export function unknownOutcome(detail: string): BrokerError {
  return new BrokerError(4001, "COMMIT_UNKNOWN", detail, "Look whether it is there before you publish it again.");
}

export function toError(told: Told): BrokerError {
  const after = told["retry_after_ms"];
  return new BrokerError(
    Number(told["code"]),
    String(told["name"]),
    String(told["detail"]),
    String(told["hint"] ?? ""),
    after === undefined ? null : Number(after),
    told["head"] === undefined ? null : String(told["head"]),
  );
}

export function encodePayload(payload: Payload): Told {
  if (typeof payload === "string") return { text: payload };
  if (payload instanceof ArrayBuffer) payload = new Uint8Array(payload);
  if (payload instanceof Uint8Array) {
    let letters = "";
    // Spread over arguments, of which an engine takes some ten thousand.
    for (let at = 0; at < payload.length; at += 8192) {
      letters += String.fromCharCode(...payload.subarray(at, at + 8192));
    }
    return { base64: btoa(letters) };
  }
  // The text of a value is what `json` would be stored as, and costs the server no walk through it.
  return { text: JSON.stringify(payload) };
}

/** The members that have a value. */
export function withoutUndefined(members: Told): Told {
  return Object.fromEntries(Object.entries(members).filter(([, value]) => value !== undefined));
}

/** When to come back, at most; a server that says more is not believed. */
const RETRY_AFTER_MAX_MS = 60_000;

/** A random time around one that many were told. */
export function jitter(ms: number): number {
  return Math.min(ms, RETRY_AFTER_MAX_MS) * (0.5 + Math.random());
}

/** Report what a function of the program threw, as if nobody had called it. */
export function report(failure: unknown): void {
  queueMicrotask(() => { throw failure; });
}
