/** Publishing: what is on its way, how it is numbered, and what becomes of it when it is refused or not answered. */
import { BrokerError } from "./values.js";
import type { Receipt, Told } from "./values.js";
/**
 * The producer's line (specification §8): every message takes one number, dense and in the order of the calls, so that
 * whatever is sent again is stored once. A refusal takes no number and sends back all that is behind it.
 */
export declare class Line {
    #private;
    readonly producer: string;
    constructor(transmit: (message: Told) => void, reconnect: (detail: string) => void, queueBytesMax: number);
    /** Whether nothing waits for an answer. */
    get idle(): boolean;
    publish(channel: string, message: Told, alone: Told | null): Promise<Receipt>;
    /** A connection is there; its WELCOME says how far the line has come. */
    onWelcome(highest: number, sameJournal: boolean, textBytesMax: number): void;
    /** The connection is lost. */
    onLost(): void;
    onPublished(told: Told): void;
    /** A publish is refused, and with it all that were sent behind it. */
    onRefused(told: Told): void;
    /** Nothing is sent any more: what waits is refused, and what was sent has an unknown outcome. */
    end(failure: BrokerError): void;
}
