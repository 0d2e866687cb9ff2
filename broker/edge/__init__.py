"""Listeners: the server's side of connections, whatever they come in by."""
