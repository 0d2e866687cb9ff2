"""The web listener: browsers and HTTP on one port, and WebSockets that begin there.

Nothing outside this folder imports what it needs, so that a broker without a web listener needs none of it.
"""
