"""What is fuzzed in native code: each target builds its world anew, takes one input, and judges what came of it.

- `IntakeTarget`: a hostile client. Frames in any cut go through `Intake` and `Publisher`; what was accepted is closed,
  checked as a group, applied or undone, and delivered; the answers and deliveries are read as a client reads them.
- `ChannelsTarget`: a client that names channels. Frames in any cut, in turns with a budget, on a connection that waits
  for names now and then; however they come together, each is handled once, in order.
- `PublishTarget`: one PUBLISH body, straight into `Publisher`, without the frames around it.
- `ReaderTarget`: a hostile server. Frames in any cut go through `FrameReader`; batches are read in every way.
- `ChunkTarget`: one DELIVER frame, uncut.
- `PostingTarget`: a hostile server's answers to publishes, refusals and new handshakes at any time.
- `GroupTarget`, `PageTarget`, `TreeTarget`: a hostile file: groups, index pages, LMDB's pages.
- `ToyTarget`: a parser with a planted mistake, which a fuzzer that works finds.

An exception that a caller of the code under test would not expect is a find, and so is a broken promise (`Broken`).
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from broker_native.crc32c cimport crc32c
from broker_native.fanout cimport Fanout, Subscription
from broker_native.intake cimport Clock, Intake, ReadBuffer
from broker_native.layout cimport *
from broker_native.lines cimport Line
from broker_native.messages cimport Batch, Cursor
from broker_native.names cimport name_is_channel
from broker_native.publisher cimport Publisher
from broker_native.tails cimport Tails
from tests.fuzz.engine cimport (
    PLAN_BYTES,
    STYLE_BYTES,
    STYLE_PIECES,
    STYLE_WHOLE,
    Cuts,
    Random,
    Target,
    cuts_begin,
    cuts_next,
    note,
    random_below,
)

from broker_native import btree, delta as deltas, groups, index
from broker_native.messages import FrameReader
from broker_native.posting import PublishBuffer

cdef enum:
    NOW_US = 1700000000
    FRAME_BYTES_MAX = 4096
    HEADERS_BYTES_MAX = 300
    PAYLOAD_BYTES_MAX = 1000
    BYTEWISE_BYTES_MAX = 512      # a longer input is cut into pieces instead: its executions would take all the time
    BATCHES_READ_MAX = 8
    READABLE = 0x100
    CHANNEL_NUMBER_BYTES = 4      # of a CHANNEL frame, before the name
    MIX = 0x01000193


class Broken(AssertionError):
    """A promise that holds for every input does not hold for this one."""


class Refused(Exception):
    """What code under test makes of an error that it reports."""

    def __init__(self, name, detail):
        super().__init__(name, detail)
        self.name = name


cdef object view_of(const uint8_t* data, size_t size):
    return PyMemoryView_FromMemory(<char*>data, <Py_ssize_t>size, READABLE)


cdef int feed_cut(object feed, const uint8_t* data, size_t size, uint8_t style, list found=None) except -1:
    """Feed an input's bytes in the pieces of its plan, each a heap block of its own size that does not outlive it."""
    cdef Cuts cuts
    cdef size_t at = PLAN_BYTES
    cdef size_t piece_size
    cdef uint8_t* piece
    cuts_begin(&cuts, data, size - PLAN_BYTES)
    cuts.style = STYLE_PIECES if style == STYLE_BYTES and size > BYTEWISE_BYTES_MAX else style
    while True:
        piece_size = cuts_next(&cuts)
        if not piece_size:
            return 0
        piece = <uint8_t*>malloc(piece_size)
        if piece == NULL:
            raise MemoryError
        memcpy(piece, data + at, piece_size)
        at += piece_size
        try:
            fed = feed(view_of(piece, piece_size))
            if found is not None:
                found.extend(<list>fed)
        finally:
            free(piece)


cdef bint repair_chunk(uint8_t* chunk, size_t size) noexcept nogil:
    """Give a chunk the size and the checksum that it should have."""
    if size < CHUNK_HEADER_BYTES:
        return False
    store_u32(chunk, <uint32_t>size)
    store_u32(chunk + CHUNK_CRC, crc32c(0, chunk + CHUNK_CHANNEL, size - CHUNK_CHANNEL))
    return True


cdef bint next_frame(const uint8_t* data, size_t size, size_t* at) noexcept nogil:
    """Whether a whole frame stands at `at`."""
    return size - at[0] >= FRAME_HEADER_BYTES and load_u32(data + at[0]) <= size - at[0] - FRAME_HEADER_BYTES


# -- a hostile client --------------------------------------------------------------------------------------------------


