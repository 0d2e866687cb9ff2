# The loop that makes inputs, feeds them to a target, and keeps those that walk where none has walked.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef extern from "mutate.h" nogil:
    enum:
        PLAN_BYTES
        INPUT_BYTES_MAX
    ctypedef struct Random "struct random":
        uint64_t state
    struct input:
        uint8_t* data
        size_t size
        size_t capacity
    size_t random_below(Random* random, size_t bound)
    uint64_t random_next(Random* random)
    uint32_t get_u32(const uint8_t* at)
    void put_integer(uint8_t* at, uint64_t value, size_t bytes)
    void mutate(input* input, const uint8_t* other, size_t other_size, int framed, Random* random)

cdef enum:
    BLOCK_HEADER_BYTES = 64
    BLOCK_EXECUTIONS = 0          # u64, counted up before each execution: what a watchdog looks at
    BLOCK_USED = 8                # u64, bytes of inputs behind the header, each after its u32 size; the last one runs
    BLOCK_DATA_BYTES = 1048576
    WORLD_EXECUTIONS = 256        # a target's world is built anew after so many

cdef enum:
    STYLE_WHOLE = 0
    STYLE_ONCE = 1                # cut once, at the seed
    STYLE_PIECES = 2              # pieces of random sizes, small ones more often
    STYLE_BYTES = 3               # byte by byte

cdef struct Cuts:                 # how an input's plan cuts what comes behind it
    Random random
    uint8_t style
    size_t whole
    size_t fed

cdef void cuts_begin(Cuts* cuts, const uint8_t* plan, size_t size) noexcept nogil
cdef size_t cuts_next(Cuts* cuts) noexcept nogil
cdef void note(uint32_t feature) noexcept nogil

cdef class Target:
    cdef readonly bint framed     # inputs are streams of frames

    # Build the world that the next inputs meet.
    cdef int renew(self) except -1

    # Feed one input, PLAN_BYTES or longer, borrowed for the call. What it raises is a find.
    cdef int execute(self, const uint8_t* data, size_t size) except -1

    # Make checksums and sizes right again, so that what is behind their checks is reached.
    cdef void repair(self, uint8_t* data, size_t size, Random* random) noexcept

cdef class Engine:
    cdef Target target
    cdef object block
    cdef uint8_t* base
    cdef size_t used              # bytes of inputs in the block
    cdef uint32_t world           # executions in the target's world
    cdef list corpus
    cdef size_t corpus_bytes
    cdef size_t size_max
    cdef Random random
    cdef uint8_t seen[65536]
    cdef uint64_t newest          # the execution that found something new last
    cdef readonly uint64_t executions
    cdef readonly uint64_t slowest_us
    cdef readonly uint32_t edges
    cdef readonly list fresh      # inputs of this run that walked somewhere new

    cdef uint8_t* next_place(self) except NULL
    cdef size_t compose(self, uint8_t* to) except 0
    cdef int execute(self, uint8_t* at, size_t size) except -1
    cdef uint64_t repeat(self, uint8_t* at, size_t size, uint64_t taken) except 0
    cdef bint is_new(self) noexcept nogil
    cdef int keep(self, const uint8_t* at, size_t size) except -1
