"""What every client of a server shares, whatever carries its bytes and however its callers wait.

`address` takes a URL apart, `conversation` is one connection's frames in both directions, `bus` what outlives
connections (publishes, subscriptions, requests), `subscription` and `places` what a reader is and where it stands,
`pages` how much is read back at a time, `reconnect` when to try again and what a new connection means for unanswered
publishes, `forked` what a child process may not use. Knows no socket, no loop and no thread: time, chance and whoever
waits are given. Imports nothing of the server.
"""