cdef class HostileClient(Intake):
    """The server's end of a connection: writes down what it is called for, and reads what it sends as a client does."""

    cdef uint64_t told
    cdef object reader
    cdef dict heads                     # (subscription, channel id, epoch) -> last sequence

    def __init__(self, fanout, buffer, clock):
        Intake.__init__(self, fanout, buffer, clock, FRAME_BYTES_MAX)
        self.reader = FrameReader(Refused, 1 << 24)
        self.reader.add_route(1, 1, "s.x")
        self.reader.add_route(2, 2)
        self.heads = {}
        self.outbox.transport = self

    cdef void tell(self, uint64_t what) noexcept:
        self.told = (self.told ^ what) * MIX
        self.told ^= self.told >> 29

    def on_frame(self, uint8_t kind, uint8_t flags, bytes body):
        self.tell(<uint64_t>kind << 8 | flags)
        self.tell(crc32c(0, <const uint8_t*>PyBytes_AS_STRING(body), <size_t>PyBytes_GET_SIZE(body)))

    def on_refused(self, int code, uint32_t slot, uint64_t number, uint32_t count):
        self.tell(<uint64_t>code << 32 | slot)
        self.tell(number)
        self.tell(count)
        note(<uint32_t>code)

    def on_duplicate(self, uint32_t slot, uint64_t number, uint32_t count):
        cdef uint64_t covered = 0
        self.tell(number)
        if not 1 <= number <= number + count - 1 < self.publisher.line.next:
            raise Broken(f"duplicate {number} of {count} on a line whose next is {self.publisher.line.next}")
        for _, at, _, more in self.publisher.line.lookup(number, count):
            if at != number + covered:
                raise Broken(f"lookup of {number} goes on at {at}")
            covered += more
        if covered != count:
            raise Broken(f"lookup of {count} numbers found {covered}")

    def on_malformed(self, int code, uint64_t size):
        self.tell(<uint64_t>code << 32 | size)
        self.stop()

    def on_credit(self, subscription):
        raise Broken("credit for a reader that catches up, and none does")

    def on_read(self):
        """A turn ends when the caller says so."""

    def writelines(self, list pieces):
        for piece in pieces:
            for item in self.reader.feed(piece):
                if len(<tuple>item) == 2:
                    self.check_dense(<uint32_t>item[0], <Batch>item[1])
                else:
                    self.tell(<uint64_t>len(<bytes>item[2]))
            if self.reader.failure is not None:
                raise Broken(f"what the server sends is not legal: {self.reader.failure}")

    cdef int check_dense(self, uint32_t subscription, Batch batch) except -1:
        cdef tuple key = (subscription, batch.channel_id, batch.epoch)
        cdef bytes payloads = b"".join(batch.payloads())
        last = self.heads.get(key)
        if last is not None and last + 1 != batch.first:
            raise Broken(f"channel {batch.channel_id}: {batch.first} follows {last}")
        if subscription == 1 and batch.channel != "s.x":
            raise Broken(f"a delivery of {batch.channel} to a reader of s.x")
        self.heads[key] = batch.last
        self.tell(crc32c(0, <const uint8_t*>PyBytes_AS_STRING(payloads), <size_t>PyBytes_GET_SIZE(payloads)))
        self.tell(batch.last - batch.first)
        return 0


