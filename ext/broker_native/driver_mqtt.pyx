"""MQTT 3.1.1 as the load driver speaks it, with QoS 0 and QoS 1.

    PUBLISH    0x30 | QoS << 1, size, u16 topic's size, topic, [u16 identifier,] payload    big-endian; both ways
    PUBACK     0x40 0x02 u16 identifier                                                     of QoS 1, both ways
    PINGRESP   0xd0 0x00
    size       7 bits a byte from the lowest, 0x80 on all but the last, up to 4 bytes

With QoS 0 nothing is answered, so a message counts as answered when it is written. With QoS 1 a message's identifier is
its number in turns of 65,535; an answer to it must be to one of that many newest messages, so a window of more cannot
be. A subscriber answers each message when it has been checked.

Whether a packet is a repetition (DUP) is not looked at: its payload's counter says whether it came before.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from broker_native.driver_load cimport (
    Connection, Dialect, FAILURE_PROTOCOL, Load, Publisher, Run, Subscriber, Text, connection_flush,
    connection_reserve, load_fail, payload_take, payload_write, publisher_acked, publisher_wrote, run_end,
    subscriber_lane_named, subscriber_remember, subscriber_usual)
from broker_native.histogram cimport Histogram

cdef enum:
    PUBLISH = 0x30
    PUBACK = 0x40
    PINGRESP = 0xD0
    PUBACK_BYTES = 4
    SIZE_BYTES_MAX = 4
    IDENTIFIERS_MAX = 65535        # 0 is none

IDENTIFIERS = IDENTIFIERS_MAX

cdef struct Packet:
    const uint8_t* body
    size_t bytes
    size_t taken                   # with its header; 0: it is not whole, or the run has failed


# --- Sending ------------------------------------------------------------------------------------------------------

cdef uint8_t* write_once(Load* load, Publisher* publisher, uint8_t* at, uint32_t channel, uint32_t count,
                         uint64_t time_ns) noexcept nogil:
    """Write PUBLISH packets of QoS 0, and take them for answered."""
    cdef Text head = load.heads[channel]
    cdef uint32_t i
    for i in range(count):
        memcpy(at, head.bytes, head.size)
        at += head.size
        payload_write(load, at, publisher.index, publisher.counters[channel] + i, time_ns, channel)
        at += load.payload_bytes
    publisher_wrote(publisher, channel, count)
    publisher_acked(publisher, publisher.acked + 1, count)
    return at


cdef uint8_t* write_answered(Load* load, Publisher* publisher, uint8_t* at, uint32_t channel, uint32_t count,
                             uint64_t time_ns) noexcept nogil:
    """Write PUBLISH packets of QoS 1."""
    cdef Text head = load.heads[channel]
    cdef uint32_t i, identifier
    for i in range(count):
        memcpy(at, head.bytes, head.size)
        at += head.size
        identifier = <uint32_t>((publisher.records + i) % IDENTIFIERS_MAX) + 1
        at[0], at[1] = <uint8_t>(identifier >> 8), <uint8_t>identifier
        payload_write(load, at + 2, publisher.index, publisher.counters[channel] + i, time_ns, channel)
        at += 2 + load.payload_bytes
    publisher_wrote(publisher, channel, count)
    return at


# --- Packets ------------------------------------------------------------------------------------------------------

cdef Packet packet_of(Load* load, Connection* connection, const uint8_t* data, size_t size) noexcept nogil:
    """Find the end of a packet."""
    cdef Packet packet = Packet(data, 0, 0)
    cdef size_t at = 1
    cdef uint32_t shift = 0
    while at < size and data[at] & 0x80:
        packet.bytes |= <size_t>(data[at] & 0x7F) << shift
        shift += 7
        at += 1
        if at > SIZE_BYTES_MAX:
            load_fail(load, connection, FAILURE_PROTOCOL, b"mqtt: a packet's size of more than four bytes")
            return packet
    if at >= size:
        return packet
    packet.bytes |= <size_t>data[at] << shift
    at += 1
    if packet.bytes > load.frame_bytes_max:
        load_fail(load, connection, FAILURE_PROTOCOL, b"mqtt: a packet larger than any that was sent")
        return packet
    packet.body = data + at
    if size - at >= packet.bytes:
        packet.taken = at + packet.bytes
    return packet


cdef bint take_answer(Load* load, Connection* connection, const Packet* packet) noexcept nogil:
    """Take a PUBACK: of the messages with its identifier, the newest."""
    cdef Publisher* publisher = connection.publisher
    cdef uint64_t newest, back
    cdef uint32_t identifier
    if publisher == NULL or packet.bytes != 2:
        load_fail(load, connection, FAILURE_PROTOCOL, b"mqtt: a PUBACK to a subscriber, or of another size")
        return False
    identifier = <uint32_t>packet.body[0] << 8 | packet.body[1]
    newest = (publisher.records + IDENTIFIERS_MAX - 1) % IDENTIFIERS_MAX + 1
    back = (newest + IDENTIFIERS_MAX - identifier) % IDENTIFIERS_MAX
    if identifier == 0 or back >= publisher.records or publisher.acked == publisher.records:
        load_fail(load, connection, FAILURE_PROTOCOL, b"mqtt: a PUBACK of nothing that was sent")
        return False
    publisher_acked(publisher, publisher.records - back, 1)
    return True


cdef bint answer(Load* load, Connection* connection, const uint8_t* identifier) noexcept nogil:
    """Write a PUBACK; it is sent with those of all that came together."""
    cdef uint8_t* at = connection_reserve(load, connection, PUBACK_BYTES)
    if at == NULL:
        return False
    at[0], at[1], at[2], at[3] = <uint8_t>PUBACK, 2, identifier[0], identifier[1]
    return True


cdef bint take_message(Load* load, Connection* connection, const uint8_t* data, const Packet* packet, Run* run,
                       Histogram latency) noexcept nogil:
    """Take a PUBLISH."""
    cdef Subscriber* subscriber = connection.subscriber
    cdef uint32_t qos = data[0] >> 1 & 3
    cdef size_t begin = subscriber_usual(subscriber, data, packet.taken) if subscriber != NULL else 0
    cdef const uint8_t* at = data + begin
    cdef const uint8_t* end = packet.body + packet.bytes
    cdef size_t topic_bytes
    if begin == 0:
        topic_bytes = <size_t>packet.body[0] << 8 | packet.body[1] if packet.bytes >= 2 else packet.bytes
        if subscriber == NULL or qos > 1 or packet.bytes < 2 + topic_bytes + 2 * qos:
            load_fail(load, connection, FAILURE_PROTOCOL, b"mqtt: a PUBLISH to a publisher, or that cannot be read")
            return False
        subscriber.lane = subscriber_lane_named(load, subscriber, packet.body + 2, topic_bytes)
        if subscriber.lane == NULL:
            load_fail(load, connection, FAILURE_PROTOCOL, b"mqtt: a message of a topic that was not asked for")
            return False
        at = packet.body + 2 + topic_bytes
        subscriber_remember(load, connection, data, <size_t>(at - data))
    if qos:
        if not answer(load, connection, at):
            return False
        at += 2
    payload_take(subscriber, at, <size_t>(end - at), run, latency)
    return True


cdef size_t take_packets(Load* load, Connection* connection, const uint8_t* data, size_t size, uint64_t now_ns,
                         Histogram latency) noexcept nogil:
    """Take the packets that have come whole, and send what they ask for."""
    cdef Run run = Run(now_ns, 0, 0)
    cdef Packet packet
    cdef size_t at = 0
    cdef uint8_t kind
    while at < size:
        packet = packet_of(load, connection, data + at, size - at)
        if packet.taken == 0:
            break
        kind = data[at] & 0xF0
        if kind == PUBLISH:
            if not take_message(load, connection, data + at, &packet, &run, latency):
                break
        elif kind == PUBACK:
            if not take_answer(load, connection, &packet):
                break
        elif kind != PINGRESP:
            load_fail(load, connection, FAILURE_PROTOCOL, b"mqtt: a packet that does not belong here")
            break
        at += packet.taken
    run_end(&run, latency)
    if connection.subscriber != NULL and connection.out_end > connection.out_begin and not connection.waits_to_write:
        connection_flush(load, connection)
    return at


# --- For the driver -----------------------------------------------------------------------------------------------

cdef Dialect once, answered
once.write = write_once
once.take = take_packets
once.assure = NULL
once.answered = False
answered.write = write_answered
answered.take = take_packets
answered.assure = NULL
answered.answered = True


cdef const Dialect* mqtt_dialect(uint32_t qos) noexcept nogil:
    return &answered if qos else &once


def publish_head(bytes topic, uint32_t payload_bytes, uint32_t qos):
    """Return a PUBLISH up to its payload, or with QoS 1 to its identifier."""
    cdef uint64_t rest = 2 + len(topic) + (2 if qos else 0) + <uint64_t>payload_bytes
    size = bytearray()
    while rest >= 0x80:
        size.append(<uint8_t>(rest | 0x80))
        rest >>= 7
    size.append(<uint8_t>rest)
    return b"%c%b%b%b" % (PUBLISH | qos << 1, size, len(topic).to_bytes(2, "big"), topic)
