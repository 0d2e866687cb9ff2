"""The native protocol: frame kinds, control bodies, and the specification that a client can be written from alone.

Nothing here does I/O or keeps state, so both ends of a connection share it. The hot bodies (PUBLISH, PUBLISHED,
DELIVER) are the native codec's; this package owns everything that is a msgpack map.
"""