cdef class IntakeTarget(Target):
    """A hostile client. The plan's first byte of state says in which state the connection is."""

    cdef ReadBuffer buffer
    cdef Clock clock
    cdef Tails tails
    cdef Fanout fanout
    cdef dict lines                     # producer -> line
    cdef uint64_t group
    cdef uint32_t chain
    cdef HostileClient client
    cdef dict subscriptions

    def __cinit__(self):
        self.framed = True
        self.buffer = ReadBuffer(4096)
        self.clock = Clock(0, True)
        self.clock.floor_us = NOW_US

    cdef int renew(self) except -1:
        if self.fanout is not None:
            self.fanout.close()
        self.tails = Tails(1, 4770)
        self.fanout = Fanout(self.tails)
        self.lines = {}
        self.group = self.chain = 0
        self.client = None
        self.tails.begin_run(1, 1)
        self.tails.load(b"e.x", 1, 2, PAYLOAD_BYTES_MAX)
        self.tails.load(b"a.x", 2, 2, PAYLOAD_BYTES_MAX)
        self.tails.load(b"s.x", 3, 2, PAYLOAD_BYTES_MAX)
        return 0

    cdef int connect(self) except -1:
        """Have a connection on which nothing has happened: the last one, unless it is closed or has half a frame."""
        if self.client is not None:
            if not self.client.closed and not self.client.spill.used:
                return 0
            self.fanout.detach(self.subscriptions[1], b"s.x")
            self.fanout.detach_pattern(self.subscriptions[2], b">")
            self.client.stop()  # what it has half of would else be kept, as for a connection that goes on
            self.client.outbox.close()
        self.client = HostileClient(self.fanout, self.buffer, self.clock)
        self.subscriptions = {1: Subscription(self.client.outbox, 1, 0, 1 << 20, False),
                              2: Subscription(self.client.outbox, 2, 0, 1 << 20, True)}
        self.fanout.attach(self.subscriptions[1], b"s.x")
        self.fanout.attach_pattern(self.subscriptions[2], b">")
        return 0

    cdef Publisher new_publisher(self):
        """A publisher with a line of its own: the numbers of each input count from 1."""
        cdef bytes producer = len(self.lines).to_bytes(16, "little")
        cdef Line line = Line(producer)
        cdef Publisher publisher = Publisher(self.tails, line, self.client, HEADERS_BYTES_MAX)
        self.lines[producer] = line
        publisher.bind(0, b"s.x")
        publisher.bind(1, b"e.x")
        publisher.bind(2, b"a.x")
        return publisher

    cdef int execute(self, const uint8_t* data, size_t size) except -1:
        cdef uint64_t told, whole
        if data[5] & 0xC0 == 0xC0:
            # Twice, on a new line each time, and nothing is committed.
            told = self.converse(data, size, data[4] & 3, True)
            whole = self.converse(data, size, STYLE_WHOLE, True)
            if told != whole:
                raise Broken("the same bytes in other pieces had another effect")
        else:
            self.converse(data, size, data[4] & 3, data[5] & 16)
        return 0

    cdef uint64_t converse(self, const uint8_t* data, size_t size, uint8_t style, bint fails) except? 0:
        cdef uint8_t state = data[5]
        cdef Subscription subscription
        self.connect()
        self.client.told = 0
        self.client.publisher = None if state & 1 else self.new_publisher()
        self.client.subscriptions = None if state & 2 else self.subscriptions
        for subscription in self.subscriptions.values():
            subscription.credit = 60000
            subscription.slow = False
        self.fanout.slow = []
        self.tails.accepted_waits = state & 4 != 0
        self.tails.refuse_code = 1008 if state & 8 else 0
        feed_cut(self.client.feed, data, size, style)
        self.finish(fails)
        return self.client.told

    cdef int finish(self, bint fails) except -1:
        """End the turn, and commit or fail what it left."""
        cdef bytes value
        cdef HostileClient client = self.client
        ephemeral, early = self.tails.close_turn()
        if ephemeral is not None:
            self.fanout.deliver(ephemeral, 0, 0, 0, 0)
        if early is not None:
            self.fanout.deliver(early, 0, self.tails.group_number, 0, DELIVER_FLAG_EARLY)
        for _, answers in self.tails.take_turn_answers():
            client.outbox.published(answers)
        if not self.tails.group_empty:
            number = self.tails.group_number
            value, early_count = self.tails.close_group(self.group, self.chain, 1, 1, NOW_US, 0, b"", 0)
            chain = index.check_group(value).chain
            answers = self.tails.take_answers()
            if fails:
                self.tails.undo(False)
            else:
                self.tails.apply_group(value, self.lines.__getitem__)
                self.group, self.chain = number, chain
                self.fanout.deliver(value, groups.chunk_offset(value, early_count), number, early_count, 0)
                for _, entries in answers:
                    client.outbox.published(entries)
        self.fanout.flush()
        return 0

    cdef void repair(self, uint8_t* data, size_t size, Random* random) noexcept:
        """Let the records of a PUBLISH end with its frame."""
        cdef size_t at = PLAN_BYTES
        while next_frame(data, size, &at):
            if data[at + 4] == KIND_PUBLISH and random_below(random, 2):
                repair_records(data + at + FRAME_HEADER_BYTES, load_u32(data + at), random)
            at += FRAME_HEADER_BYTES + load_u32(data + at)


# -- a client that names channels --------------------------------------------------------------------------------------


