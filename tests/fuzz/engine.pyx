"""The loop that makes inputs, feeds them to a target, and keeps those that walk where none has walked.

An execution is one input fed to one target. A target builds a world, which inputs share until it is built anew, since
building it takes longer than most inputs; what they leave behind in it is the target's to clear. All inputs of one
world stand in a block of memory that the caller shares with whoever watches this process, so that they survive a crash
and can be executed again in their order. What is executed is a copy of exactly its size, so that a read past its end is
one past a heap block. A seed, a corpus and a build make the same executions again.

Without instrumented modules there are no edges but those that a target notes itself, and the loop is a seeded mutator.
"""

from time import thread_time_ns

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

cdef extern from "coverage.h" nogil:
    struct coverage:
        uint8_t* hits
        uint16_t* touched
        uint32_t touched_count
        uint32_t previous
        uint32_t enabled
    coverage broker_coverage
    void coverage_note(uint32_t place)

cdef extern from "clock.h" nogil:
    uint64_t monotonic_us()

cdef extern from *:
    """
    #include "coverage.h"
    struct coverage broker_coverage;
    """

cdef enum:
    CORPUS_BYTES_MAX = 16777216
    WATCHED_EXECUTIONS = 20000
    SLOW_US = 100000              # an execution that takes longer is a find
    SLOW_REPEATS = 3

EXECUTION_MS_MAX = SLOW_US // 1000


class TooSlow(Exception):
    """An execution took more than EXECUTION_MS_MAX, each time that it was tried."""


cdef void note(uint32_t feature) noexcept nogil:
    """Count something that a target saw as if it were an edge: an answer that no input has got yet is worth keeping."""
    if broker_coverage.enabled:
        coverage_note(feature * <uint32_t>2654435761 >> 16)


def note_feature(uint32_t feature):
    """What `note` does, for targets in Python."""
    note(feature)


# -- cuts --------------------------------------------------------------------------------------------------------------


cdef void cuts_begin(Cuts* cuts, const uint8_t* plan, size_t size) noexcept nogil:
    cuts.random.state = get_u32(plan) + <uint64_t>1
    cuts.style = plan[4] & 3
    cuts.whole = size
    cuts.fed = 0


cdef size_t cuts_next(Cuts* cuts) noexcept nogil:
    """Size of the next piece, 0 when everything was fed."""
    cdef size_t left = cuts.whole - cuts.fed
    cdef size_t size = left
    if not left:
        return 0
    if cuts.style == STYLE_BYTES:
        size = 1
    elif cuts.style == STYLE_ONCE and not cuts.fed:
        size = 1 + random_below(&cuts.random, left)
    elif cuts.style == STYLE_PIECES:
        size = 1 + random_below(&cuts.random, 1 + random_below(&cuts.random, 256))
    size = size if size < left else left
    cuts.fed += size
    return size


def pieces_of(data):
    """Return the pieces in which an input's plan says that it is fed."""
    cdef bytes whole = bytes(data)
    cdef list pieces = []
    cdef Cuts cuts
    cdef size_t size
    if PyBytes_GET_SIZE(whole) < PLAN_BYTES:
        return pieces
    cuts_begin(&cuts, <const uint8_t*>PyBytes_AS_STRING(whole), <size_t>PyBytes_GET_SIZE(whole) - PLAN_BYTES)
    while True:
        size = cuts_next(&cuts)
        if not size:
            return pieces
        pieces.append(whole[PLAN_BYTES + cuts.fed - size:PLAN_BYTES + cuts.fed])


# -- targets -----------------------------------------------------------------------------------------------------------


cdef class Target:
    """Something that takes inputs."""

    cdef int renew(self) except -1:
        return 0

    cdef int execute(self, const uint8_t* data, size_t size) except -1:
        return 0

    cdef void repair(self, uint8_t* data, size_t size, Random* random) noexcept:
        pass

    def replay(self, list inputs not None):
        """Execute inputs one after the other in a new world."""
        cdef bytes data
        self.renew()
        for data in inputs:
            execute_exact(self, <const uint8_t*>PyBytes_AS_STRING(data), <size_t>PyBytes_GET_SIZE(data))


