"""The members of one consumer: whose turn it is to be given jobs, what they say of them, and what they are told of it.

An ACK that acknowledges jobs under way, and nothing else, is taken here from the bytes that came (`take_ack`, which
`Intake` calls); whatever else a member says is for Python. At the end of the turn all who have room are given jobs, one
after the other, and what they are owed leaves in front of those. What members said is answered when it is committed:
`take_said` goes with the group, `confirm` comes after it.

It must not look at a clock or a disk. Everything here belongs to the loop's thread.
"""

from cpython.bytes cimport PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from broker_native.fanout cimport Outbox, frame_header
from broker_native.layout cimport (
    ACKED_BYTES, ACK_ENTRY_BYTES, ACK_HEADER_BYTES, FRAME_HEADER_BYTES, KIND_ACKED, load_u32, load_u64, store_u32,
    store_u64)
from broker_native.membership cimport Membership

cdef enum:
    # A frame of jobs up to this size is copied to what else its member is sent: one piece costs less than two.
    FRAME_COPY_BYTES = 4096


cdef class RotationMember(Membership):
    """Who takes jobs: a subscription of a connection.

    Args:
        outbox: The connection's.
        subscription: Its number there.
        window: Jobs under way at most.
        bytes_max: Bytes of records under way at most, but for one job.
    """

    def __init__(self, Outbox outbox not None, uint32_t subscription, uint32_t window, uint64_t bytes_max):
        self.outbox = outbox
        self.subscription = subscription
        self.window = window
        self.bytes_max = bytes_max

    cdef bint take_ack(self, const uint8_t* body, uint32_t size) except -1:
        """Take the body of an ACK if it is the next one and acknowledges what is under way, and nothing else.

        Answers whether it was taken; nothing has changed when it was not.
        """
        cdef Rotation rotation = self.rotation
        if (rotation is None or self.jobs is None or size < ACK_HEADER_BYTES + ACK_ENTRY_BYTES
                or size != ACK_HEADER_BYTES + <uint64_t>load_u32(body + 4) * ACK_ENTRY_BYTES
                or load_u64(body + 8) != self.acks + 1):
            return False
        if not self.jobs.ack_under_way(self.number, body + ACK_HEADER_BYTES, body + size):
            return False
        self.acks += 1
        rotation.note(self)
        return True

    cdef int tell(self) except -1:
        cdef uint8_t frame[FRAME_HEADER_BYTES + ACKED_BYTES]
        if not self.owed:
            return 0
        frame_header(frame, ACKED_BYTES, KIND_ACKED, 0)
        store_u32(frame + FRAME_HEADER_BYTES, self.subscription)
        store_u32(frame + FRAME_HEADER_BYTES + 4, 0)
        store_u64(frame + FRAME_HEADER_BYTES + 8, self.owed)
        self.owed = 0
        self.outbox.answer(frame, FRAME_HEADER_BYTES + ACKED_BYTES)
        return 0

    def tell_owed(self):
        """Queue the ACKED of what is committed, if it was not told yet."""
        self.tell()


cdef class Rotation:
    """A consumer's members in turn. A subclass gives `touch()`: have the turn's end look at it, once.

    Attributes:
        jobs: What there is to do; None before it is known.
        touched: It has something to do at the end of the turn.
        served: How many frames of jobs the last `give` has brought.
    """

    def __cinit__(self, *args, **kwargs):
        self.said = []

    def enter(self, RotationMember member not None):
        """Take in somebody whom the jobs know by `member.number`; jobs come in its turn."""
        member.rotation = self
        self.queue(member)

    def wait(self, RotationMember member not None):
        """Give a member jobs in its turn, as it may have room again."""
        self.queue(member)

    def note_said(self, RotationMember member not None):
        """A member has said something that was taken: it has room again, and is owed an answer."""
        self.note(member)

    cdef int note(self, RotationMember member) except -1:
        if not member.unanswered:
            member.unanswered = True
            self.said.append(member)
        self.queue(member)
        if not self.touched:
            self.touch()
        return 0

    cdef int queue(self, RotationMember member) except -1:
        if member.waits:
            return 0
        member.waits = True
        member.previous = self.last
        if self.last is None:
            self.first = member
        else:
            self.last.next = member
        self.last = member
        self.waiting += 1
        return 0

    cdef int drop(self, RotationMember member) except -1:
        """A member that waits does so no longer."""
        if member.previous is None:
            self.first = member.next
        else:
            member.previous.next = member.next
        if member.next is None:
            self.last = member.previous
        else:
            member.next.previous = member.previous
        member.previous = member.next = None
        member.waits = False
        self.waiting -= 1
        return 0

    @property
    def waits(self):
        """Whether somebody has room, or may have."""
        return self.waiting > 0

    def leave_turns(self, RotationMember member not None):
        """Give a member no jobs any more, until it waits again."""
        if member.waits:
            self.drop(member)

    def forget_waiting(self):
        """Give nobody jobs any more, until they wait again."""
        while self.first is not None:
            self.drop(self.first)

    # -- giving --------------------------------------------------------------------------------------------------------

    def give(self, uint64_t now_us):
        """Queue what is ready to its members, to each in turn, as evenly as there is of it.

        Args:
            now_us: Broker time.
        """
        self.served = 0
        while self.waiting and self.jobs.ready_count() and self.give_round(now_us):
            pass

    cdef bint give_round(self, uint64_t now_us) except -1:
        """Give each who waits its share; answers whether anybody was given anything."""
        cdef uint32_t left = self.waiting
        cdef uint64_t share = (self.jobs.ready_count() + left - 1) // left
        cdef RotationMember member
        cdef bytes frame
        cdef bint given = False
        while left:
            left -= 1
            member = self.first
            self.drop(member)
            frame = self.jobs.grant_to(member.number, now_us, <uint32_t>min(share, <uint64_t>0xFFFFFFFF))
            if frame:
                given = True
                self.served += 1
                member.tell()
                if PyBytes_GET_SIZE(frame) <= FRAME_COPY_BYTES:
                    member.outbox.order(frame)
                else:
                    member.outbox.share(frame)
            if not self.jobs.has_room(member.number):
                continue
            self.queue(member)
            if not frame or not self.jobs.ready_count():
                break
        return given

    # -- what members said ---------------------------------------------------------------------------------------------

    @property
    def unanswered(self):
        """Whether a member has said something that goes with the next group."""
        return len(self.said) > 0

    def take_said(self):
        """Return who has said something since this was asked last, and up to which ACK: (member, number) each."""
        cdef RotationMember member
        cdef list said = self.said, taken = []
        self.said = []
        for member in said:
            member.unanswered = False
            if not member.gone:
                taken.append((member, member.acks))
        return taken

    def confirm(self, list said not None):
        """What `take_said` returned is committed: tell it.

        A member that has jobs under way, while there are more, hears of it with the next ones: a send for each answer
        would be half of what it costs to serve it. Nobody else waits.

        Returns:
            Those who have not been told, for `tell_all` in a moment: the next jobs may not come soon.
        """
        cdef RotationMember member
        cdef list later = []
        for member, number in said:
            if member.gone:
                continue
            member.told = member.owed = number
            if self.jobs.ready_count() and self.jobs.jobs_under_way(member.number):
                later.append(member)
            else:
                member.tell()
        return later


def tell_all(list members not None):
    """Tell members what they are owed, unless they heard of it meanwhile; answers whether anybody was told."""
    cdef RotationMember member
    cdef bint told = False
    for member in members:
        if member.owed and not member.gone:
            member.tell()
            told = True
    return told
