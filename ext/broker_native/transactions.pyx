"""Publishes under a condition, and transactions: all of it is checked before anything of it is taken.

A PUBLISH with EXPECT names the head that its publisher knows; another head is a CONFLICT. A transaction is a run of
PUBLISH frames in one, whose records get their places in one group, or none of them does; what its publishes expect are
the heads before it. Both are judged by the producer's line first, so a repetition is answered as one whatever has
become of the channel since.

A head is of the pending view: of racing publishes the first wins, before anything is on the disk. A verdict that such a
head led to is as good as the group that holds it; `rests_on` says which one that is.

A transaction's records wait for their commit whatever the level of their channels: they never join a chunk that is
delivered with its turn. Where such a chunk is open, the verdict is TURN_OPEN: the caller ends the turn and asks again.

What was decided changes the tails, what was refused changes nothing.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from broker_native.channel cimport CLASS_EARLY, CLASS_NONE, STATE_FULL, Channel
from broker_native.growing cimport bytes_reserve
from broker_native.layout cimport *
from broker_native.membership cimport acks_hold, acks_take
from broker_native.publisher cimport Publisher
from broker_native.tails cimport Tails

cdef enum:
    CODE_LIMIT = 1006
    CODE_MALFORMED_FRAME = 3001
    CODE_INVALID_CHANNEL = 3005
    CODE_INVALID_RECORD = 3011
    CODE_CONFLICT = 3024
    CODE_NOT_STORED = 3025
    CODE_TRANSACTION_TOO_LARGE = 3033
    CODE_COMMIT_UNKNOWN = 4001
    DUPLICATE = 1                       # as in tails.pyx
    TURN_OPEN = 2                       # no refusal: the turn must end first
    HAS_ACKS = 3                        # no refusal: whoever knows of consumers must look at it

    PUBLISHES_AT_ONCE = 32              # as many find room on the stack

CODES = {
    "DUPLICATE": DUPLICATE,
    "TURN_OPEN": TURN_OPEN,
    "HAS_ACKS": HAS_ACKS,
    "LIMIT": CODE_LIMIT,
    "MALFORMED_FRAME": CODE_MALFORMED_FRAME,
    "INVALID_CHANNEL": CODE_INVALID_CHANNEL,
    "INVALID_RECORD": CODE_INVALID_RECORD,
    "CONFLICT": CODE_CONFLICT,
    "NOT_STORED": CODE_NOT_STORED,
    "TRANSACTION_TOO_LARGE": CODE_TRANSACTION_TOO_LARGE,
    "COMMIT_UNKNOWN": CODE_COMMIT_UNKNOWN,
}


# -- reading -----------------------------------------------------------------------------------------------------------


cdef bint publish_read(Publish* publish, bint expects, const uint8_t* body, uint32_t size) noexcept nogil:
    """Take a PUBLISH body apart; answers whether it has its fixed part."""
    cdef uint32_t fixed = PUBLISH_HEADER_BYTES
    if expects:
        fixed += PUBLISH_EXPECT_BYTES
    if size < fixed:
        return False
    memset(publish, 0, sizeof(Publish))
    publish.slot = load_u32(body)
    publish.count = load_u32(body + 4)
    publish.number = load_u64(body + 8)
    publish.expects = expects
    if expects:
        publish.epoch = load_u64(body + PUBLISH_HEADER_BYTES)
        publish.sequence = load_u64(body + PUBLISH_HEADER_BYTES + 8)
    publish.records = body + fixed
    publish.size = size - fixed
    return True


cdef const uint8_t* transaction_read(Publish* publishes, uint32_t count, const uint8_t* at,
                                     const uint8_t* end) noexcept nogil:
    """Take so many PUBLISH frames apart, whose numbers must follow one another; answers where they end, or NULL."""
    cdef uint32_t index
    cdef uint32_t size
    for index in range(count):
        if end - at < FRAME_HEADER_BYTES:
            return NULL
        size = load_u32(at)
        if (size > <size_t>(end - at) - FRAME_HEADER_BYTES or at[4] != KIND_PUBLISH or at[5] & ~PUBLISH_FLAG_EXPECT
                or load_u16(at + 6)):
            return NULL
        if not publish_read(&publishes[index], at[5] & PUBLISH_FLAG_EXPECT, at + FRAME_HEADER_BYTES, size):
            return NULL
        if index and publishes[index].number != publishes[index - 1].number + publishes[index - 1].count:
            return NULL
        at += FRAME_HEADER_BYTES + size
    return at


# -- judging -----------------------------------------------------------------------------------------------------------


cdef void head_of(const Channel* channel, uint64_t* epoch, uint64_t* sequence) noexcept nogil:
    """The newest position of a stored channel, pending or not; zeros when it never had a record."""
    cdef uint32_t index = channel.epochs_count
    sequence[0] = channel.next - 1
    epoch[0] = channel.epoch if sequence[0] else 0
    # An epoch that has no record yet is not the head's.
    while sequence[0] and index:
        index -= 1
        if channel.epochs[index].first <= sequence[0]:
            epoch[0] = channel.epochs[index].epoch
            break


cdef bint is_expected(const Publish* publish, Verdict* verdict) noexcept nogil:
    """Whether the channel's head is the one that the publish expects; the verdict tells the other one."""
    cdef const Channel* channel = publish.channel
    head_of(channel, &verdict.epoch, &verdict.sequence)
    if publish.epoch == verdict.epoch and publish.sequence == verdict.sequence:
        return True
    verdict.rests_on = (RESTS_ON_APPLIED if channel.next == channel.applied_next
                        else RESTS_ON_COMMIT if channel.next == channel.closed_next else RESTS_ON_OPEN)
    return False