cdef int execute_exact(Target target, const uint8_t* data, size_t size) except -1:
    """Execute a copy of an input that is a heap block of exactly its size."""
    cdef uint8_t* exact
    if size < PLAN_BYTES:
        raise ValueError(f"input: got {size} bytes, at least {PLAN_BYTES} needed")
    exact = <uint8_t*>malloc(size)
    if exact == NULL:
        raise MemoryError
    memcpy(exact, data, size)
    try:
        return target.execute(exact, size)
    finally:
        free(exact)


cdef class PythonTarget(Target):
    """A target that is a function.

    Args:
        function: Called with a memoryview of each input, borrowed for the call.
        framed: Whether inputs are streams of frames.
    """

    cdef object function

    def __cinit__(self, function, bint framed):
        self.function = function
        self.framed = framed

    cdef int execute(self, const uint8_t* data, size_t size) except -1:
        self.function(PyMemoryView_FromMemory(<char*>data, <Py_ssize_t>size, 0x100))
        return 0


# -- the loop ----------------------------------------------------------------------------------------------------------


cdef class Engine:
    """Fuzzes one target.

    Args:
        target: What takes the inputs.
        block: A writable buffer of at least BLOCK_BYTES, in which the inputs of the target's world stand.
        seeds: Inputs to begin with, at least one, each PLAN_BYTES or longer.
        seed: Of all random numbers.
        size_max: What no input grows beyond that has not begun so large, bytes.
    """

    def __init__(self, Target target not None, block, list seeds not None, uint64_t seed, size_t size_max=2048):
        cdef Py_buffer view
        PyObject_GetBuffer(block, &view, PyBUF_WRITABLE)
        # The buffer is kept by `block`, which is not resized: a map of memory or an array.
        self.base = <uint8_t*>view.buf
        self.block = block
        PyBuffer_Release(&view)
        if len(block) < BLOCK_BYTES:
            raise ValueError(f"block: got {len(block)} bytes, {BLOCK_BYTES} needed")
        self.target = target
        self.size_max = min(size_max, <size_t>INPUT_BYTES_MAX)
        self.random.state = (seed * 2654435761 + 88172645463325252) & 0xFFFFFFFFFFFFFFFF
        self.corpus = []
        self.fresh = []
        for data in seeds:
            if not PLAN_BYTES <= len(data) <= INPUT_BYTES_MAX:
                raise ValueError(f"seed input: got {len(data)} bytes, range {PLAN_BYTES} to {INPUT_BYTES_MAX}")
            self.corpus.append(data)
        if not self.corpus:
            raise ValueError("no input to begin with")

    def begin(self):
        """Execute the inputs to begin with, so that what they walk is not new."""
        cdef bytes data
        cdef uint8_t* at
        for data in self.corpus:
            at = self.next_place()
            memcpy(at, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
            self.execute(at, <size_t>PyBytes_GET_SIZE(data))
            self.is_new()

    def run(self, uint64_t executions, uint64_t deadline_us):
        """Execute inputs.

        Args:
            executions: How many.
            deadline_us: When to stop all the same, by the monotonic clock.

        Raises:
            TooSlow: And whatever a target raises; the inputs are in the block.
        """
        cdef uint64_t until = self.executions + executions
        cdef uint64_t started, taken
        cdef uint64_t now = monotonic_us()
        cdef uint8_t* at
        cdef size_t size
        while self.executions < until and now < deadline_us:
            at = self.next_place()
            size = self.compose(at)
            started = now
            self.execute(at, size)
            now = monotonic_us()
            taken = now - started
            if taken > self.slowest_us:
                if taken > SLOW_US:
                    taken = self.repeat(at, size, taken)
                    now = monotonic_us()
                self.slowest_us = max(taken, self.slowest_us)
            if self.is_new():
                self.keep(at, size)

    cdef uint64_t repeat(self, uint8_t* at, size_t size, uint64_t taken) except 0:
        """Execute an input that was slow again; what it takes is the least, of the processor's time alone.

        On a machine where others run, too, a thread waits this long for its turn now and then.
        """
        cdef int _
        for _ in range(SLOW_REPEATS):
            started_ns = thread_time_ns()
            execute_exact(self.target, at, size)
            taken = min(taken, 1 + (thread_time_ns() - started_ns) // 1000)
        if taken > SLOW_US:
            raise TooSlow(f"an execution took {taken // 1000} ms, limit {EXECUTION_MS_MAX} ms")
        return taken

    cdef uint8_t* next_place(self) except NULL:
        """Where the next input is made; with a new world, the first."""
        if self.world == 0 or self.world == WORLD_EXECUTIONS or self.used + INPUT_BYTES_MAX + 4 > BLOCK_DATA_BYTES:
            self.world = 0
            self.used = 0
            self.target.renew()
        self.world += 1
        return self.base + BLOCK_HEADER_BYTES + self.used + 4

    cdef size_t compose(self, uint8_t* to) except 0:
        """Make the next input from one of the corpus, a new one rather than an old one."""
        cdef Py_ssize_t count = len(self.corpus)
        cdef Py_ssize_t newest = count // 4 if random_below(&self.random, 2) else 0
        cdef bytes data = self.corpus[count - 1 - <Py_ssize_t>random_below(&self.random, <size_t>(newest or count))]
        cdef bytes other = self.corpus[<Py_ssize_t>random_below(&self.random, <size_t>count)]
        cdef input made
        if random_below(&self.random, 2) and PyBytes_GET_SIZE(other) < PyBytes_GET_SIZE(data):
            # Small inputs run faster, and what is changed in them matters more often.
            data, other = other, data
        made.data = to
        made.size = <size_t>PyBytes_GET_SIZE(data)
        made.capacity = max(made.size, self.size_max)
        memcpy(to, PyBytes_AS_STRING(data), made.size)
        mutate(&made, <const uint8_t*>PyBytes_AS_STRING(other), <size_t>PyBytes_GET_SIZE(other), self.target.framed,
               &self.random)
        if random_below(&self.random, 8):
            self.target.repair(to, made.size, &self.random)
        return made.size

    cdef int execute(self, uint8_t* at, size_t size) except -1:
        self.executions += 1
        self.used += 4 + size
        put_integer(at - 4, size, 4)
        put_integer(self.base + BLOCK_USED, self.used, 8)
        put_integer(self.base + BLOCK_EXECUTIONS, self.executions, 8)
        broker_coverage.previous = 0
        # Where nothing new was found for long, walking without being watched is worth more executions.
        broker_coverage.enabled = self.executions - self.newest < WATCHED_EXECUTIONS or self.executions % 4 == 0
        try:
            return execute_exact(self.target, at, size)
        finally:
            broker_coverage.enabled = 0

    cdef bint is_new(self) noexcept nogil:
        """Whether the last execution walked an edge that none has, or one so often as none has; forgets it."""
        cdef bint found = False
        cdef uint32_t index
        cdef uint16_t place
        cdef uint8_t often, hits
        for index in range(broker_coverage.touched_count):
            place = broker_coverage.touched[index]
            hits = broker_coverage.hits[place]
            often = 1
            while hits > 1:
                often = <uint8_t>(often << 1)
                hits >>= 1
            if not self.seen[place]:
                self.edges += 1
            if not self.seen[place] & often:
                self.seen[place] |= often
                found = True
            broker_coverage.hits[place] = 0
        broker_coverage.touched_count = 0
        return found

    cdef int keep(self, const uint8_t* at, size_t size) except -1:
        """Make the input that was executed part of the corpus."""
        cdef bytes data
        if self.corpus_bytes + size <= CORPUS_BYTES_MAX:
            data = PyBytes_FromStringAndSize(<const char*>at, <Py_ssize_t>size)
            self.corpus_bytes += size
            self.corpus.append(data)
            self.fresh.append(data)
            self.newest = self.executions
        return 0


BLOCK_BYTES = BLOCK_HEADER_BYTES + BLOCK_DATA_BYTES


def inputs_of(block):
    """Return the inputs that a block holds, in their order; the last one was being executed."""
    cdef list found = []
    cdef bytes data = bytes(block)
    cdef size_t used = int.from_bytes(data[BLOCK_USED:BLOCK_USED + 8], "little")
    cdef size_t at = BLOCK_HEADER_BYTES
    cdef size_t end = min(at + used, <size_t>PyBytes_GET_SIZE(data))
    cdef size_t size
    while at + 4 <= end:
        size = get_u32(<const uint8_t*>PyBytes_AS_STRING(data) + at)
        found.append(data[at + 4:at + 4 + size])
        at += 4 + size
    return found
