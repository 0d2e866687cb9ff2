# The hashes of ids in frames that come soon: each is taken once, and what it is looked up in has time to come into the
# cache.
#
# They are known by where the ids stand, so they mean something only as long as that buffer is neither moved nor written
# to, and they are gathered and taken in the order in which they stand there.

from libc.stdint cimport uint8_t, uint32_t, uintptr_t

from broker_native.ids cimport IdHash

cdef enum:
    IDS_AHEAD = 16                  # a power of two
    IDS_AHEAD_STEP = 8              # so many are gathered together

cdef struct IdsAhead:
    const uint8_t* ids[IDS_AHEAD]
    IdHash hashes[IDS_AHEAD]
    uint32_t first                  # the oldest, modulo IDS_AHEAD
    uint32_t end


cdef inline bint ahead_has_room(const IdsAhead* ahead) noexcept nogil:
    """Whether the next ones may be gathered."""
    return ahead.end - ahead.first <= IDS_AHEAD - IDS_AHEAD_STEP


cdef inline const IdHash* ahead_at(const IdsAhead* ahead, uint32_t index) noexcept nogil:
    return &ahead.hashes[index % IDS_AHEAD]


cdef inline void ahead_add(IdsAhead* ahead, const uint8_t* id, const IdHash* hash) noexcept nogil:
    """Keep the hash of an id; there is room."""
    ahead.ids[ahead.end % IDS_AHEAD] = id
    ahead.hashes[ahead.end % IDS_AHEAD] = hash[0]
    ahead.end += 1


cdef inline const IdHash* ahead_take(IdsAhead* ahead, const uint8_t* id) noexcept nogil:
    """The hash of an id, NULL when there is none. Those of ids before it are forgotten: nobody asked for them."""
    cdef const uint8_t* other
    while ahead.first != ahead.end:
        other = ahead.ids[ahead.first % IDS_AHEAD]
        if <uintptr_t>other > <uintptr_t>id:
            return NULL
        ahead.first += 1
        if other == id:
            return &ahead.hashes[(ahead.first - 1) % IDS_AHEAD]
    return NULL
