"""What a client publishes: records gathered into PUBLISH frames by channel, kept until they are answered.

A record is written once, into its channel's open frame. When the connection takes bytes, open frames close in the
order of their first records and go out behind one another in few big objects; their records stay here, in bounded
bytes, until PUBLISHED or ERROR answers them, so that another connection can send them again.

Numbers are given when a frame is sent, never before: a producer's line is dense, so the order of the frames is the
order of the line. A frame that is refused takes no numbers, and the server refuses every later one that is in flight
with NUMBER_GAP. The buffer then waits until everything in flight is answered, which makes every answer unambiguous,
and goes on from the first refused number. After a reconnect `resume` is told the highest number that the server has:
frames up to it are sent again as they were and answered as duplicates, the rest follows under new numbers.

All of it belongs to one loop's thread, or to whichever thread has the lock of its bus.
"""

cimport cython

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset

from broker_native.layout cimport *
from broker_native.outcomes cimport Part, Publication, Waiter, Waking, make_part, make_publication
from broker_native.posted cimport (
    DELAYED,
    DONE,
    EXPECTING,
    FRAME_BYTES_CLOSE,
    FRAME_OVERHEAD_BYTES,
    POSTPONED,
    SENT,
    SPLIT,
    TRANSACTION,
    UNSENT,
    Frame,
    form_bytes,
    frame_add_waiter,
    frame_answer,
    frame_fail,
    frame_is_answered,
    frame_release,
    frame_reserve,
    frame_split,
    inner_names,
    inner_publishes,
    inner_size,
    inner_slot,
    may_be_stored,
    put_form,
    put_header,
    put_publish,
)
from broker_native.publishing cimport PublishChannels, Slot, find_slot, must_name
from broker_native.writing cimport NORMAL_PRIORITY, are_fields, put_record

# What becomes of a frame that the server refuses; the caller of `refuse` says which.
cdef enum:
    FOR_GOOD = 0
    FOR_ITS_NUMBER = 1
    FOR_ONE_RECORD = 2


