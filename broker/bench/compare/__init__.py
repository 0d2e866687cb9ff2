"""`broker bench compare`: the same works on this broker and on others, in one run, by the same driver.

    servers      the peers: how each is found, configured, started, watched and ended
    guardian     the process that ends a server when whoever wanted it is gone, however it went
    works        what is done, and what each contender is asked to promise while it does it
    native       a work by the native driver, which speaks each peer's own protocol
    clients      a work by the Python clients of each
    embedded     queues inside a process: the embedded home, and four that keep their messages in SQLite
    rounds       the order of the runs: A B C, A B C, ...
    outcome      what came out: medians, ranges, ratios, who was the bottleneck; as JSON and back
    demands      the ratios that must be met, and the earlier run that must not be better
    table, markdown, page    the outcome for a terminal, a file of text, and one page of HTML with pictures

A server is started anew for each measurement, on a free port of the loopback and with its files in a temporary folder
(TMPDIR chooses whose disk is measured), so that no measurement inherits what the one before it left in memory. Nothing
here makes a peer slower than its own documentation would: where it names a faster way of doing the work, that is taken.
"""
