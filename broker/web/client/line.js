/** Publishing: what is on its way, how it is numbered, and what becomes of it when it is refused or not answered. */
import { BrokerError, jitter, toError, unknownOutcome } from "./values.js";
/** What a frame holds at most: text, messages, and members of their headers. */
const FRAME_BYTES = 128 * 1024;
/** What it has besides its messages. */
const FRAME_OWN_BYTES = 1024;
const FRAME_MESSAGES = 256;
const FRAME_HEADERS = 4096;
/** What is sent before the answers to it come: of the newest 1,024 numbers the server knows where they were stored. */
const FLIGHT_BYTES = 1024 * 1024;
const FLIGHT_MESSAGES = 1024;
const PAUSE_MS = 100;
/** Refusals for which one record of several may be to blame. */
const OF_ONE_RECORD = new Set([
    "INVALID_RECORD", "PAYLOAD_TOO_LARGE", "HEADERS_TOO_LARGE", "INVALID_ID", "NOT_STORED", "MALFORMED_FRAME",
]);
function drawProducer() {
    const drawn = crypto.getRandomValues(new Uint8Array(16));
    return Array.from(drawn, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
/**
 * The producer's line (specification §8): every message takes one number, dense and in the order of the calls, so that
 * whatever is sent again is stored once. A refusal takes no number and sends back all that is behind it.
 */
export class Line {
    producer = drawProducer();
    #transmit;
    #reconnect;
    #queueBytesMax;
    #items = [];
    #frames = new Map();
    #queuedBytes = 0;
    #textBytesMax = Infinity;
    #flightBytes = 0;
    #flightMessages = 0;
    #next = 1;
    #proven = 0;
    #ids = 0;
    #open = false;
    #holding = false;
    #scheduled = false;
    #pause = null;
    constructor(transmit, reconnect, queueBytesMax) {
        this.#transmit = transmit;
        this.#reconnect = reconnect;
        this.#queueBytesMax = queueBytesMax;
    }
    /** Whether nothing waits for an answer. */
    get idle() {
        return this.#items.length === 0 && this.#frames.size === 0;
    }
    publish(channel, message, alone) {
        const headers = Object.keys(message["headers"] ?? {}).length;
        const text = JSON.stringify(message);
        const bytes = text.length;
        // A letter is three bytes at most, so few texts have to be measured.
        const wire = 3 * bytes > this.#textBytesMax ? new TextEncoder().encode(text).length + FRAME_OWN_BYTES : 0;
        if (wire > this.#textBytesMax) {
            const detail = `message: got ${wire} bytes as JSON, limit ${this.#textBytesMax}`;
            return Promise.reject(new BrokerError(3009, "PAYLOAD_TOO_LARGE", detail));
        }
        if (this.#queuedBytes + bytes > this.#queueBytesMax) {
            const detail = `publishes that wait: got ${this.#queuedBytes + bytes} bytes, limit ${this.#queueBytesMax}`;
            return Promise.reject(new BrokerError(1006, "LIMIT", detail, "Wait for the promises of some of them."));
        }
        this.#queuedBytes += bytes;
        return new Promise((resolve, reject) => {
            this.#items.push({ channel, message, alone, bytes, headers, cut: false, resolve, reject });
            this.#schedule();
        });
    }
    /** A connection is there; its WELCOME says how far the line has come. */
    onWelcome(highest, sameJournal, textBytesMax) {
        this.#textBytesMax = textBytesMax;
        const frames = [...this.#frames.values()];
        this.#frames.clear();
        this.#flightBytes = this.#flightMessages = 0;
        this.#open = true;
        this.#resume();
        if (!sameJournal || highest < this.#proven) {
            this.#proven = 0;
            this.#next = highest + 1;
            for (const frame of frames) {
                this.#refuse(frame.items, unknownOutcome("the server has lost the line of what was sent and not answered"));
            }
            this.#schedule();
            return;
        }
        const behind = [];
        this.#next = highest + 1;
        for (const frame of frames) {
            // What the server has is asked for once more under its numbers; what it has not is sent behind that.
            const known = Math.max(0, Math.min(frame.items.length, highest + 1 - frame.number));
            if (known > 0)
                this.#send(frame.items.slice(0, known), frame.number);
            behind.push(...frame.items.slice(known));
        }
        this.#items.unshift(...behind);
        this.#schedule();
    }
    /** The connection is lost. */
    onLost() {
        this.#open = false;
    }
    onPublished(told) {
        const frame = this.#take(told);
        if (frame === null)
            return;
        const level = Number(told["level"] ?? 0);
        if (level >= 3)
            this.#proven = Math.max(this.#proven, frame.number + frame.items.length - 1);
        const channel = frame.items[0].channel;
        const whole = { epoch: told["epoch"], first: told["first"], count: told["count"], duplicate: told["duplicate"] };
        const runs = told["runs"] ?? [whole];
        let at = 0;
        for (const run of runs) {
            const count = Number(run.count ?? frame.items.length);
            for (let i = 0; i < count && at < frame.items.length; i += 1, at += 1) {
                const seq = Number(run.first ?? 0) + i;
                const receipt = {
                    channel, position: `${String(run.epoch ?? 0)}:${seq}`, seq, level, duplicate: run.duplicate === true,
                };
                if (told["due"] !== undefined)
                    receipt.due = Number(told["due"]);
                this.#settle(frame.items[at]).resolve(receipt);
            }
        }
        this.#proceed();
    }
    /** A publish is refused, and with it all that were sent behind it. */
    onRefused(told) {
        const frame = this.#frames.get(told["id"]);
        if (frame === undefined)
            return;
        const failure = toError(told);
        if (failure.name === "COMMIT_UNKNOWN") {
            this.#reconnect("a commit failed, and the next WELCOME tells what is stored");
            return;
        }
        frame.refusal = failure;
        this.#land(frame);
        this.#holding = true;
        this.#proceed();
    }
    /** Nothing is sent any more: what waits is refused, and what was sent has an unknown outcome. */
    end(failure) {
        this.#open = false;
        this.#resume();
        for (const frame of this.#frames.values()) {
            this.#refuse(frame.items, frame.refusal ?? unknownOutcome(`not answered before the end: ${failure.message}`));
        }
        this.#frames.clear();
        this.#refuse(this.#items.splice(0), failure);
    }
    #schedule() {
        if (this.#scheduled)
            return;
        this.#scheduled = true;
        // What is published in one turn of the loop goes together.
        queueMicrotask(() => {
            this.#scheduled = false;
            this.#flush();
        });
    }
    #flush() {
        while (this.#open && !this.#holding && this.#items.length > 0 && this.#flightBytes < FLIGHT_BYTES) {
            const count = this.#together();
            if (this.#flightMessages + count > FLIGHT_MESSAGES)
                return;
            const items = this.#items.splice(0, count);
            this.#send(items, this.#next);
            this.#next += items.length;
        }
    }
    /** How many of the items that wait fit into one frame. */
    #together() {
        const first = this.#items[0];
        let count = 0;
        let bytes = 0;
        let headers = 0;
        for (const item of this.#items) {
            bytes += item.bytes;
            headers += item.headers;
            const apart = item.channel !== first.channel || item.cut || item.alone !== null || first.alone !== null;
            if (count > 0 && apart)
                break;
            if (count > 0 && (bytes > FRAME_BYTES || headers > FRAME_HEADERS || count === FRAME_MESSAGES))
                break;
            count += 1;
        }
        return count;
    }
    #send(items, number) {
        this.#ids += 1;
        const bytes = items.reduce((sum, item) => sum + item.bytes, 0);
        const first = items[0];
        this.#frames.set(this.#ids, { items, bytes, number, refusal: null });
        this.#flightBytes += bytes;
        this.#flightMessages += items.length;
        const messages = items.map((item) => item.message);
        this.#transmit({ op: "publish", id: this.#ids, channel: first.channel, messages, number, ...first.alone });
    }
    #take(told) {
        const frame = this.#frames.get(told["id"]);
        if (frame === undefined)
            return null;
        this.#frames.delete(told["id"]);
        this.#land(frame);
        return frame;
    }
    #land(frame) {
        this.#flightBytes -= frame.bytes;
        this.#flightMessages -= frame.items.length;
    }
    /** After an answer: go on, or, once all in flight is answered after a refusal, decide what becomes of it. */
    #proceed() {
        if (!this.#holding) {
            this.#schedule();
            return;
        }
        if (this.#pause !== null)
            return;
        const refused = [...this.#frames.values()];
        if (refused.some((frame) => frame.refusal === null))
            return;
        this.#frames.clear();
        if (refused.every((frame) => frame.refusal.name === "NUMBER_GAP")) {
            for (const frame of refused)
                frame.refusal = null;
            this.#items.unshift(...refused.flatMap((frame) => frame.items));
            this.#holding = false;
            this.#reconnect("the server counts otherwise");
            return;
        }
        this.#next = Math.min(...refused.map((frame) => frame.number));
        let pauseMs = 0;
        let cutNext = false;
        const kept = [];
        for (const frame of refused) {
            const failure = frame.refusal;
            if (cutNext)
                frame.items[0].cut = true;
            cutNext = false;
            if (failure.name === "NUMBER_GAP")
                kept.push(...frame.items);
            else if (failure.code < 2000) {
                kept.push(...frame.items);
                pauseMs = jitter(failure.retryAfterMs ?? PAUSE_MS);
            }
            else if (frame.items.length > 1 && OF_ONE_RECORD.has(failure.name)) {
                // Halved until the one is alone that is to blame; `cut` keeps the halves from being joined again.
                frame.items[0].cut = frame.items[frame.items.length >> 1].cut = true;
                cutNext = true;
                kept.push(...frame.items);
                continue;
            }
            else
                this.#refuse(frame.items, failure);
        }
        if (cutNext && this.#items.length > 0)
            this.#items[0].cut = true;
        this.#items.unshift(...kept);
        this.#pause = setTimeout(() => {
            this.#resume();
            this.#flush();
        }, pauseMs);
    }
    #resume() {
        if (this.#pause !== null)
            clearTimeout(this.#pause);
        this.#pause = null;
        this.#holding = false;
    }
    #settle(item) {
        this.#queuedBytes -= item.bytes;
        return item;
    }
    #refuse(items, failure) {
        for (const item of items)
            this.#settle(item).reject(failure);
    }
}
