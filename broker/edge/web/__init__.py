"""The web port: HTTP and WebSocket for browsers and for those who speak nothing else."""
