"""Decide and apply: the pure part of the broker.

Bytes and time come in as arguments; what a log and a clock must do for it stands in `ports.py`. Nothing in here does
I/O, reads a clock, draws randomness or knows an event loop, so a test drives all of it from a seed.
"""
