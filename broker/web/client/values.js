/** What goes in and out: payloads, positions, messages, errors, and the options of each call. */
/** An answer of the server that is no success. Its thousand says what to do: 1 retry, 2 resume, 3 stop, 4 storage. */
export class BrokerError extends Error {
    code;
    name;
    detail;
    hint;
    retryAfterMs;
    head;
    constructor(code, name, detail, hint = "", retryAfterMs = null, 
    /** With CONFLICT: what the channel's head is. */
    head = null) {
        super(`${name} (${code}): ${detail}`);
        this.code = code;
        this.name = name;
        this.detail = detail;
        this.hint = hint;
        this.retryAfterMs = retryAfterMs;
        this.head = head;
    }
}
/** A message of a channel. */
export class Message {
    channel;
    epoch;
    seq;
    /** When the server took it, microseconds since 1970. */
    time;
    key;
    headers;
    id;
    publisher;
    priority;
    #text;
    #base64;
    constructor(channel, epoch, told) {
        this.channel = channel;
        this.epoch = epoch;
        this.seq = Number(told["seq"] ?? 0);
        this.time = Number(told["time"] ?? 0);
        this.key = told["key"];
        this.headers = told["headers"] ?? {};
        this.id = told["message_id"];
        this.publisher = told["publisher"];
        this.priority = Number(told["priority"] ?? 2);
        this.#text = told["text"];
        this.#base64 = told["base64"];
    }
    /** Where it is: what `from: {after: …}` takes. */
    get position() {
        return `${this.epoch}:${this.seq}`;
    }
    /** The payload as text; what is no UTF-8 in it is replaced. */
    get text() {
        return this.#text ?? new TextDecoder().decode(this.bytes);
    }
    /** The payload. */
    get bytes() {
        if (this.#base64 === undefined)
            return new TextEncoder().encode(this.#text ?? "");
        return Uint8Array.from(atob(this.#base64), (letter) => letter.charCodeAt(0));
    }
    /** The value of a payload that is JSON; throws SyntaxError if it is none. */
    json() {
        return JSON.parse(this.text);
    }
}
export function closedError() {
    return new BrokerError(3020, "CLOSED", "the connection was closed by this program");
}
export function lostError(detail) {
    return new BrokerError(2003, "CONNECTION_LOST", detail);
}
export function unknownOutcome(detail) {
    return new BrokerError(4001, "COMMIT_UNKNOWN", detail, "Look whether it is there before you publish it again.");
}
export function toError(told) {
    const after = told["retry_after_ms"];
    return new BrokerError(Number(told["code"]), String(told["name"]), String(told["detail"]), String(told["hint"] ?? ""), after === undefined ? null : Number(after), told["head"] === undefined ? null : String(told["head"]));
}
export function encodePayload(payload) {
    if (typeof payload === "string")
        return { text: payload };
    if (payload instanceof ArrayBuffer)
        payload = new Uint8Array(payload);
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
export function withoutUndefined(members) {
    return Object.fromEntries(Object.entries(members).filter(([, value]) => value !== undefined));
}
/** When to come back, at most; a server that says more is not believed. */
const RETRY_AFTER_MAX_MS = 60_000;
/** A random time around one that many were told. */
export function jitter(ms) {
    return Math.min(ms, RETRY_AFTER_MAX_MS) * (0.5 + Math.random());
}
/** Report what a function of the program threw, as if nobody had called it. */
export function report(failure) {
    queueMicrotask(() => { throw failure; });
}
