/** Subscriptions: what is kept of each to go on without a gap, and what waits for whoever reads. */
import type { Broker } from "./broker.js";
import { BrokerError, Message } from "./values.js";
import type { SubscribeOptions, Told } from "./values.js";
/**
 * What comes of some channels: `for await` it, or give `subscribe` a function.
 *
 * It grants the server credit as its messages are taken, so what waits here is bounded, and a reader that is slow makes
 * nobody wait but itself.
 */
export declare class Subscription implements AsyncIterable<Message> {
    #private;
    readonly number: number;
    readonly filters: readonly string[];
    /** Why it ended, if the server ended it. */
    failure: BrokerError | null;
    /** Whether the server sends what comes: false before it has answered, and while the connection is lost. */
    ready: boolean;
    /** Use `Broker.subscribe`. */
    constructor(bus: Broker, number: number, filters: readonly string[], options: SubscribeOptions, take: ((message: Message) => void) | null);
    /** The positions up to which messages were received, by channel; empty for a subscription with a pattern. */
    get positions(): Record<string, string>;
    /** The place of the bus up to which everything was received, if it stands by the bus. */
    get place(): string | null;
    /** End it; what waits here is dropped. */
    close(): void;
    [Symbol.asyncIterator](): AsyncGenerator<Message, void, undefined>;
    /** What comes, as it comes: the messages that the server sent together, of one channel each time. */
    batches(): AsyncGenerator<Message[], void, undefined>;
    /** @internal What asks the server for it, from where it stands. */
    request(): Told;
    /** @internal The journal is another one: what positions meant is over. */
    startAnew(): void;
    /** @internal */
    onSubscribed(told: Told): void;
    /** @internal */
    onDeliver(told: Told): void;
    /** @internal */
    onEvent(told: Told): void;
    /** @internal It is over: whoever waits for messages gets those that came, then the end or the failure. */
    end(failure: BrokerError | null): void;
}
