"""The values that every layer shares: names, patterns, levels, profiles, positions, limits and errors.

Pure values: no I/O, no clock, no thread and nothing of `broker` outside this package; only the standard library, so
that importing it stays cheap. Each module is imported by its own name; this package re-exports nothing.
"""
