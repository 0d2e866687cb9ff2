"""The shared home: one server for all processes that open a directory, started by the first and owned by none.

    async with Broker.open("data", shared=True) as bus:
        await bus.publish("chat.acme.42", b"hello")

An opener looks for the directory's server at its Unix socket (`place`), and if nobody answers there it starts one
(`starting`). From then on it is a client as over any socket (`bus`), but for what follows when the connection breaks:
it may be this process that starts the next server. What the server runs with is whose it was started by (`settings`).

In the directory, besides the data:

    broker.sock      the socket, or a link to it where its path would be too long
    starting         flock(2) while a start is under way; its text is how the last one failed
    broker.toml      settings, written by hand: they go before those of all openers
    shared.toml      the settings that an opener asked for, so that a restart by anybody has them
    server.json      who serves, and with which settings
    server.log       what servers said, bounded

None of them is in anybody's way when it is stale: whether a server lives is decided by connecting to its socket, who
may start one by a lock that ends with its holder, and who owns the data by the lock of `broker.log.directory`. A server
that answers nobody is never killed, and nothing of it removed: the opener is told which process it is.
"""
