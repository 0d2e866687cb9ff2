# Sorting many keys while other threads run: Python's own sort keeps the interpreter lock from the first comparison to
# the last, which with ten thousand names is milliseconds in which no loop turns.
