"""The asyncio client: a `Bus` over one connection that it keeps, repairs and resumes.

`client` is the bus itself, `connection` one conversation, `transport` what carries bytes (a socket, or memory in the
embedded home), `subscription` and `places` what a reader is and where it stands, `reconnect` when to try again and what
a new connection means for unanswered publishes. Imports nothing of the server.
"""
