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
import { Subscription } from "./subscription.js";
import { BrokerError, Message } from "./values.js";
import type { ConnectOptions, Payload, PublishOptions, Receipt, Socket } from "./values.js";
import type { State, SubscribeOptions } from "./values.js";
export { BrokerError, Message, Subscription };
export type { ConnectOptions, Payload, PublishOptions, Receipt, Socket, State, SubscribeOptions };
export type { From, SubscriptionEvent } from "./values.js";
export interface AskOptions {
    headers?: Record<string, unknown>;
    /** How long the answer may take, in milliseconds; 5,000 unless said. */
    timeoutMs?: number;
}
/** A connection to a broker that is made anew whenever it is lost. Use `connect`. */
export declare class Broker {
    #private;
    state: State;
    /** What WELCOME told of the connection that is there, or was there last. */
    welcome: Record<string, unknown>;
    /** Use `connect`. */
    constructor(url: string, options: ConnectOptions);
    /** @internal */
    open(): Promise<Broker>;
    /** Publish a message; resolves when it has the durability that its channel promises. */
    publish(channel: string, payload: Payload, options?: PublishOptions): Promise<Receipt>;
    /** Read channels, or all that a pattern selects; with a function it is called for each message, at once. */
    subscribe(filters: string | readonly string[], options?: SubscribeOptions, take?: ((message: Message) => void) | null): Subscription;
    /** Ask what REQUEST asks (specification §13, §18); resolves to the keys of REPLY. */
    request(what: string, members?: Record<string, unknown>): Promise<any>;
    /** Publish a request and wait for its first answer. */
    ask(channel: string, payload: Payload, options?: AskOptions): Promise<Message>;
    /** Answer a message that was asked: one with the header `reply-to`. */
    answer(message: Message, payload: Payload): void;
    /** Measure how long the server takes to answer, in milliseconds. */
    ping(): Promise<number>;
    /** Wait until what was published is answered, `timeoutMs` at most, then end the connection for good. */
    close(timeoutMs?: number): Promise<void>;
    /** @internal */
    forget(subscription: Subscription): void;
    /** @internal */
    grant(subscription: Subscription, bytes: number): void;
}
/**
 * Connect to a broker.
 *
 * @param url of its WebSocket, "wss://host/v1/socket"; in a page a path is enough
 * @returns when the server has answered
 * @throws BrokerError when it refuses, or when there is none within `timeoutMs`
 */
export declare function connect(url: string, options?: ConnectOptions): Promise<Broker>;
