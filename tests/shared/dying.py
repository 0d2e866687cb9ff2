"""A server that dies without a word to whoever waits for it, as one does that the system kills for want of memory."""

import os
import signal
import sys

if __name__ == "__main__":
    sys.stderr.write("about to die\n")
    sys.stderr.flush()
    os.kill(os.getpid(), signal.SIGKILL)