cdef class NamingClient(Intake):
    """The server's end of a connection: writes down each frame, alone or among others, and waits after some."""

    cdef list told                      # what was handled, in order
    cdef list ahead                     # names that `names_ahead` has told of, and that have not come yet
    cdef uint8_t state
    cdef uint32_t calls

    def __init__(self, fanout, buffer, clock, uint8_t state):
        Intake.__init__(self, fanout, buffer, clock, FRAME_BYTES_MAX)
        self.told = []
        self.ahead = []
        self.state = state

    cdef int tell(self, object kind, object number, object name) except -1:
        self.told.append((kind, number, name))
        if name is not None and self.ahead and self.ahead.pop(0) != name:
            raise Broken(f"{name} comes, and other names were told to be ahead")
        return 0

    cdef int wait(self) except -1:
        """Wait for what the newest frame needs, if it is that one's turn."""
        self.calls += 1
        if self.calls % (2 + (self.state & 7)) == 0:
            self.suspend()
        return 0

    def on_channels(self, uint32_t first, list names):
        cdef uint32_t count = <uint32_t>len(names)
        cdef uint32_t taken = count
        if count < 2 or <uint64_t>first + count > <uint64_t>1 << 32:
            raise Broken(f"{count} names from number {first} on came together")
        if first & 3 == 0:
            taken = count >> 1
        for index in range(taken):
            self.tell(KIND_CHANNEL, first + index, names[index])
        if taken:
            self.wait()
        return taken

    def on_frame(self, uint8_t kind, uint8_t flags, bytes body):
        cdef const uint8_t* at = <const uint8_t*>PyBytes_AS_STRING(body)
        cdef size_t size = <size_t>PyBytes_GET_SIZE(body)
        note(kind)
        if (kind == KIND_CHANNEL and not flags and size > CHANNEL_NUMBER_BYTES
                and name_is_channel(at + CHANNEL_NUMBER_BYTES, size - CHANNEL_NUMBER_BYTES)):
            self.tell(kind, load_u32(at), body[CHANNEL_NUMBER_BYTES:])
        else:
            self.tell(<uint32_t>kind << 8 | flags, body, None)
        self.wait()

    def on_malformed(self, int code, uint64_t size):
        self.tell(code, size, None)
        self.stop()

    def on_credit(self, subscription):
        raise Broken("credit for a subscription that nobody has")

    def on_failed(self, failure):
        raise failure

    def on_read(self):
        """A turn ends when the caller says so."""

    def on_put_off(self):
        """Whoever feeds it goes on."""

    def on_caught_up(self):
        """Whoever feeds it goes on."""

    cdef int settle_down(self) except -1:
        """Give it turns, and what it waits for, until nothing is left to handle."""
        cdef bint more = True
        while more and not self.closed:
            if self.suspended:
                self.ahead += self.names_ahead(self.state >> 3)
                self.resume()
            more = self.buffer.go_on() or self.suspended
        return 0


cdef class ChannelsTarget(Target):
    """A client that names channels. The plan's state says how often the connection waits and how far it looks ahead."""

    cdef ReadBuffer buffer
    cdef Clock clock
    cdef Fanout fanout

    def __cinit__(self):
        self.framed = True
        self.clock = Clock(0, True)
        self.clock.floor_us = NOW_US

    cdef int renew(self) except -1:
        if self.fanout is not None:
            self.fanout.close()
        self.fanout = Fanout(Tails(1, 4770))
        self.buffer = ReadBuffer(4096)
        self.buffer.schedule = do_nothing
        return 0

    cdef int execute(self, const uint8_t* data, size_t size) except -1:
        cdef list told = self.converse(data, size, data[4] & 3, data[5])
        if told != self.converse(data, size, STYLE_WHOLE, data[5] ^ 0xFF):
            raise Broken("the same frames in other pieces were handled otherwise")
        return 0

    cdef list converse(self, const uint8_t* data, size_t size, uint8_t style, uint8_t state):
        cdef NamingClient client = NamingClient(self.fanout, self.buffer, self.clock, state)
        feed_cut(client.feed, data, size, style)
        client.settle_down()
        client.stop()
        client.outbox.close()
        return client.told


def do_nothing():
    """Turns are given when the target says so."""


cdef class PublishTarget(Target):
    """A PUBLISH body on a line that is always at the number that the body says, unless the plan says otherwise."""

    cdef Tails tails
    cdef Publisher publisher
    cdef uint32_t taken

    cdef int renew(self) except -1:
        self.tails = Tails(1, 4770)
        self.tails.now_us = NOW_US
        self.tails.begin_run(1, 1)
        self.tails.load(b"e.x", 1, 2, PAYLOAD_BYTES_MAX)
        self.tails.load(b"a.x", 2, 2, PAYLOAD_BYTES_MAX)
        self.tails.load(b"s.x", 3, 2, PAYLOAD_BYTES_MAX)
        self.publisher = Publisher(self.tails, Line(b"p" * 16), self, HEADERS_BYTES_MAX)
        self.publisher.bind(0, b"s.x")
        self.publisher.bind(1, b"e.x")
        self.publisher.bind(2, b"a.x")
        self.taken = 0
        return 0

    cdef int execute(self, const uint8_t* data, size_t size) except -1:
        cdef const uint8_t* body = data + PLAN_BYTES
        cdef uint64_t before = self.tails.records
        cdef int code
        if size >= PLAN_BYTES + PUBLISH_HEADER_BYTES and data[5] & 3:
            self.publisher.line.next = load_u64(body + 8)
        code = self.publisher.publish(body, <uint32_t>(size - PLAN_BYTES))
        note(<uint32_t>code)
        if code == 0 and self.tails.records - before != load_u32(body + 4):
            raise Broken(f"{load_u32(body + 4)} records were announced, {self.tails.records - before} taken")
        if code and self.tails.records != before:
            raise Broken("a publish was refused and taken")
        self.taken += not code
        if self.taken == 16:
            # What was taken so often is a group that its own checks must pass.
            self.taken = 0
            self.tails.close_turn()
            value, _ = self.tails.close_group(0, 0, 1, 1, NOW_US, 0, b"", 0)
            index.check_group(value)
            self.tails.undo(False)
            self.tails.take_turn_answers()
        return 0

    cdef void repair(self, uint8_t* data, size_t size, Random* random) noexcept:
        repair_records(data + PLAN_BYTES, size - PLAN_BYTES, random)


