"""The asyncio client: a `Bus` over one connection that it keeps, repairs and resumes.

`client` is the bus itself, `connection` one conversation, `transport` what carries bytes (a socket, or memory in the
embedded home), `subscription` and `history` what a task reads. What it shares with clients that wait in other ways is
in `broker.remote`. Imports nothing of the server.
"""
