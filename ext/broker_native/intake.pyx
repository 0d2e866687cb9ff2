"""The server's side of one byte stream.

Frames are found in the loop's shared read buffer without copying; only a frame that is cut by the end of what has
arrived goes to a spill of its connection, which grows with what arrives and never by what was declared. PUBLISH and
CREDIT are decided here, in C, and so are a TRANSACTION and a PUBLISH with EXPECT that are taken, and an ACK that does
no more than acknowledge; every other frame goes to `on_frame` of the subclass, in order. A read of nothing but such
ACKs is not told of when the turn's end is due anyway.

What one peer costs the others is bounded, without a look at those who do nothing of it:

- Half frames of a loop's connections share a pool of bytes. When it is over its bound, the one that began first is
  ended: a peer that dribbles pays, not the publisher who happens to be in the middle of a frame.
- Frames that Python handles (control frames, refused publishes) are handled so many a turn, of one connection and of
  all. The rest of what a connection sent is put off, in order, and goes on in a later turn, one connection after the
  other; meanwhile the connection is not read.
- A frame that cannot be handled yet suspends its connection alone: what follows is put off, in order, until `resume`,
  and `names_ahead` says which channels the frames that wait are about to name, each once.

CHANNEL frames with consecutive numbers and well-formed names that came together are handed over together: one call for
some dozens of them, since a client that comes back names all that it publishes to, and may publish to a million. So
are PUBLISH frames with AT.

A subclass gives `on_frame(kind, flags, body)`, `on_channels(first, names)` (answers how many of the frames it has
taken; the first of those that it has not goes to `on_frame`, and so does one that stands alone), `on_delayed(frames)`
(the same of PUBLISH frames with AT, as bytes),
`on_refused(code, slot, number, count)`, `on_duplicate(slot, number, count)`, `on_ids_absent(body)` (of a PUBLISH that
has to wait for the ids of its channel's newest records), `on_malformed(code, size)`,
`on_credit(subscription)` (of one that is behind), `on_ack(body)` (when it has `members`; else an ACK is as any frame),
`on_over_rate(kind, flags, body, wait_ms)` (a frame with records is more than `rate` lets in now: answer that),
`on_exhausted()` (there is no memory for what came, or for what should be sent: end the connection) and `on_read()`
(bytes were taken in: end the turn). When it shares its loop with others, also `on_put_off()` and `on_caught_up()`
(pause and resume reading), `on_crowded(name, bytes, limit, held_us)` (end the connection: it takes up room that others
need) and `on_failed(failure)` (a handler raised while it went on with what was put off). All of it belongs to the
loop's thread.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

from broker_native.channel cimport Channel, channel_prefetch, channel_prefetch_rare
from broker_native.fanout cimport Fanout, Outbox, Subscription
from broker_native.growing cimport Bytes, bytes_release
from broker_native.ids_ahead cimport ahead_has_room
from broker_native.layout cimport *
from broker_native.members cimport RotationMember
from broker_native.names cimport name_is_channel
from broker_native.publisher cimport Publisher, publisher_channel
from broker_native.transactions cimport Verdict, expecting_decide, transaction_decide

cdef enum:
    CODE_MALFORMED_FRAME = 3001
    CODE_FRAME_TOO_LARGE = 3002
    DUPLICATE = 1                       # as in publisher.pyx
    IDS_ABSENT = 2

    # What becomes of a frame.
    TAKEN = 0
    TAKEN_LAST = 1                      # and nothing after it: the connection is over
    TAKEN_ENOUGH = 2                    # and what follows is put off
    PUT_OFF = 3                         # not taken: it is handled in a later turn

    # Frames for Python that are handled in a turn: of one connection, and of all. Whoever has a message under way waits
    # for as long, and a turn that is much shorter would be all polling. The counts hold when no clock moves.
    SLOW_FRAMES_MAX = 32
    SLOW_US_MAX = 100
    TURN_FRAMES_MAX = 64
    TURN_US_MAX = 200

    # Reads that fill the buffer, one after the other, before a connection lets others be read: a loop may give one that
    # has more to give as many in a row as it likes, and an ephemeral or a control frame may be 24 bytes.
    FULL_READS_MAX = 4

    # So many frames ahead a PUBLISH has its channel fetched into the cache, if its connection publishes to so many
    # channels that they are not there anyway; and so many ahead what a channel's first record needs.
    AHEAD = 10
    AHEAD_NEW = 5
    CHANNELS_CACHED = 1024

    SPILL_BYTES_MIN = 64
    CHANNEL_NUMBER_BYTES = 4
    # CHANNEL frames that are handed over together, and how many of them count as one frame: together they cost less.
    CHANNELS_MAX = 64
    CHANNELS_A_FRAME = 8
    # The same of frames that wait for their time, which are decided natively.
    DELAYED_MAX = 256
    DELAYED_A_FRAME = 32
    CROWDED_READ_BYTES = 4096           # of a read while much is put off: it adds little to that
    EARLY_BYTES_MAX = 4 << 20
    PARTIAL_BYTES_MAX = 32 << 20


cdef inline bint is_naming(const uint8_t* frame, size_t size) noexcept nogil:
    """Whether a frame with so many bytes of body, all there, is a CHANNEL with a well-formed name."""
    return (frame[4] == KIND_CHANNEL and frame[5] == 0 and load_u16(frame + 6) == 0 and size > CHANNEL_NUMBER_BYTES
            and name_is_channel(frame + FRAME_HEADER_BYTES + CHANNEL_NUMBER_BYTES, size - CHANNEL_NUMBER_BYTES))


cdef inline bytes name_in(const uint8_t* frame, size_t size):
    """The name in such a frame."""
    return PyBytes_FromStringAndSize(<const char*>frame + FRAME_HEADER_BYTES + CHANNEL_NUMBER_BYTES,
                                     <Py_ssize_t>(size - CHANNEL_NUMBER_BYTES))


cdef Channel* channel_ahead(Publisher publisher, const uint8_t* data, size_t size, size_t* at) noexcept:
    """The channel of the frame at `at`, if it is any, and on to the frame after it.

    Nothing of the frame has been checked yet: one that is not whole is the last.
    """
    cdef const uint8_t* frame = data + at[0]
    cdef size_t frame_bytes = size
    if size - at[0] >= FRAME_HEADER_BYTES:
        frame_bytes = FRAME_HEADER_BYTES + <size_t>load_u32(frame)
    if frame_bytes > size - at[0]:
        at[0] = size
        return NULL
    at[0] += frame_bytes
    if frame[4] != KIND_PUBLISH or frame_bytes < FRAME_HEADER_BYTES + PUBLISH_HEADER_BYTES:
        return NULL
    return publisher_channel(publisher, load_u32(frame + FRAME_HEADER_BYTES))


cdef void look_ahead(Publisher publisher, const uint8_t* data, size_t size, size_t* far, size_t* near) noexcept:
    """Have the channels of two frames ahead on their way into the cache, and go on by one frame each."""
    cdef Channel* channel
    if far[0] < size:
        channel = channel_ahead(publisher, data, size, far)
        if channel != NULL:
            channel_prefetch(channel)
    if near[0] < size:
        channel = channel_ahead(publisher, data, size, near)
        if channel != NULL and not channel.announced:
            channel_prefetch_rare(channel)


cdef class Clock:
    """Broker time: microseconds since 1970, never backwards.

    Args:
        offset_us: Broker time less the monotonic clock.
        manual: `manual_us` stands for the monotonic clock, and only its owner moves it.
    """

    def __cinit__(self, uint64_t offset_us=0, bint manual=False):
        self.offset_us = offset_us
        self.manual = manual

    cdef uint64_t read(self) noexcept:
        cdef uint64_t now_us = self.steady() + self.offset_us
        if now_us < self.floor_us:
            return self.floor_us
        self.floor_us = now_us
        return now_us

    cdef uint64_t steady(self) noexcept:
        """Time for intervals: it does not wait for a floor, and no wall clock moves it."""
        return self.manual_us if self.manual else monotonic_us()

    def now_us(self):
        """Broker time."""
        return self.read()

    def steady_us(self):
        """Time for measuring intervals, microseconds: the monotonic clock, or what stands for it."""
        return self.steady()

    @staticmethod
    def monotonic_us():
        """The monotonic clock, microseconds."""
        return monotonic_us()


cdef class SpillPool:
    """Intakes that keep bytes until a later read or turn, in the order in which they began to.

    Args:
        name: What the bytes are, for messages.
        bytes_max: How many they may be together, at least one largest frame.
    """

    def __cinit__(self, str name not None, size_t bytes_max):
        self.name = name
        self.bytes_max = bytes_max

    cdef int add(self, Intake intake) except -1:
        """Make it the newest; its spill counts from now on."""
        intake.older = self.newest
        if self.newest is None:
            self.oldest = intake
        else:
            self.newest.newer = intake
        self.newest = intake
        intake.pool = self
        intake.spilled_us = intake.heard_us
        self.count += 1
        return 0

    cdef int remove(self, Intake intake) except -1:
        if intake.older is None:
            self.oldest = intake.newer
        else:
            intake.older.newer = intake.newer
        if intake.newer is None:
            self.newest = intake.older
        else:
            intake.newer.older = intake.older
        intake.older = intake.newer = None
        intake.pool = None
        self.bytes -= intake.spilled_bytes
        intake.spilled_bytes = 0
        self.count -= 1
        return 0

    cdef int move_last(self, Intake intake) except -1:
        """Make an intake that is in it the newest."""
        cdef size_t spilled_bytes = intake.spilled_bytes
        self.remove(intake)
        self.add(intake)
        intake.spilled_bytes = spilled_bytes
        self.bytes += spilled_bytes
        return 0

    cdef int trim(self, uint64_t now_us) except -1:
        """End those that began first until the rest is within the bound."""
        cdef Intake intake
        while self.bytes > self.bytes_max:
            intake = self.oldest
            intake.on_crowded(self.name, self.bytes, self.bytes_max, now_us - intake.spilled_us)
            intake.stop()
            if self.oldest is intake:
                # It is in the middle of a frame just now, and gives its bytes back at the end of that.
                break
        return 0


cdef class ReadBuffer:
    """The one buffer that a loop reads every connection into, and what is kept of it from read to read.

    Args:
        size: Bytes, 4 KiB to 16 MiB.
        early_bytes_max: Bytes of half frames of the connections that are in `early`.
        partial_bytes_max: Bytes of half frames of all others, and of whole frames that are put off; each.
    """

    def __cinit__(self, size_t size, size_t early_bytes_max=EARLY_BYTES_MAX,
                  size_t partial_bytes_max=PARTIAL_BYTES_MAX):
        cdef Py_buffer view
        if not 4096 <= size <= 16 << 20:
            raise ValueError(f"read buffer: got {size} bytes, range 4096 to {16 << 20}")
        self.storage = bytearray(size)
        self.view = memoryview(self.storage)
        self.crowded_view = self.view[:CROWDED_READ_BYTES]
        self.size = size
        # The memoryview above keeps the bytearray from being resized, so the pointer stays good as long as this object.
        PyObject_GetBuffer(self.storage, &view, PyBUF_SIMPLE)
        self.data = <uint8_t*>view.buf
        PyBuffer_Release(&view)
        self.early = SpillPool("half frames before HELLO", early_bytes_max)
        self.partial = SpillPool("half frames", partial_bytes_max)
        self.backlog = SpillPool("frames put off", partial_bytes_max)
        self.resting = []

    cdef int ask_for_turn(self) except -1:
        """Have `go_on` called in the loop's next turn."""
        if not self.scheduled and self.schedule is not None:
            self.scheduled = True
            self.schedule()
        return 0

    def go_on(self):
        """Begin a turn: a new budget, and the connections that were put off, each once.

        What `schedule` was called for, in the next turn of the loop. Answers whether it is to be called again.
        """
        cdef size_t left = self.backlog.count
        cdef Intake intake
        cdef list resting = self.resting
        self.frames = 0
        self.resting = []
        while left and self.backlog.oldest is not None and self.frames < TURN_FRAMES_MAX:
            left -= 1
            intake = self.backlog.oldest
            if self.frames and intake.clock.steady() - self.turn_us >= TURN_US_MAX:
                break
            try:
                intake.go_on()
            except Exception as failure:
                intake.stop()
                intake.on_failed(failure)
            if intake.pool is self.backlog:
                self.backlog.move_last(intake)
        for intake in resting:
            if not intake.put_off and not intake.closed:
                intake.on_caught_up()
        self.scheduled = self.frames > 0 or self.backlog.count > 0 or len(self.resting) > 0
        return self.scheduled