cdef void repair_records(uint8_t* body, size_t size, Random* random) noexcept nogil:
    """Let the last record of a PUBLISH body end with it, and its count be true."""
    cdef size_t at = PUBLISH_HEADER_BYTES
    cdef uint32_t count = 0
    if size < PUBLISH_HEADER_BYTES:
        return
    while size - at >= RECORD_HEADER_BYTES:
        if load_u32(body + at) > size - at or load_u32(body + at) < RECORD_HEADER_BYTES:
            store_u32(body + at, <uint32_t>(size - at))
        at += load_u32(body + at)
        count += 1
    if random_below(random, 8):
        store_u32(body + 4, count)


# -- a hostile server --------------------------------------------------------------------------------------------------


cdef class ReaderTarget(Target):
    """A hostile server's frames."""

    def __cinit__(self):
        self.framed = True

    cdef int execute(self, const uint8_t* data, size_t size) except -1:
        cdef list found = []
        reader = FrameReader(Refused, FRAME_BYTES_MAX)
        reader.journal = b"j" * 16
        reader.add_route(1, 1, "a.x")
        reader.add_route(2, 2)
        reader.add_route(3, None)
        feed_cut(reader.feed, data, size, data[4] & 3, found)
        if reader.failure is not None and not isinstance(reader.failure, Refused):
            raise reader.failure
        if data[5] & 0xC0 == 0xC0:
            self.check_uncut(found, reader.failure, data, size)
        for item in found[:BATCHES_READ_MAX]:
            if len(<tuple>item) == 2:
                self.read((<tuple>item)[1], data[6])
        return 0

    cdef int check_uncut(self, list found, failure, const uint8_t* data, size_t size) except -1:
        again = FrameReader(Refused, FRAME_BYTES_MAX)
        again.add_route(1, 1, "a.x")
        again.add_route(2, 2)
        again.add_route(3, None)
        whole = again.feed(view_of(data + PLAN_BYTES, size - PLAN_BYTES))
        if [shown(item) for item in found] != [shown(item) for item in whole] or str(failure) != str(again.failure):
            raise Broken("the same bytes in other pieces were read otherwise")
        return 0

    cdef int read(self, Batch batch, uint8_t cut) except -1:
        cdef list payloads = batch.payloads()
        cdef list messages = list(batch)
        cdef uint64_t sequences = batch.last - batch.first + 1
        cdef Batch rest
        cdef Cursor cursor
        gone = sum([run for _, run, _ in batch.gone])
        if len(messages) + gone != sequences or [message.payload for message in messages] != payloads:
            raise Broken(f"{len(messages)} messages and {gone} gone are no {sequences} sequences")
        for message in messages:
            message.key, message.publisher, message.priority, message.expiry_s, message.time
            try:
                message.headers
            except ValueError:
                # Headers are the publisher's; the client says so when somebody asks for them.
                note(1)
        rest = batch.after(batch.first + cut % sequences)
        if rest is not None and [message.sequence for message in rest] != [
            message.sequence for message in messages if message.sequence >= rest.first
        ]:
            raise Broken("a clipped batch has other messages")
        batch.position, batch.bus_position
        cursor = Cursor(None, 1 << 30, None)
        cursor.push(batch)
        for message in messages:
            if cursor.take_message().sequence != message.sequence:
                raise Broken("a cursor hands out other messages")
        if cursor.take_message() is not None:
            raise Broken("a cursor hands out more messages than there are")
        return 0

    cdef void repair(self, uint8_t* data, size_t size, Random* random) noexcept:
        repair_deliveries(data, size)


