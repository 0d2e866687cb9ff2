"""Configuration: defaults, then a TOML file, then `BROKER_*` of the environment, then flags; the last one wins.

    [server]                               BROKER_SERVER_TCP=127.0.0.1:4770
    tcp = "127.0.0.1:4770"                 BROKER_SERVER_DATA=/var/lib/broker
    data = "/var/lib/broker"               BROKER_STORAGE_SEGMENT_BYTES="64 MiB"

    [limits]
    payload_bytes_max = "1 MiB"            sizes: an integer, or text in KiB, MiB or GiB

    [[profiles]]                           in the file only; the first match wins, so `>` comes last
    pattern = "typing.>"
    durability = "ephemeral"

    [[profiles]]
    pattern = ">"
    retention_s = "30 d"                   whole seconds: an integer, or text in s, min, h or d

Every value is checked where it was read, so that an error can name its source; a key that nobody knows is an error.
Sections are frozen and say of each field its unit, its range and whether SIGHUP changes it. Nothing here opens a
socket or looks at the data directory.

    sections   what there is to set          sources   reading it, and which line, variable or flag set what
    listeners  where a server may listen     config    one frozen value of all of it
    judge      everything wrong at once, and what is legal and probably wrong
    toml       writing a configuration as a file that reads back as itself
"""

from broker.config.config import Config, Origin
from broker.config.listeners import (
    UNIX_PATH_BYTES_MAX,
    ListenAddress,
    Listeners,
    check_listen_address,
    check_listeners,
    takes_uvloop,
)
from broker.config.sections import ServerConfig, StorageConfig, TlsConfig

__all__ = [
    "UNIX_PATH_BYTES_MAX",
    "Config",
    "ListenAddress",
    "Listeners",
    "Origin",
    "ServerConfig",
    "StorageConfig",
    "TlsConfig",
    "check_listen_address",
    "check_listeners",
    "takes_uvloop",
]