cdef int find_channels(Publisher publisher, Publish* publishes, uint32_t count, Verdict* verdict) except -1:
    """Set each publish's channel; the code of the first that has none, or no good count."""
    cdef Publish* publish
    cdef uint32_t index
    for index in range(count):
        publish = &publishes[index]
        verdict.index = index
        if publish.slot >= publisher.slots_count or publisher.slots[publish.slot] == NULL:
            return CODE_INVALID_CHANNEL
        if publish.count == 0 or publish.count > PUBLISH_COUNT_MAX:
            return CODE_INVALID_RECORD
        publish.channel = publisher.slots[publish.slot]
    verdict.index = 0
    return 0


cdef int judge_line(Publisher publisher, bint stored, const Verdict* verdict) except -1:
    """Whether the numbers are the line's next, and the journal takes any."""
    cdef Tails tails = publisher.tails
    if verdict.number >= publisher.line.next and tails.refuse_code and stored:
        # As for a plain publish: of a number that may be stored nobody says that it was refused.
        return CODE_COMMIT_UNKNOWN if verdict.number < publisher.line.closed_next else tails.refuse_code
    if verdict.number != publisher.line.next:
        return publisher.out_of_line(verdict.number, <uint32_t>verdict.count)
    return 0


cdef int judge(Publisher publisher, Publish* publishes, uint32_t count, Verdict* verdict) except -1:
    """Judge all publishes but for their line; the code of the first that is refused."""
    cdef Publish* publish
    cdef uint32_t index
    cdef int code
    for index in range(count):
        publish = &publishes[index]
        verdict.index = index
        if publish.channel.level == LEVEL_EPHEMERAL:
            return CODE_NOT_STORED
        if publish.channel.state == STATE_FULL:
            return CODE_LIMIT
        code = publisher.check_records(publish.channel, publish.records, publish.size, publish.count)
        if code:
            return code
        if publisher.flags & RECORD_ID:
            # A record that is there already has no place in what happens together now.
            return CODE_INVALID_RECORD
    for index in range(count):
        publish = &publishes[index]
        verdict.index = index
        if publish.expects and not is_expected(publish, verdict):
            return CODE_CONFLICT
    verdict.index = 0
    return 0


# -- taking ------------------------------------------------------------------------------------------------------------


cdef int take(Publisher publisher, Publish* publishes, uint32_t count, const Verdict* verdict) except -1:
    """Append the judged publishes' records to the open group, or none of them when there is no memory for all."""
    cdef Tails tails = publisher.tails
    cdef bint accepted_waits = tails.accepted_waits
    cdef uint32_t taken = 0
    tails.accepted_waits = True
    try:
        reserve(publisher, publishes, count, verdict.number)
        while taken < count:
            append(publisher, &publishes[taken])
            taken += 1
    except MemoryError:
        # The newest first: each mark is good for the state that its append found.
        while taken:
            taken -= 1
            tails.take_back(publishes[taken].channel, &publishes[taken].mark)
        raise
    finally:
        tails.accepted_waits = accepted_waits
    settle(publisher, publishes, count)
    return 0