cdef void repair_deliveries(uint8_t* data, size_t size) noexcept nogil:
    """Give the chunks in DELIVER frames their sizes and checksums."""
    cdef size_t at = PLAN_BYTES
    cdef size_t chunk, end
    while next_frame(data, size, &at):
        end = at + FRAME_HEADER_BYTES + load_u32(data + at)
        chunk = at + FRAME_HEADER_BYTES + DELIVER_HEADER_BYTES
        if data[at + 4] == KIND_DELIVER and chunk < end:
            if data[at + 5] & DELIVER_FLAG_NAME:
                chunk += 1 + data[chunk]
            if chunk < end:
                repair_chunk(data + chunk, end - chunk)
        at = end


cdef class ChunkTarget(Target):
    """One DELIVER frame, uncut: what most frames of a server are."""

    cdef object reader

    def __cinit__(self):
        self.framed = True

    cdef int renew(self) except -1:
        self.reader = None
        return 0

    cdef int execute(self, const uint8_t* data, size_t size) except -1:
        cdef Batch batch
        cdef list found
        if self.reader is None:
            self.reader = FrameReader(Refused, FRAME_BYTES_MAX)
            self.reader.add_route(1, 1, "a.x")
            self.reader.add_route(2, 2)
            self.reader.add_route(3, None)
        found = self.reader.feed(view_of(data + PLAN_BYTES, size - PLAN_BYTES))
        for item in found:
            if len(<tuple>item) == 2:
                batch = (<tuple>item)[1]
                note(<uint32_t>batch.messages + 16)
                if len(batch.payloads()) != batch.messages:
                    raise Broken("a batch counts its messages wrongly")
        # What came after the last whole frame would be the next input's beginning.
        self.reader = None
        return 0

    cdef void repair(self, uint8_t* data, size_t size, Random* random) noexcept:
        repair_deliveries(data, size)


cdef object shown(tuple item):
    """What two readings of the same bytes have in common."""
    cdef Batch batch
    if len(item) != 2:
        return item
    batch = item[1]
    return (item[0], batch.channel, batch.channel_id, batch.first, batch.last, batch.group, batch.index, batch.early,
            batch.payloads())


class NoLoop:
    """As much of a loop as a buffer of publishes needs."""

    def __init__(self):
        self.called = []

    def call_soon(self, callback):
        self.called.append(callback)

    def turn(self):
        """Call what was to be called soon."""
        while self.called:
            self.called.pop()()


cdef class PostingTarget(Target):
    """A hostile server's answers. Kinds of frames are steps: 18 bodies of PUBLISHED, refusals, new connections."""

    def __cinit__(self):
        self.framed = True

    cdef int execute(self, const uint8_t* data, size_t size) except -1:
        cdef size_t at = PLAN_BYTES
        cdef uint32_t body
        cdef list waiting = []
        loop = NoLoop()
        posts = PublishBuffer(loop, error=Refused, check_channel=str.encode, pack_headers=bytes, kick=bool,
                              bytes_max=1 << 20)
        posts.payload_bytes_max = 1000
        posts.resume(0)
        waiting.append(posts.publish("a.x", b"1"))
        waiting.append(posts.publish_many("a.y", [b"2", b"3", b"4", b"5"]))
        posts.post("a.x", b"6")
        posts.take()
        while next_frame(data, size, &at):
            body = load_u32(data + at)
            try:
                self.step(loop, posts, waiting, data + at, body)
            except Refused:
                # Malformed: the client ends the connection, and handshakes again.
                posts.suspend()
            at += FRAME_HEADER_BYTES + body
        posts.close(Refused("CLOSED", ""), Refused("COMMIT_UNKNOWN", ""))
        loop.turn()
        self.check(posts, waiting)
        return 0

    cdef int step(self, loop, posts, list waiting, const uint8_t* frame, uint32_t size) except -1:
        cdef const uint8_t* body = frame + FRAME_HEADER_BYTES
        kind = frame[4] % 8
        if kind == 0 or size < 12:
            posts.answer(PyBytes_FromStringAndSize(<const char*>body, size))
        elif kind == 1:
            posts.refuse(load_u64(body), load_u32(body + 8), Refused("X", ""), frame[5] % 3)
        elif kind == 2:
            posts.refuse_channel(load_u32(body), Refused("X", ""))
        elif kind == 3:
            posts.suspend()
        elif kind == 4:
            posts.suspend()
            posts.resume(load_u64(body) % 16)
        elif kind == 5:
            posts.suspend()
            posts.resume(load_u64(body), Refused("COMMIT_UNKNOWN", ""))
        elif kind == 6:
            waiting.append(posts.publish_many("a.z", [b"x"] * (1 + frame[5] % 5)))
        posts.take(1 + frame[5])
        loop.turn()

    cdef int check(self, posts, list waiting) except -1:
        for publication in waiting:
            if not publication.done():
                raise Broken("a publication that nobody will answer")
            publication.exception()
        if posts.records_unanswered or posts.in_flight:
            raise Broken(f"{posts.records_unanswered} records are still waited for after the end")
        if posts.answered_highest > 1 << 63:
            raise Broken(f"the highest number that was answered is {posts.answered_highest}")
        return 0


