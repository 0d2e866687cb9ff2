"""What runs in place of `python -m broker`: hands its arguments and descriptors to the nursery, and waits for its word.

stub.py NURSERY serve … --starter READY,LOCK
"""

import json
import os
import socket
import sys

if __name__ == "__main__":
    nursery, *arguments, _, handed = sys.argv[1:]
    ready, lock = map(int, handed.split(","))
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(nursery)
        request = json.dumps({"cwd": os.getcwd(), "arguments": arguments}).encode()
        socket.send_fds(asking, [request], [2, ready, lock])
        asking.recv(1)  # the end: it has been forked