cdef class Intake:
    """Frames of one connection.

    Args:
        fanout: The shard's fan-out (and through it its tails).
        buffer: The loop's read buffer.
        clock: Broker time.
        frame_bytes_max: Largest body, bytes.
    """

    def __init__(self, Fanout fanout not None, ReadBuffer buffer not None, Clock clock not None,
                 uint32_t frame_bytes_max):
        self.fanout = fanout
        self.tails = fanout.tails
        self.buffer = buffer
        self.clock = clock
        self.frame_bytes_max = frame_bytes_max
        self.outbox = Outbox(fanout, self)
        self.heard_us = clock.steady()

    def __dealloc__(self):
        free(self.spill.data)

    def get_buffer(self, sizehint):
        """The loop's shared read buffer (asyncio.BufferedProtocol)."""
        if (self.buffer.backlog.bytes > self.buffer.backlog.bytes_max // 2
                or self.buffer.partial.bytes > self.buffer.partial.bytes_max // 2):
            return self.buffer.crowded_view
        return self.buffer.view

    def buffer_updated(self, size_t nbytes):
        """`nbytes` have been read into the shared buffer (asyncio.BufferedProtocol)."""
        if nbytes > self.buffer.size:
            raise ValueError(f"read: got {nbytes} bytes, buffer {self.buffer.size}")
        self.take(self.buffer.data, nbytes)
        if nbytes < self.buffer.size:
            self.full_reads = 0
        else:
            self.full_reads += 1
            if self.full_reads >= FULL_READS_MAX:
                self.full_reads = 0
                self.rest()

    cdef int rest(self) except -1:
        """Be read again in the next turn."""
        if self.closed or self.put_off or self.buffer.schedule is None:
            return 0
        self.buffer.resting.append(self)
        self.buffer.ask_for_turn()
        self.on_put_off()
        return 0

    def feed(self, data):
        """Take bytes in from anywhere else: any object with a contiguous buffer. They are not kept."""
        cdef Py_buffer view
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            self.take(<const uint8_t*>view.buf, <size_t>view.len)
        finally:
            PyBuffer_Release(&view)

    def stop(self):
        """Take nothing more in: the connection is over."""
        self.closed = True
        if not self.feeding:
            self.settle()

    def hold(self):
        """Handle nothing of what was put off until `let_go`: the peer must do something first."""
        self.held = True
        if not self.feeding:
            self.settle()

    def let_go(self):
        """The reverse of `hold`."""
        self.held = False
        if not self.feeding:
            self.settle()

    def suspend(self):
        """Handle nothing more until `resume`: neither what was put off nor what is left of the read under way.

        `on_frame` calls it for a frame that it keeps itself, to handle it when what it needs is there.
        """
        self.suspended = True
        if not self.feeding:
            self.settle()

    def resume(self):
        """The reverse of `suspend`."""
        self.suspended = False
        if not self.feeding:
            self.settle()

    def on_channels(self, uint32_t first, list names):
        """Handle CHANNEL frames together, from the first on; answers how many. Here: none, each goes to `on_frame`.

        Args:
            first: The number of the first of them; they are consecutive.
            names: Well-formed names, two at least.
        """
        return 0

    def on_delayed(self, bytes frames):
        """Handle PUBLISH frames with AT together, from the first on; answers how many. Here: none, as above.

        Args:
            frames: Whole frames, headers included.
        """
        return 0

    def names_ahead(self, size_t count_max):
        """Return the names in the CHANNEL frames that were put off, in order; duplicates included.

        A frame's name is told once, and only if it is one: no second call goes over the same frames again.

        Args:
            count_max: How many at most.
        """
        cdef list names = []
        cdef size_t count = 0
        cdef size_t at = max(self.spill_at, self.told_at)
        cdef size_t size
        cdef const uint8_t* frame
        # Half a frame that no turn was asked for is no frame that waits: the walk would stop at it anyway.
        while count < count_max and self.spill.used - at >= FRAME_HEADER_BYTES:
            frame = self.spill.data + at
            size = load_u32(frame)
            if size > self.spill.used - at - FRAME_HEADER_BYTES:
                break
            if is_naming(frame, size):
                names.append(name_in(frame, size))
                count += 1
            at += FRAME_HEADER_BYTES + size
            self.told_at = at
        return names

    cdef int take(self, const uint8_t* data, size_t size) except -1:
        cdef size_t used
        cdef bint quiet = False
        if self.closed:
            return 0
        self.heard_us = self.clock.steady()
        self.tails.begin_read(self.clock.read())
        self.frames = 0
        self.feeding = True
        try:
            if self.put_off or self.suspended:
                # It was on its way when reading was paused.
                self.put_off = True
                self.keep(data, size)
                size = 0
            elif self.spill.used:
                used = self.take_spilled(data, size)
                data += used
                size -= used
            elif self.members is not None:
                used = self.take_acks(data, size)
                data += used
                size -= used
                quiet = not size and self.fanout.kicked
            if size and not self.closed:
                used = 0 if self.put_off else self.take_frames(data, size)
                if used < size and not self.closed:
                    self.keep(data + used, size - used)
        except MemoryError:
            # What was decided before is decided; of the frame that there was no memory for nothing has happened.
            self.on_exhausted()
        finally:
            self.feeding = False
            if self.spill.capacity:
                self.settle()
        if not quiet:
            self.on_read()
        return 0

    cdef int go_on(self) except -1:
        """Take in what was put off, as far as the turn's budget goes."""
        cdef size_t size = self.spill.used - self.spill_at
        self.tails.begin_read(self.clock.read())
        self.frames = 0
        self.put_off = False
        self.feeding = True
        try:
            self.spill_at += self.take_frames(self.spill.data + self.spill_at, size)
            if not self.put_off and not self.closed:
                self.keep_rest()
        except MemoryError:
            self.on_exhausted()
        finally:
            self.feeding = False
            self.settle()
        if not self.put_off and not self.closed:
            self.on_caught_up()
        self.on_read()
        return 0

    cdef size_t take_acks(self, const uint8_t* data, size_t size) except? 0:
        """Take the ACKs that `data` begins with, as far as they do no more than acknowledge; answers their bytes."""
        cdef size_t at = 0
        while (size - at >= FRAME_HEADER_BYTES and load_u32(data + at) <= size - at - FRAME_HEADER_BYTES
                and load_u32(data + at + 4) == KIND_ACK and load_u32(data + at) <= self.frame_bytes_max
                and self.take_ack(data + at)):
            at += FRAME_HEADER_BYTES + load_u32(data + at)
        return at

    cdef bint take_ack(self, const uint8_t* frame) except -1:
        """Take a whole ACK, without flags, if it does no more than acknowledge. Else nothing has changed."""
        cdef uint32_t size = load_u32(frame)
        cdef const uint8_t* body = frame + FRAME_HEADER_BYTES
        cdef object member = self.members.get(load_u32(body)) if size >= ACK_HEADER_BYTES else None
        return isinstance(member, RotationMember) and (<RotationMember>member).take_ack(body, size)

    cdef size_t take_spilled(self, const uint8_t* data, size_t size) except? 0:
        """Complete the frame in the spill with the first bytes of `data`; answers how many it took."""
        cdef size_t used = 0
        cdef size_t need
        cdef int became
        if self.spill.used < FRAME_HEADER_BYTES:
            need = FRAME_HEADER_BYTES - self.spill.used
            used = need if need < size else size
            self.keep(data, used)
            if self.spill.used < FRAME_HEADER_BYTES:
                return used
        if not self.check_header(self.spill.data):
            return size
        need = FRAME_HEADER_BYTES + <size_t>load_u32(self.spill.data) - self.spill.used
        if need > size - used:
            self.keep(data + used, size - used)
            return size
        self.keep(data + used, need)
        used += need
        became = self.take_frame(self.spill.data)
        if became != PUT_OFF:
            self.forget_spill()
        self.put_off = became == PUT_OFF or (became == TAKEN_ENOUGH and used < size)
        return used

    cdef size_t take_frames(self, const uint8_t* data, size_t size) except? 0:
        """Take the whole frames of `data`; answers how many bytes they were."""
        cdef size_t at = 0
        cdef size_t far = 0
        cdef size_t near = size
        cdef size_t ids_ahead = 0
        cdef size_t frame, used
        cdef int ahead
        cdef int became
        cdef Publisher publisher = self.publisher
        if publisher is not None and publisher.slots_count > CHANNELS_CACHED:
            for ahead in range(AHEAD):
                if ahead == AHEAD - AHEAD_NEW:
                    near = 0
                look_ahead(publisher, data, size, &far, &near)
        try:
            while size - at >= FRAME_HEADER_BYTES:
                if not self.check_header(data + at):
                    return size
                frame = FRAME_HEADER_BYTES + <size_t>load_u32(data + at)
                if frame > size - at:
                    break
                used = 0
                became = TAKEN
                if is_naming(data + at, frame - FRAME_HEADER_BYTES):
                    used = self.take_channels(data + at, size - at, &became)
                elif data[at + 4] == KIND_PUBLISH and data[at + 5] == PUBLISH_FLAG_AT and self.rate is None:
                    used = self.take_delayed(data + at, size - at, &became)
                if not used and not became:
                    used = frame
                    became = self.take_frame(data + at)
                if became:
                    if became == TAKEN_LAST:
                        return size
                    if became == TAKEN_ENOUGH:
                        at += used
                    self.put_off = at < size
                    break
                at += used
                if near < size:
                    look_ahead(publisher, data, size, &far, &near)
                if publisher is not None and publisher.flags & RECORD_ID:
                    if publisher.ids_ahead == NULL:
                        self.buffer.ids_ahead.first = self.buffer.ids_ahead.end
                        publisher.ids_ahead = &self.buffer.ids_ahead
                    if ahead_has_room(publisher.ids_ahead):
                        ids_ahead = publisher.fetch_ids(data, size, max(ids_ahead, at))
        finally:
            if publisher is not None:
                publisher.ids_ahead = NULL
        return at

    cdef size_t take_channels(self, const uint8_t* data, size_t size, int* became) except? 0:
        """Take CHANNEL frames that can be handled together; answers how many bytes they were, 0 when none can.

        Sets what has become of them, when it is any.
        """
        cdef size_t ends[CHANNELS_MAX]
        cdef size_t at = 0
        cdef size_t body
        cdef uint32_t count = 0
        cdef uint32_t first = load_u32(data + FRAME_HEADER_BYTES)
        cdef list names = []
        while count < CHANNELS_MAX and size - at >= FRAME_HEADER_BYTES + CHANNEL_NUMBER_BYTES:
            body = load_u32(data + at)
            if (body > size - at - FRAME_HEADER_BYTES or body > self.frame_bytes_max or not is_naming(data + at, body)
                    or load_u32(data + at + FRAME_HEADER_BYTES) != <uint64_t>first + count):
                break
            names.append(name_in(data + at, body))
            at += FRAME_HEADER_BYTES + body
            ends[count] = at
            count += 1
        if count < 2:
            return 0
        if not self.may_handle(1):
            became[0] = PUT_OFF
            return 0
        count = min(count, <uint32_t>self.on_channels(first, names))
        if not count:
            return 0
        self.count_frames((count + CHANNELS_A_FRAME - 1) // CHANNELS_A_FRAME)
        became[0] = TAKEN_LAST if self.closed else TAKEN_ENOUGH if self.suspended else TAKEN
        return ends[count - 1]

    cdef size_t take_delayed(self, const uint8_t* data, size_t size, int* became) except? 0:
        """Take PUBLISH frames with AT, which begin here, together; answers how many bytes they were, 0 when none can.

        Sets what has become of them, when it is any.
        """
        cdef size_t at = 0
        cdef uint32_t count = 0
        cdef uint32_t taken
        if self.publisher is None:
            return 0
        while count < DELAYED_MAX and size - at >= FRAME_HEADER_BYTES:
            if (data[at + 4] != KIND_PUBLISH or data[at + 5] != PUBLISH_FLAG_AT or load_u16(data + at + 6)
                    or load_u32(data + at) > min(size - at - FRAME_HEADER_BYTES, <size_t>self.frame_bytes_max)):
                break
            at += FRAME_HEADER_BYTES + load_u32(data + at)
            count += 1
        if not count:
            return 0
        if not self.may_handle(1):
            became[0] = PUT_OFF
            return 0
        taken = min(count, <uint32_t>self.on_delayed(PyBytes_FromStringAndSize(<const char*>data, <Py_ssize_t>at)))
        if not taken:
            return 0
        self.count_frames((taken + DELAYED_A_FRAME - 1) // DELAYED_A_FRAME)
        became[0] = TAKEN_LAST if self.closed else TAKEN
        at = 0
        while taken:
            at += FRAME_HEADER_BYTES + load_u32(data + at)
            taken -= 1
        return at

    cdef int count_frames(self, uint32_t count) except -1:
        """Charge the turn with frames that Python has handled, and with the time that they took."""
        if self.buffer.schedule is not None:
            self.buffer.spent_us += self.clock.steady() - self.buffer.frame_us
        self.frames += count
        self.buffer.frames += count
        self.buffer.ask_for_turn()
        return 0

    # .. what is kept ..

    cdef int keep(self, const uint8_t* data, size_t size) except -1:
        """Append to the spill. It grows with what comes, and never beyond the frame of which it has the header."""
        cdef size_t need = self.spill.used + size
        cdef size_t capacity
        cdef size_t frame = SPILL_BYTES_MIN
        cdef uint8_t* grown
        if need > self.spill.capacity:
            capacity = max(need, 2 * self.spill.capacity, <size_t>SPILL_BYTES_MIN)
            if not self.put_off:
                if self.spill.used >= FRAME_HEADER_BYTES:
                    frame = FRAME_HEADER_BYTES + <size_t>load_u32(self.spill.data)
                capacity = max(need, min(capacity, frame))
            grown = <uint8_t*>realloc(self.spill.data, capacity)
            if grown == NULL:
                raise MemoryError
            self.spill.data = grown
            self.spill.capacity = capacity
        memcpy(self.spill.data + self.spill.used, data, size)
        self.spill.used = need
        return 0

    cdef int keep_rest(self) except -1:
        """What was put off has been handled, all but half a frame at its end: that has a spill of its own size."""
        cdef Bytes done = self.spill
        cdef size_t at = self.spill_at
        self.spill.data = NULL
        self.spill.used = self.spill.capacity = self.spill_at = self.told_at = 0
        try:
            if at < done.used:
                self.keep(done.data + at, done.used - at)
        finally:
            free(done.data)
        return 0

    cdef int forget_spill(self) except -1:
        if self.pool is not None:
            self.pool.remove(self)
        bytes_release(&self.spill)
        self.spill_at = self.told_at = 0
        return 0

    cdef int settle(self) except -1:
        """Count what is kept until the next read or turn where it belongs, and hold that to its bound."""
        cdef SpillPool pool = self.buffer.early if self.early else self.buffer.partial
        cdef SpillPool before = self.pool
        if self.closed or not self.spill.used:
            self.forget_spill()
            self.put_off = False
            return 0
        if self.put_off and not self.held and not self.suspended:
            pool = self.buffer.backlog
        if before is not pool:
            if before is not None:
                before.remove(self)
            pool.add(self)
        pool.bytes += self.spill.capacity - self.spilled_bytes
        self.spilled_bytes = self.spill.capacity
        if pool is self.buffer.backlog:
            if before is not pool:
                self.put_off_now()
        elif pool.bytes > pool.bytes_max:
            pool.trim(self.clock.steady())
        return 0

    cdef int put_off_now(self) except -1:
        """It waits its turn from now on, if there is room for what it waits with."""
        cdef SpillPool backlog = self.buffer.backlog
        if backlog.bytes > backlog.bytes_max and backlog.count > 1:
            self.on_crowded(backlog.name, backlog.bytes, backlog.bytes_max, 0)
            self.stop()
            return 0
        self.buffer.ask_for_turn()
        self.on_put_off()
        return 0

    cdef bint may_handle(self, uint32_t turns) noexcept:
        """Whether the budget has room for another frame that Python handles.

        What else the loop did in this turn is not charged: who sends a frame now and then would be put off for it.

        Args:
            turns: What this one may make of the turn's budget, as a multiple of it.
        """
        cdef ReadBuffer buffer = self.buffer
        cdef uint64_t now_us
        if buffer.schedule is None:
            return True
        now_us = self.clock.steady()
        if not buffer.frames:
            buffer.turn_us = now_us
            buffer.spent_us = 0
        buffer.frame_us = now_us
        if not self.frames:
            self.frames_us = now_us
        return (
            self.frames < SLOW_FRAMES_MAX
            and buffer.frames < turns * TURN_FRAMES_MAX
            and now_us - self.frames_us < SLOW_US_MAX
            and buffer.spent_us < turns * TURN_US_MAX
        )

    cdef uint32_t turns_allowed(self) noexcept:
        """How much of the turn's budget the next frame may use: the first of a read has a share of its own.

        Those who have much put off use a turn up as it begins. Who sends a frame now and then is not to wait behind
        each of them.
        """
        return 2 if not self.frames and self.pool is not self.buffer.backlog else 1

    # .. frames ..

    cdef bint check_header(self, const uint8_t* header) except -1:
        if load_u32(header) > self.frame_bytes_max:
            self.on_malformed(CODE_FRAME_TOO_LARGE, load_u32(header))
            return False
        if load_u16(header + 6):
            self.on_malformed(CODE_MALFORMED_FRAME, load_u16(header + 6))
            return False
        return True

    cdef int take_frame(self, const uint8_t* frame) except -1:
        """Take one whole frame; answers what has become of it."""
        cdef uint32_t size = load_u32(frame)
        cdef const uint8_t* body = frame + FRAME_HEADER_BYTES
        cdef int code
        cdef bint enough = False
        if self.rate is not None and frame[4] in (KIND_PUBLISH, KIND_TRANSACTION) and self.is_over_rate(frame):
            # Its connection is not heard for a moment: a flood costs a refusal now and then, and not one each.
            enough = True
        elif frame[4] == KIND_PUBLISH and self.publisher is not None and not frame[5]:
            code = self.publisher.publish(body, size)
            if not code:
                return TAKEN
            # What it was is known only now: it is answered whatever the budget says, and ends it.
            enough = not self.may_handle(1)
            self.answer_publish(code, body, size)
        elif (frame[4] == KIND_CREDIT and self.subscriptions is not None and not frame[5] and size == CREDIT_BYTES
                and not load_u32(body + 4)):
            if not self.take_credit(body):
                return TAKEN_LAST if self.closed else TAKEN
            enough = not self.may_handle(1)
        elif frame[4] in (KIND_PUBLISH, KIND_TRANSACTION) and self.publisher is not None and self.take_whole(frame):
            return TAKEN
        elif frame[4] == KIND_ACK and self.members is not None and not frame[5]:
            if self.take_ack(frame):
                return TAKEN
            # One is small whatever it says of its jobs, and who has one job at a time waits for the next: it is taken
            # whatever the budget says, and what follows it is not.
            self.on_ack(PyBytes_FromStringAndSize(<const char*>body, size))
            enough = not self.may_handle(1)
        elif self.may_handle(self.turns_allowed()):
            self.on_frame(frame[4], frame[5], PyBytes_FromStringAndSize(<const char*>body, size))
        else:
            return PUT_OFF
        if self.closed:
            return TAKEN_LAST
        self.count_frames(1)
        return TAKEN_ENOUGH if enough or self.suspended else TAKEN

    cdef bint is_over_rate(self, const uint8_t* frame) except -1:
        """Whether a frame with records is more than may come now; it is answered then. What may come is counted.

        A number that is not the line's next is not judged here: it is known already, or it is out of line.
        """
        cdef uint32_t size = load_u32(frame)
        cdef const uint8_t* body = frame + FRAME_HEADER_BYTES
        cdef const uint8_t* publish = body
        cdef uint32_t wait_ms
        cdef uint32_t count = 1
        if frame[4] == KIND_TRANSACTION:
            publish += TRANSACTION_HEADER_BYTES + FRAME_HEADER_BYTES
        if size < <uint32_t>(publish - body) + PUBLISH_HEADER_BYTES:
            return False
        if frame[4] == KIND_TRANSACTION or not frame[5] & (PUBLISH_FLAG_ASK | PUBLISH_FLAG_REPLY):
            if self.publisher is None or load_u64(publish + 8) != self.publisher.line.next:
                return False
        if frame[4] == KIND_PUBLISH:
            # Records that are announced and not there cost nobody but who announces them.
            count = load_u32(body + 4) if load_u32(body + 4) < PUBLISH_COUNT_MAX else PUBLISH_COUNT_MAX
        else:
            count = size // (FRAME_HEADER_BYTES + PUBLISH_HEADER_BYTES + RECORD_HEADER_BYTES) + 1
        wait_ms = self.rate.take(count, size, self.clock.steady())
        if wait_ms:
            self.on_over_rate(frame[4], frame[5], PyBytes_FromStringAndSize(<const char*>body, size), wait_ms)
        return wait_ms != 0

    cdef bint take_whole(self, const uint8_t* frame) except -1:
        """Take a publish under a condition or a transaction, if there is nothing to be answered.

        What a transaction acknowledges is taken with it, if its connection has that. What is refused has changed
        nothing: it is decided anew, with its answer, in Python.
        """
        cdef uint32_t size = load_u32(frame)
        cdef const uint8_t* body = frame + FRAME_HEADER_BYTES
        cdef Verdict verdict
        if frame[4] == KIND_TRANSACTION:
            return not frame[5] and transaction_decide(self.publisher, body, size, &verdict, True, False,
                                                       self.members) == 0
        return frame[5] == PUBLISH_FLAG_EXPECT and expecting_decide(self.publisher, body, size, &verdict) == 0

    cdef int answer_publish(self, int code, const uint8_t* body, uint32_t size) except -1:
        if size < PUBLISH_HEADER_BYTES:
            self.on_malformed(CODE_MALFORMED_FRAME, size)
        elif code == DUPLICATE:
            self.on_duplicate(load_u32(body), load_u64(body + 8), load_u32(body + 4))
        elif code == IDS_ABSENT:
            self.on_ids_absent(PyBytes_FromStringAndSize(<const char*>body, size))
        else:
            self.on_refused(code, load_u32(body), load_u64(body + 8), load_u32(body + 4))
        return 0

    cdef bint take_credit(self, const uint8_t* body) except -1:
        """Add to a subscription's credit; answers whether somebody who is behind was told of it."""
        cdef Subscription subscription = self.subscriptions.get(load_u32(body))
        cdef uint64_t more = load_u64(body + 8)
        # A credit may cross its UNSUBSCRIBED on the way: an unknown number is no error.
        if subscription is not None:
            if more > <uint64_t>1 << 40 or subscription.credit > <int64_t>1 << 40:
                self.on_malformed(CODE_MALFORMED_FRAME, 1 << 32)
                return False
            subscription.credit += <int64_t>more
            if subscription.behind:
                self.on_credit(subscription)
                return True
        return False