# -- a hostile file ----------------------------------------------------------------------------------------------------


cdef class GroupTarget(Target):
    """A journal's value that somebody wrote: checked, indexed, looked up, cut, and applied when its checks pass."""

    cdef int execute(self, const uint8_t* data, size_t size) except -1:
        cdef bytes value = PyBytes_FromStringAndSize(<const char*>data + PLAN_BYTES, <Py_ssize_t>(size - PLAN_BYTES))
        group = view_of(data + PLAN_BYTES, size - PLAN_BYTES)
        try:
            index.read_header(group)
        except index.GroupDamaged:
            note(2)
        self.cut(group, data[5], load_u16(data + 6))
        try:
            index.check_group(group)
        except index.GroupDamaged as damage:
            note(<uint32_t>hash(damage.reason) & 0xFFFF)
            return 0
        self.look_up(group)
        self.apply(value)
        return 0

    cdef int cut(self, group, uint8_t channel, uint16_t place) except -1:
        """Take chunks out of a group that nobody has checked."""
        cdef list found = []
        try:
            index.scan_group(group, 1, -1, 1 << 20, None, found)
            for _, _, chunk in found:
                self.cut_chunk(chunk, place)
        except index.GroupDamaged:
            note(3)
        try:
            index.cut_chunk(group, channel, (1, 0, place, place >> 3, 1, 1))
        except index.GroupDamaged:
            note(4)
        return 0

    cdef int cut_chunk(self, bytes chunk, uint16_t place) except -1:
        """What catching up does with a chunk that begins before a reader's position."""
        _, _, first, count = groups.chunk_head(chunk)
        if count < 2 or first + count > 1 << 63:
            return 0
        try:
            cut = groups.chunk_cut(chunk, first + place % (count - 1))
        except ValueError:
            return 0
        if groups.chunk_head(cut)[2] != first + place % (count - 1) + 1:
            raise Broken("a cut chunk begins elsewhere")
        return 0

    cdef int look_up(self, group) except -1:
        segment = index.SegmentIndex()
        delta = deltas.TableDelta()
        try:
            segment.add(group)
            delta.add(group)
        except index.GroupDamaged:
            # Checks that need more than the group alone: order of sequences, meaning of entries.
            return 0
        delta.finish()
        for channel in range(1, 5):
            for place in segment.find(channel, 0, 1 << 20):
                index.cut_chunk(group, channel, place)
        for key, page in segment.pages():
            index.find_in_page(page, int.from_bytes(key[:8], "big"), 0, 1 << 20)
        return 0

    cdef int apply(self, bytes value) except -1:
        cdef Tails tails = Tails(1, 4770)
        line = Line(b"p" * 16)
        try:
            tails.apply_group(value, lambda _: line)
        except ValueError:
            note(5)
        for name in tails.names():
            tails.info(name)
        return 0

    cdef void repair(self, uint8_t* data, size_t size, Random* random) noexcept:
        cdef uint8_t* group = data + PLAN_BYTES
        cdef size_t whole = size - PLAN_BYTES
        cdef size_t at = GROUP_HEADER_BYTES
        cdef size_t end, chunk
        cdef uint32_t count = 0
        if whole < GROUP_HEADER_BYTES:
            return
        store_u32(group, GROUP_MAGIC)
        store_u32(group + GROUP_FORMAT_AT, GROUP_FORMAT | GROUP_HEADER_BYTES << 16)
        store_u64(group + GROUP_SIZE, whole)
        store_u64(group + GROUP_RESERVED, 0)
        end = GROUP_HEADER_BYTES + <size_t>load_u32(group + GROUP_ENTRIES_BYTES)
        end = end if end <= whole else whole
        while end - at >= ENTRY_HEADER_BYTES and ENTRY_HEADER_BYTES <= load_u32(group + at) <= end - at:
            if load_u16(group + at + 4) == ENTRY_CHANNEL and load_u32(group + at) >= ENTRY_HEADER_BYTES + 8:
                # Ids are dense, and a table as long as the largest is made: 2**32 of them are allowed for.
                store_u64(group + at + ENTRY_HEADER_BYTES, load_u64(group + at + ENTRY_HEADER_BYTES) & 0xFFF)
            at += load_u32(group + at)
            count += 1
        store_u32(group + GROUP_ENTRIES_BYTES, <uint32_t>(at - GROUP_HEADER_BYTES))
        store_u32(group + GROUP_ENTRIES_COUNT, count)
        count = 0
        while whole - at >= CHUNK_HEADER_BYTES:
            chunk = load_u32(group + at)
            if chunk < CHUNK_HEADER_BYTES or whole - at < chunk or whole - at - chunk < CHUNK_HEADER_BYTES:
                chunk = whole - at
            repair_chunk(group + at, chunk)
            at += chunk
            count += 1
        store_u32(group + GROUP_CHUNKS_COUNT, count)
        store_u32(group + GROUP_CHAIN, self.chain(group, whole))

    cdef uint32_t chain(self, const uint8_t* group, size_t whole) noexcept:
        cdef size_t at = GROUP_HEADER_BYTES + <size_t>load_u32(group + GROUP_ENTRIES_BYTES)
        cdef uint32_t chain = crc32c(0, group, GROUP_CHAIN)
        chain = crc32c(chain, group + GROUP_PREVIOUS_CHAIN, 4)
        chain = crc32c(chain, group + GROUP_HEADER_BYTES, load_u32(group + GROUP_ENTRIES_BYTES))
        while whole - at >= CHUNK_HEADER_BYTES:
            chain = crc32c(chain, group + at + CHUNK_CRC, 4)
            at += load_u32(group + at)
        return chain