cdef int reserve(Publisher publisher, Publish* publishes, uint32_t count, uint64_t number) except -1:
    """All that may be short of memory but the records' own room. What of it is done in vain does no harm."""
    cdef Tails tails = publisher.tails
    cdef uint32_t index
    for index in range(count):
        if publishes[index].channel.chunk_class == CLASS_NONE:
            tails.prepare(publishes[index].channel)
    publisher.reserve_answer(publishes[0].channel)
    bytes_reserve(&publisher.group_answers, PUBLISHED_ENTRY_BYTES * <size_t>count)
    if publisher.line.producer is not None:
        bytes_reserve(&publisher.line.group_runs, LINE_RUN_BYTES * <size_t>count)
    if not publisher.line.open_first:
        tails.lines_open.append(publisher.line)
        publisher.line.open_first = number
    return 0


cdef int append(Publisher publisher, Publish* publish) except -1:
    """Append one publish's records and note what to go back to."""
    cdef Channel* channel = publish.channel
    publish.mark.next = channel.next
    publish.mark.time_us = channel.chunk_time_us
    publish.mark.expiry_s = channel.chunk_expiry_s
    publish.mark.used = channel.chunk_used
    publish.mark.count = channel.chunk_count
    publish.mark.closed = publisher.tails.closed[channel.chunk_class].count
    publisher.append_records(channel, publish.records, publish.count)
    return 0


cdef int settle(Publisher publisher, Publish* publishes, uint32_t count) except -1:
    """Move the line on and note the answers; there is room for them."""
    cdef Tails tails = publisher.tails
    cdef Publish* publish
    cdef uint32_t index
    for index in range(count):
        publish = &publishes[index]
        publisher.line.next = publish.number + publish.count
        if publisher.line.producer is not None:
            publisher.line.note(publish.channel.id, publish.number, publish.mark.next, publish.count)
        publisher.answer(publish.channel, publish.number, publish.slot, publish.mark.next, publish.count)
        tails.records += publish.count
        tails.record_bytes += publish.size
        tails.turn_bytes += PUBLISH_HEADER_BYTES + publish.size
        tails.group_bytes += PUBLISH_HEADER_BYTES + publish.size
    return 0


# -- frames ------------------------------------------------------------------------------------------------------------


cdef int expecting_decide(Publisher publisher, const uint8_t* body, uint32_t size, Verdict* verdict) except -1:
    """Decide one PUBLISH with EXPECT, whole or not at all.

    Returns:
        0 when its records have their sequences, DUPLICATE when all its numbers are known already, else the code of the
        refusal.
    """
    cdef Publish publish
    cdef int code
    memset(verdict, 0, sizeof(Verdict))
    if not publish_read(&publish, True, body, size):
        return CODE_MALFORMED_FRAME
    verdict.number, verdict.count = publish.number, publish.count
    code = find_channels(publisher, &publish, 1, verdict)
    if not code:
        code = judge_line(publisher, publish.channel.level != LEVEL_EPHEMERAL, verdict)
    if not code:
        code = judge(publisher, &publish, 1, verdict)
    if code:
        return code
    publisher.take_records(publish.channel, publish.records, publish.count, publish.slot, publish.number)
    publisher.tails.records += publish.count
    publisher.tails.record_bytes += publish.size
    publisher.tails.turn_bytes += size
    publisher.tails.group_bytes += size
    return 0


