"""The version of the broker, in the one place that the build, the handshake and the command line read it from."""

__version__ = "0.1.0"