cdef class PageTarget(Target):
    """A page of a sealed segment's index."""

    cdef int execute(self, const uint8_t* data, size_t size) except -1:
        page = view_of(data + PLAN_BYTES, size - PLAN_BYTES)
        try:
            places, _ = index.find_in_page(page, data[5] & 7, load_u16(data + 6) & 255, 1 << 16)
        except index.GroupDamaged:
            note(1)
        else:
            note(<uint32_t>len(places) + 2)
        return 0

    cdef void repair(self, uint8_t* data, size_t size, Random* random) noexcept:
        cdef uint8_t* page = data + PLAN_BYTES
        cdef size_t whole = size - PLAN_BYTES
        if whole >= 16:
            store_u32(page, <uint32_t>whole)
            if random_below(random, 2):
                store_u32(page + 12, <uint32_t>(whole - 16) // 40)
            store_u32(page + 4, crc32c(0, page + 8, whole - 8))


cdef class TreeTarget(Target):
    """An LMDB file before LMDB sees it. What passes must be found without complaint."""

    cdef int execute(self, const uint8_t* data, size_t size) except -1:
        file = view_of(data + PLAN_BYTES, size - PLAN_BYTES)
        sound = True
        try:
            btree.check_tree(file, 0, data[5] & 1)
        except btree.TreeDamaged as damage:
            sound = False
            note(<uint32_t>damage.offset & 0xFF)
        for key in (b"a", b"key7", b"zz"):
            try:
                found = btree.find_row(file, 0, key)
                if found is not None and found[0] + found[1] > size - PLAN_BYTES:
                    raise Broken("a row lies outside of its file")
            except btree.TreeDamaged:
                if sound:
                    raise
        return 0


# -- planted mistakes --------------------------------------------------------------------------------------------------


cdef class ToyTarget(Target):
    """A parser of (u32 size, u32 kind, body) with one planted mistake.

    Args:
        mistake: "bound": a size is compared one too generously; "unchecked": a count is taken on trust; "loop": a
            size of zero makes no progress for a long time; "leak": bodies of one kind are never freed; "none".
    """

    cdef str mistake
    cdef volatile uint64_t sum

    def __cinit__(self, str mistake):
        self.mistake = mistake
        self.framed = True

    cdef int execute(self, const uint8_t* data, size_t size) except -1:
        cdef size_t at = PLAN_BYTES
        cdef size_t slack = 1 if self.mistake == "bound" else 0
        cdef size_t body, item, count
        cdef uint64_t round
        cdef void* leaked
        while size - at >= FRAME_HEADER_BYTES:
            body = load_u32(data + at)
            if body > size - at - FRAME_HEADER_BYTES + slack:
                return 0
            if data[at + 4] == 7:
                for item in range(body):
                    self.sum += data[at + FRAME_HEADER_BYTES + item]
            elif data[at + 4] == 8 and body >= 4:
                count = load_u32(data + at + FRAME_HEADER_BYTES) if self.mistake == "unchecked" else 0
                for item in range(count):
                    self.sum += data[at + FRAME_HEADER_BYTES + item]
            elif data[at + 4] == 9 and body == 0 and self.mistake == "loop":
                for round in range(<uint64_t>1 << 28):
                    self.sum += round
            elif data[at + 4] == 10 and self.mistake == "leak":
                leaked = malloc(65536)
                if leaked != NULL:
                    memset(leaked, 1, 65536)
            at += FRAME_HEADER_BYTES + body
            if at > size:
                return 0
        return 0