cdef int transaction_decide(Publisher publisher, const uint8_t* body, uint32_t size, Verdict* verdict,
                            bint taking=True, bint acks=False, dict members=None) except -1:
    """Decide a transaction of publishes, whole or not at all; or only judge it.

    Args:
        publisher, body, size: Whose, and what.
        verdict: Set.
        taking: Take what nothing is wrong with.
        acks: There may be acks behind the publishes, which the caller sees to; `verdict.end` says where.
        members: Memberships by their subscriptions' numbers: acks of theirs that hold are taken with the publishes.

    Returns:
        0 when its records have their sequences, DUPLICATE when all its numbers are known already, TURN_OPEN, HAS_ACKS,
        else the code of the refusal.
    """
    cdef Publish few[PUBLISHES_AT_ONCE]
    cdef Publish* publishes = few
    cdef const uint8_t* end
    cdef uint32_t count
    cdef int code
    memset(verdict, 0, sizeof(Verdict))
    if size < TRANSACTION_HEADER_BYTES:
        return CODE_MALFORMED_FRAME
    count = load_u32(body)
    if load_u32(body + 4) and not acks and members is None:
        return HAS_ACKS
    # So many fit into the body at most: what is allocated is bounded by what has come.
    if not count or count > size // (FRAME_HEADER_BYTES + PUBLISH_HEADER_BYTES):
        return CODE_MALFORMED_FRAME
    if count > PUBLISHES_AT_ONCE:
        publishes = <Publish*>malloc(count * sizeof(Publish))
        if publishes == NULL:
            raise MemoryError
    try:
        end = transaction_read(publishes, count, body + TRANSACTION_HEADER_BYTES, body + size)
        if end == NULL or (end != body + size and not load_u32(body + 4)):
            return CODE_MALFORMED_FRAME
        verdict.end = <uint32_t>(end - body)
        if acks or not load_u32(body + 4):
            return publishes_decide(publisher, publishes, count, size, verdict, taking)
        # Whether they hold is seen before anything is taken, and nothing that follows changes it.
        if not acks_hold(members, end, body + size, load_u32(body + 4)):
            return HAS_ACKS
        code = publishes_decide(publisher, publishes, count, size, verdict, taking)
        if not code and taking:
            acks_take(members, end, body + size)
        return code
    finally:
        if publishes != few:
            free(publishes)


cdef int publishes_decide(Publisher publisher, Publish* publishes, uint32_t count, uint32_t size, Verdict* verdict,
                          bint taking) except -1:
    """Decide the publishes of a transaction of so many bytes."""
    cdef uint32_t index
    cdef int code
    verdict.number = publishes[0].number
    verdict.count = publishes[count - 1].number + publishes[count - 1].count - verdict.number
    if verdict.count > 0xFFFFFFFF:
        return CODE_MALFORMED_FRAME
    code = find_channels(publisher, publishes, count, verdict)
    if not code:
        code = judge_line(publisher, True, verdict)
    if not code and size > publisher.tails.transaction_bytes_max:
        code = CODE_TRANSACTION_TOO_LARGE
    if not code:
        code = judge(publisher, publishes, count, verdict)
    if code:
        return code
    for index in range(count):
        if publishes[index].channel.chunk_class == CLASS_EARLY:
            return TURN_OPEN
    if taking:
        take(publisher, publishes, count, verdict)
    return 0


# -- for Python --------------------------------------------------------------------------------------------------------


cdef tuple verdict_tuple(int code, const Verdict* verdict):
    return code, verdict.number, verdict.count, verdict.index, verdict.rests_on, verdict.epoch, verdict.sequence


def decide_expecting(Publisher publisher not None, bytes body not None):
    """Decide the body of a PUBLISH with EXPECT.

    Returns:
        (code, first number, count of numbers, 0, what the verdict rests on: RESTS_ON_*, epoch and sequence of the head
        with CONFLICT). The code is 0, or of CODES.
    """
    cdef Verdict verdict
    cdef int code = expecting_decide(publisher, <const uint8_t*>PyBytes_AS_STRING(body),
                                     <uint32_t>PyBytes_GET_SIZE(body), &verdict)
    return verdict_tuple(code, &verdict)


def decide_transaction(Publisher publisher not None, bytes body not None, bint acks=False, dict members=None):
    """Decide the body of a TRANSACTION.

    Args:
        acks: It may have acks behind its publishes, and the caller sees to them.
        members: Memberships by their subscriptions' numbers: acks of theirs that hold are taken too.

    Returns:
        As `decide_expecting`; in the place of 0 the index of the publish that is at fault, from 0.
    """
    cdef Verdict verdict
    cdef int code = transaction_decide(publisher, <const uint8_t*>PyBytes_AS_STRING(body),
                                       <uint32_t>PyBytes_GET_SIZE(body), &verdict, True, acks, members)
    return verdict_tuple(code, &verdict)


def judge_transaction(Publisher publisher not None, bytes body not None):
    """Answer what `decide_transaction` would of the publishes, and take nothing.

    Returns:
        (that, where the publishes end in the body; 0 when they could not be read).
    """
    cdef Verdict verdict
    cdef int code = transaction_decide(publisher, <const uint8_t*>PyBytes_AS_STRING(body),
                                       <uint32_t>PyBytes_GET_SIZE(body), &verdict, False, True)
    return verdict_tuple(code, &verdict), verdict.end
