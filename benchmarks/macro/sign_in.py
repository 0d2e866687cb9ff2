"""How many sign-ins a second one processor judges, by the kind of token, new ones and those that come again.

Run as `python -m benchmarks.macro.sign_in`: tokens are made beforehand, each for a user of its own, and judged by an
`Authority` with roles that have placeholders, as a server's loop does it. Every answer is looked at. The time is that
of the processor, so that what the machine does beside it does not count; `--json FILE` writes the figures.
"""

from __future__ import annotations

import argparse
import json
import queue
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from broker.access.authority import Authority
from broker.access.identity import Identity, Verb
from broker.access.minting import Signer, make_key, public_half

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker.model.errors import BrokerError

ALGORITHMS = ("HS256", "RS256", "EdDSA")
ACCESS = """
[jwt]
issuer = "https://login.example.com/"
audience = "broker"
algorithms = ["EdDSA", "RS256", "HS256"]
keys = "keys.json"
[roles.chat]
subscribe = ["user.{sub}.>", "news.>"]
publish = ["user.{sub}.*", "room.*.{sub}"]
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=4_000, help="of each kind")
    parser.add_argument("--json", dest="json_path", type=Path)
    options = parser.parse_args()
    keys = {algorithm: make_key(algorithm, algorithm) for algorithm in ALGORITHMS}
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "access.toml"
        for name, text in (
            ("access.toml", ACCESS),
            ("keys.json", json.dumps({"keys": [public_half(key) for key in keys.values()]})),
        ):
            (Path(folder) / name).write_text(text)
            (Path(folder) / name).chmod(0o600)
        for algorithm, key in keys.items():
            expires_s = int(time.time()) + 3_600
            claims = {"iss": "https://login.example.com/", "aud": "broker", "exp": expires_s, "roles": ["chat"]}
            signer = Signer(key)
            tokens = [signer.mint(claims | {"sub": f"user{number}"}) for number in range(options.tokens)]
            figures[algorithm] = {"new": judged(path, tokens, 1), "again": judged(path, tokens, 2)}
            print(f"{algorithm}: {figures[algorithm]['new']:,.0f} new and {figures[algorithm]['again']:,.0f} known "
                  "sign-ins per second of a processor")  # fmt: skip
    if options.json_path is not None:
        options.json_path.write_text(json.dumps(figures, indent=2))


def judged(path: Path, tokens: list[str], rounds: int) -> float:
    """Return sign-ins a second of a processor, in the last round."""
    answers: list[Identity | BrokerError] = []
    posted: queue.SimpleQueue[Callable[[], None]] = (
        queue.SimpleQueue()
    )  # nothing comes: signed tokens are judged at once
    authority = Authority(str(path), posted.put)
    try:
        for _ in range(rounds):
            answers.clear()
            begun_s = time.thread_time()
            for token in tokens:
                authority.sign_in(token, "peer", answers.append)
            took_s = time.thread_time() - begun_s
    finally:
        authority.close()
    for number, answer in enumerate(answers):
        assert isinstance(answer, Identity)
        assert answer.grants is not None
        assert answer.grants.allows(Verb.PUBLISH, f"user.user{number}.x".encode())
    return len(tokens) / took_s


if __name__ == "__main__":
    main()