@cython.final
cdef class PublishBuffer(PublishChannels):
    """Records on their way to the server.

    Args:
        loop: The event loop of all its callers.
        error: Builds an error of a registry name and a detail.
        check_channel: Checks a channel's name and answers its bytes, or raises.
        pack_headers: Packs a mapping of headers into bytes.
        kick: Called when there is something to take; not again until `take` has answered None.
        bytes_max: Bytes that may be kept, open or unanswered; past it posting raises BUSY.
    """

    def __cinit__(self, loop, *, error, check_channel, pack_headers, kick, size_t bytes_max):
        self.waking = Waking(loop)
        self.error = error
        self.check_channel = check_channel
        self.pack_headers = pack_headers
        self.kick = kick
        self.bytes_max = bytes_max
        self.payload_bytes_max = self.headers_bytes_max = self.transaction_bytes_max = 0x7FFFFFFF
        self.channels_max = 0xFFFFFFFF
        self.next_number = 1
        self.grow_ring(16)

    def __dealloc__(self):
        cdef size_t at
        if self.ring != NULL:
            for at in range(self.head, self.tail):
                frame_release(&self.ring[at & self.ring_mask])
        free(self.ring)

    @property
    def unanswered_bytes(self):
        """Bytes that are kept: open, or not answered."""
        return self.open_bytes + self.kept_bytes

    @property
    def records_unanswered(self):
        """Records that were posted and have no outcome yet."""
        return self.records_posted - self.records_answered

    # .. posting ..

    def post(self, str channel not None, payload, headers=None, key=None, int priority=NORMAL_PRIORITY, expiry_s=None,
             id=None):
        """Put one record into its channel's open frame.

        Args:
            channel: The channel's name.
            payload: Any bytes-like object; copied.
            headers: A mapping, or its packed bytes.
            key: 1 to 255 bytes.
            priority: 0 critical, 1 high, 2 normal, 3 low.
            expiry_s: Seconds after which it is no longer delivered, at least 1.
            id: 1 to 64 bytes, or text of as many in UTF-8.

        Raises:
            InvalidChannel: The name can be no channel's.
            RequestError: PAYLOAD_TOO_LARGE, HEADERS_TOO_LARGE, INVALID_ID or INVALID_RECORD; or CLOSED.
            Unavailable: BUSY; the bound on unanswered bytes is reached.
        """
        self.put(channel, payload, headers, key, priority, expiry_s, id)

    def publish(self, str channel not None, payload, headers=None, key=None, int priority=NORMAL_PRIORITY,
                expiry_s=None, id=None, expect=None):
        """The same as `post`, and answer a `Publication` of the outcome.

        Args:
            expect: (epoch, sequence) of the head that the channel must have; None for any.
        """
        cdef uint32_t slot
        cdef Frame* frame
        cdef uint64_t epoch = 0
        cdef uint64_t sequence = 0
        cdef Publication publication
        if expect is not None:
            if id is not None:
                raise self.error("INVALID_RECORD", "publish: got an id and a position to expect; one of them decides")
            self.take_expected(expect, &epoch, &sequence)
            # It is a frame of its own, and what was posted before goes before it.
            self.close_frames()
        slot = self.put(channel, payload, headers, key, priority, expiry_s, id)
        frame = &self.slots[slot].open
        publication = make_publication(self.waking, frame.count - 1, 1)
        frame_add_waiter(frame, publication)
        if expect is not None:
            frame.form, frame.epoch, frame.sequence = EXPECTING, epoch, sequence
            self.close_frame(slot)
        return publication

    def schedule(self, str channel not None, payload, uint64_t when, id, headers=None, key=None,
                 int priority=NORMAL_PRIORITY, expiry_s=None):
        """Have one record published later, and answer a `Publication` of a `Scheduled`.

        Args:
            when: Microseconds since 1970, or from the moment on in which the server takes it if the top bit is set.
            id: What it is called in its channel while it waits: a string or bytes, 1 to 64 bytes of UTF-8.

        Raises:
            RequestError: As `post`.
        """
        cdef uint32_t slot
        cdef Frame* frame
        cdef Publication publication
        if id is None:
            raise self.error("INVALID_ID", "message id: got None; what waits is found by its id")
        # It is a frame of its own, and what was posted before goes before it.
        self.close_frames()
        slot = self.put(channel, payload, headers, key, priority, expiry_s, id)
        frame = &self.slots[slot].open
        publication = make_publication(self.waking, 0, 1)
        publication.id = id
        frame_add_waiter(frame, publication)
        frame.form, frame.epoch = DELAYED, when
        self.close_frame(slot)
        return publication

    def publish_many(self, str channel not None, payloads, headers=None, key=None, int priority=NORMAL_PRIORITY,
                     expiry_s=None, ids=None):
        """Post every payload and answer one `Publication` of all: a list of receipts in order, adjoining ones merged.

        When one of them cannot be posted, those before it are, and the error is raised.

        Args:
            channel, payloads, headers, key, priority, expiry_s: As of `post`.
            ids: One for each payload, None for one without.

        Raises:
            ValueError: There are more payloads than ids, or fewer.
        """
        cdef Publication whole = make_publication(self.waking, 0, 0)
        cdef Part part = None
        cdef Frame* frame
        cdef uint32_t slot
        whole.outcome = []
        if ids is not None:
            payloads = zip(payloads, ids, strict=True)
        for payload in payloads:
            id = None
            if ids is not None:
                payload, id = payload
            slot = self.put(channel, payload, headers, key, priority, expiry_s, id)
            frame = &self.slots[slot].open
            if part is None or frame.count != part.index + part.count + 1:
                part = make_part(whole, frame.count - 1, whole.left)
                frame_add_waiter(frame, part)
            part.count += 1
            whole.left += 1
        if not whole.left:
            whole.finish()
        return whole

    cdef uint32_t put(self, str channel, object payload, object headers, object key, int priority, object expiry_s,
                      object id) except? 0xFFFFFFFF:
        """Write one record; answers the channel's slot, in whose open frame it is the last one."""
        cdef uint32_t slot = find_slot(self, channel)
        cdef Py_buffer view
        if PyBytes_CheckExact(payload):
            self.put_payload(slot, <const uint8_t*>PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload), headers, key,
                             priority, expiry_s, id)
            return slot
        PyObject_GetBuffer(payload, &view, PyBUF_SIMPLE)
        try:
            self.put_payload(slot, <const uint8_t*>view.buf, view.len, headers, key, priority, expiry_s, id)
        finally:
            PyBuffer_Release(&view)
        return slot

    cdef int put_payload(self, uint32_t slot, const uint8_t* payload, size_t payload_size, object headers, object key,
                         int priority, object expiry_s, object id) except -1:
        cdef size_t size = RECORD_HEADER_BYTES + payload_size
        cdef uint16_t flags = 0
        if payload_size > self.payload_bytes_max:
            self.refuse_payload(payload_size)
        if are_fields(headers, key, priority, expiry_s, id):
            flags = self.take_fields(headers, key, priority, expiry_s, id)
            size += self.fields.used
        put_record(self, self.reserve_record(slot, size), <uint32_t>size, flags, payload, payload_size)
        return self.count_record(slot, size)

    cdef uint8_t* reserve_record(self, uint32_t slot, size_t size) except NULL:
        """Room for a record in the slot's open frame; closes the frame first when it is full."""
        cdef Frame* frame = &self.slots[slot].open
        if self.closed is not None:
            raise self.closed
        if self.open_bytes + self.kept_bytes + size > self.bytes_max:
            self.check_room(size)
        if frame.count and frame.size + size > FRAME_BYTES_CLOSE:
            self.close_frame(slot)
        frame_reserve(frame, <uint32_t>size)
        return frame.records + frame.size

    cdef int take_expected(self, object expect, uint64_t* epoch, uint64_t* sequence) except -1:
        try:
            epoch[0], sequence[0] = expect
        except (TypeError, ValueError, OverflowError):
            raise self.error("INVALID_POSITION", f"expect: got {expect!r:.100}, expected (epoch, sequence), u64 each") \
                from None
        return 0

    cdef int check_room(self, size_t size) except -1:
        """Hold the bound on what is kept."""
        cdef size_t kept = self.open_bytes + self.kept_bytes
        # One record is always taken, or a small bound would refuse a large one for ever.
        if kept and kept + size > self.bytes_max:
            raise self.error("BUSY", f"publishes that are not answered: {kept + size} bytes, "
                                     f"limit {self.bytes_max} bytes; drain between posts")
        return 0

    cdef int count_record(self, uint32_t slot, size_t size) except -1:
        cdef Slot* owner = &self.slots[slot]
        owner.open.size += <uint32_t>size
        owner.open.count += 1
        self.open_bytes += size
        self.records_posted += 1
        if not owner.dirty:
            self.mark_dirty(slot)
        return 0 if self.kicked else self.kick_once()

    cdef int kick_once(self) except -1:
        if not self.kicked:
            self.kicked = True
            self.kick()
        return 0

    # .. the ring ..

    cdef int grow_ring(self, size_t capacity) except -1:
        cdef Frame* grown = <Frame*>malloc(capacity * sizeof(Frame))
        cdef size_t at
        if grown == NULL:
            raise MemoryError
        for at in range(self.head, self.tail):
            grown[at & (capacity - 1)] = self.ring[at & self.ring_mask]
        free(self.ring)
        self.ring = grown
        self.ring_mask = capacity - 1
        return 0

    cdef int append_frame(self, Frame* frame) except -1:
        if self.tail - self.head > self.ring_mask:
            self.grow_ring(2 * (self.ring_mask + 1))
        self.ring[self.tail & self.ring_mask] = frame[0]
        self.tail += 1
        return 0

    cdef int close_frame(self, uint32_t slot) except -1:
        """Move the slot's open frame to the end of the ring."""
        cdef Slot* owner = &self.slots[slot]
        cdef uint8_t* fitted
        if owner.open.capacity > 2 * owner.open.size:
            fitted = <uint8_t*>realloc(owner.open.records, owner.open.size)
            if fitted != NULL:
                owner.open.records = fitted
                owner.open.capacity = owner.open.size
        owner.open.slot = slot
        owner.open.state = UNSENT
        self.append_frame(&owner.open)
        self.open_bytes -= owner.open.size
        self.kept_bytes += owner.open.size + FRAME_OVERHEAD_BYTES
        owner.frames += 1
        memset(&owner.open, 0, sizeof(Frame))
        return 0

    cdef int close_frames(self) except -1:
        cdef uint32_t at
        for at in range(self.dirty_count):
            self.slots[self.dirty[at]].dirty = False
            if self.slots[self.dirty[at]].open.count:
                self.close_frame(self.dirty[at])
        self.dirty_count = 0
        return 0

    cdef int finish_frame(self, Frame* frame) except -1:
        """All of its outcomes are known: give its memory back."""
        frame.state = DONE
        self.records_answered += frame.count
        self.kept_bytes -= frame.size + FRAME_OVERHEAD_BYTES
        if frame.form == TRANSACTION:
            self.let_go_slots(frame)
        else:
            self.slots[frame.slot].frames -= 1
        frame_release(frame)
        return 0

    cdef int fail_frame(self, Frame* frame, object failure) except -1:
        cdef uint32_t unwatched = frame_fail(frame, failure)
        if unwatched:
            self.records_failed += unwatched
            if self.first_failure is None:
                self.first_failure = failure
        return self.finish_frame(frame)

    # .. sending ..

    def take(self, size_t bytes_max=262144):
        """Take frames to be sent now, as one object of about `bytes_max` bytes; None when there are none.

        Channels that this connection has not been told of are named in front of their first frame.
        """
        cdef size_t end, size
        if not self.open_for_sending or self.refused_number or self.postponed:
            return None
        if self.sent == self.tail:
            self.close_frames()
        if self.sent == self.tail:
            self.kicked = False
            return None
        end = self.sent
        size = 0
        while end < self.tail and size < bytes_max:
            size += self.sent_size(&self.ring[end & self.ring_mask])
            end += 1
        return self.send_frames(end, size)

    cdef size_t sent_size(self, Frame* frame) except 0:
        """Bytes of the frame, and of a CHANNEL frame before it when there must be one; that is decided here."""
        if frame.form == TRANSACTION:
            return self.sent_size_whole(frame)
        frame.names = must_name(self, frame.slot)
        return (FRAME_HEADER_BYTES + PUBLISH_HEADER_BYTES + form_bytes(frame.form) + frame.size
                + (self.name_size(frame.slot) if frame.names else 0))

    cdef size_t sent_size_whole(self, Frame* frame) except 0:
        """The same for a transaction."""
        cdef size_t size = FRAME_HEADER_BYTES + TRANSACTION_HEADER_BYTES + frame.size
        cdef uint8_t* at = frame.records
        while inner_publishes(at, frame):
            store_u16(at + 6, 1 if must_name(self, inner_slot(at)) else 0)
            if inner_names(at):
                size += self.name_size(inner_slot(at))
            at += inner_size(at)
        return size

    cdef bytes send_frames(self, size_t end, size_t size):
        cdef bytes block = PyBytes_FromStringAndSize(NULL, size)
        cdef uint8_t* at = <uint8_t*>PyBytes_AS_STRING(block)
        cdef Frame* frame
        while self.sent < end:
            frame = &self.ring[self.sent & self.ring_mask]
            if not frame.number:
                frame.number = self.next_number
                self.next_number += frame.count
            at = self.send_frame(frame, at)
            frame.state = SENT
            self.sent += 1
            self.in_flight += 1
        return block

    cdef uint8_t* send_frame(self, Frame* frame, uint8_t* at) except NULL:
        if frame.form == TRANSACTION:
            return self.send_whole(frame, at)
        if frame.names:
            at = self.send_name(frame.slot, at)
        at = put_publish(at, self.slots[frame.slot].number, frame.count, frame.number,
                         form_bytes(frame.form) + frame.size)
        if frame.form:
            at = put_form(at, frame.form, frame.epoch, frame.sequence)
        memcpy(at, frame.records, frame.size)
        return at + frame.size

    cdef uint8_t* send_whole(self, Frame* frame, uint8_t* at) except NULL:
        """Write a transaction, with the names that it needs before it and its publishes' channels and numbers."""
        cdef const uint8_t* kept = frame.records
        cdef uint64_t number = frame.number
        cdef uint8_t* end
        while inner_publishes(kept, frame):
            if inner_names(kept):
                at = self.send_name(inner_slot(kept), at)
            kept += inner_size(kept)
        at += put_header(at, KIND_TRANSACTION, TRANSACTION_HEADER_BYTES + frame.size)
        store_u32(at, frame.count)
        store_u32(at + 4, frame.acks)
        at += TRANSACTION_HEADER_BYTES
        memcpy(at, frame.records, frame.size)
        end = at + frame.size
        while at < end and at[4] == KIND_PUBLISH:
            store_u16(at + 6, 0)
            store_u32(at + FRAME_HEADER_BYTES, self.slots[inner_slot(at)].number)
            store_u64(at + FRAME_HEADER_BYTES + 8, number)
            number += 1
            at += inner_size(at)
        return end

    # .. answers ..

    cdef size_t find_sent(self, uint64_t number) except? 0:
        """The ring's index of the last sent frame that begins at or below `number`; `sent` when there is none."""
        cdef size_t low = self.head
        cdef size_t high = self.sent
        cdef size_t middle
        while low < high:
            middle = (low + high) // 2
            if self.ring[middle & self.ring_mask].number <= number:
                low = middle + 1
            else:
                high = middle
        return low - 1 if low > self.head else self.sent

    def answer(self, bytes body not None):
        """Take a PUBLISHED body.

        Raises:
            MalformedFrame: It answers what was not asked.
        """
        cdef const uint8_t* at = <const uint8_t*>PyBytes_AS_STRING(body)
        cdef const uint8_t* end = at + PyBytes_GET_SIZE(body)
        if PyBytes_GET_SIZE(body) % PUBLISHED_ENTRY_BYTES:
            raise self.error("MALFORMED_FRAME", f"PUBLISHED: got {len(body)} bytes")
        while at < end:
            self.answer_entry(load_u64(at), load_u64(at + 8), load_u64(at + 16), load_u32(at + 24), at[32],
                              at[33] & PUBLISHED_FLAG_DUPLICATE)
            at += PUBLISHED_ENTRY_BYTES
        self.drop_done()
        self.settle()

    cdef int answer_entry(self, uint64_t number, uint64_t epoch, uint64_t first, uint32_t count, uint32_t level,
                          bint duplicate) except -1:
        cdef size_t at = self.find_sent(number)
        cdef Frame* frame
        cdef uint32_t taken
        if not count:
            raise self.error("MALFORMED_FRAME", f"PUBLISHED: no numbers from {number} on")
        while count:
            frame = &self.ring[at & self.ring_mask]
            # The first number is not below the frame's, and those behind it follow on: no difference is negative.
            if at >= self.sent or frame.state != SENT or number - frame.number >= frame.count:
                raise self.error("MALFORMED_FRAME", f"PUBLISHED: number {number} is not in flight")
            taken = min(count, <uint32_t>(frame.number + frame.count - number))
            if frame.answered + taken > frame.count:
                raise self.error("MALFORMED_FRAME", f"PUBLISHED: number {number} is answered twice")
            frame_answer(frame, number, taken, epoch, first, level, duplicate)
            frame.answered += taken
            if frame.answered == frame.count:
                if not frame_is_answered(frame):
                    raise self.error("MALFORMED_FRAME", f"PUBLISHED: some of {frame.number} to {number} twice")
                self.in_flight -= 1
                self.finish_frame(frame)
            number += taken
            first += taken
            count -= taken
            at += 1
        self.answered_highest = max(self.answered_highest, number - 1)
        if level >= LEVEL_SYNCED:
            self.synced_highest = max(self.synced_highest, number - 1)
        return 0

    def refuse(self, uint64_t number, uint32_t count, failure, int verdict):
        """Take the refusal of a PUBLISH, or of several that follow one another.

        Args:
            number: The first number.
            count: How many.
            failure: Why.
            verdict: FOR_GOOD (0) fails its records; FOR_ITS_NUMBER (1) sends it again; FOR_ONE_RECORD (2) sends its
                halves again, until the bad record is alone.

        Raises:
            MalformedFrame: No such frame is in flight.
        """
        cdef size_t at
        cdef Frame* frame
        while True:
            at = self.find_sent(number)
            frame = &self.ring[at & self.ring_mask]
            if at >= self.sent or frame.state != SENT or frame.number != number or frame.count > count:
                raise self.error("MALFORMED_FRAME", f"ERROR: no publish of {count} numbers from {number} is in flight")
            number += frame.count
            count -= frame.count
            self.refuse_frame(frame, failure, verdict)
            if not count:
                break
        self.drop_done()
        self.settle()

    cdef int refuse_frame(self, Frame* frame, object failure, int verdict) except -1:
        """What `refuse` does for each frame."""
        self.in_flight -= 1
        if verdict == FOR_ITS_NUMBER:
            frame.state = POSTPONED
            self.postponed = True
        else:
            if not self.refused_number or frame.number < self.refused_number:
                self.refused_number = frame.number
            if verdict == FOR_ONE_RECORD and frame.count > 1 and frame.form != TRANSACTION:
                frame.state = SPLIT
            else:
                self.fail_frame(frame, self.failure_of(frame, failure))
        return 0

    cdef object failure_of(self, const Frame* frame, object failure):
        """Why a frame is refused: why its channel's name was, if it was."""
        cdef const uint8_t* at = frame.records
        if frame.form != TRANSACTION:
            return self.channel_failures.get(frame.slot, failure)
        while self.channel_failures and inner_publishes(at, frame):
            if inner_slot(at) in self.channel_failures:
                return self.channel_failures[inner_slot(at)]
            at += inner_size(at)
        return failure

    cdef int drop_done(self) except -1:
        while self.head < self.sent and self.ring[self.head & self.ring_mask].state == DONE:
            self.head += 1
        return 0

    @property
    def is_adrift(self):
        """Whether everything in flight was refused for its number alone: only a new handshake tells the right one."""
        return self.postponed and not self.refused_number and not self.in_flight

    cdef int settle(self) except -1:
        """After a refusal, once nothing is in flight: go on from the first refused number."""
        if self.in_flight or not self.refused_number:
            return 0
        self.next_number = self.refused_number
        self.refused_number = 0
        self.postponed = False
        self.line_up(0, None)
        self.kicked = True
        self.kick()
        return 0

    cdef int line_up(self, uint64_t highest, object unknown) except -1:
        """Make every frame that is not done ready to be sent, in the order of the line.

        Args:
            highest: Frames that were sent and not answered keep their numbers up to this one.
            unknown: If not None, those frames fail with it instead.
        """
        cdef Frame* old = self.ring
        cdef size_t mask = self.ring_mask
        cdef size_t head = self.head
        cdef size_t tail = self.tail
        cdef size_t at
        cdef size_t capacity = mask + 1
        cdef Frame* frame
        cdef Frame* fresh
        # A frame becomes two at most, so that nothing below needs room that is not there.
        while capacity < 2 * (tail - head):
            capacity *= 2
        fresh = <Frame*>malloc(capacity * sizeof(Frame))
        if fresh == NULL:
            raise MemoryError
        self.ring = fresh
        self.ring_mask = capacity - 1
        self.head = self.sent = self.tail = 0
        for at in range(head, tail):
            frame = &old[at & mask]
            if unknown is not None and may_be_stored(frame):
                self.fail_frame(frame, unknown)
            if frame.state != DONE:
                self.line_up_frame(frame, highest)
        free(old)
        return 0

    cdef int line_up_frame(self, Frame* frame, uint64_t highest) except -1:
        cdef Frame rest
        cdef uint32_t first = 0         # records of the part that is split off in front
        cdef Waiter waiter
        cdef bint stored = may_be_stored(frame) and frame.number <= highest
        if frame.waiters != NULL and frame.answered:
            for waiter in <list>frame.waiters:
                waiter.forget()
        frame.answered = 0
        if frame.state == SPLIT:
            first = frame.count // 2
        elif stored and highest - frame.number + 1 < frame.count and frame.form != TRANSACTION:
            first = <uint32_t>(highest - frame.number + 1)
        if not stored:
            frame.number = 0
        frame.state = UNSENT
        if first:
            frame_split(frame, first, &rest)
            self.kept_bytes += FRAME_OVERHEAD_BYTES
            self.slots[frame.slot].frames += 1
        self.append_frame(frame)
        if first:
            self.append_frame(&rest)
        return 0

    # .. connections ..

    def suspend(self):
        """The connection is gone: send nothing until `resume`."""
        self.open_for_sending = False
        self.refused_number = 0
        self.postponed = False
        self.in_flight = 0
        self.forget_numbers()

    def resume(self, uint64_t highest, unknown=None):
        """There is a new connection: send what was not answered again, and go on.

        Args:
            highest: The highest number of the line that the server has.
            unknown: The error for everything that was sent and not answered, when the server does not know the line.
        """
        self.line_up(highest, unknown)
        self.next_number = highest + 1
        self.open_for_sending = True
        self.kicked = True
        self.kick()

    def close(self, unsent, unknown):
        """Post nothing any more, and fail what is kept.

        Args:
            unsent: The error for what was never sent, and for every later call.
            unknown: The error for what was sent and not answered.
        """
        cdef Frame* frame
        self.close_frames()
        self.open_for_sending = False
        self.closed = unsent
        while self.head < self.tail:
            frame = &self.ring[self.head & self.ring_mask]
            if frame.state != DONE:
                self.fail_frame(frame, unknown if may_be_stored(frame) else unsent)
            self.head += 1
        self.sent = self.head
        self.in_flight = 0

    # .. outcomes ..

    def take_failure(self):
        """Take the first failure of a record that nobody waited for, with the count of them all; None without one."""
        failure, count = self.first_failure, self.records_failed - self.records_failed_told
        self.first_failure = None
        self.records_failed_told = self.records_failed
        return None if failure is None else (failure, count)
