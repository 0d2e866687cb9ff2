"""Static tokens: their form, their hashes, and that the time of a refusal says nothing of the id."""

from __future__ import annotations

import math
import random
import statistics
import time
from typing import TYPE_CHECKING

import pytest
from argon2 import PasswordHasher
from argon2.low_level import Type

from broker.access.static import Vault, check_hash, hash_of, is_id, make, split
from broker.model.errors import ConfigError
from tests.sizes import size

if TYPE_CHECKING:
    from collections.abc import Callable

SAMPLES = size("BROKER_TIMINGS", 2_000, 100_000)
WELCH_T_MAX = 4.5
"""What is taken for a leak, by the usual test of leakage (TVLA)."""
CHEAP = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
"""What a check costs is the same for all that are compared; the less it is, the more a difference shows."""


def test_what_is_made_is_taken() -> None:
    token = make("nightly")
    identifier, secret = split(token) or ("", "")
    assert identifier == "nightly"
    assert len(secret) == 43  # 32 bytes
    assert make("nightly") != token
    hash_text = hash_of(secret)
    check_hash(hash_text)
    vault = Vault({"nightly": hash_text})
    assert vault.check("nightly", secret) == hash_text
    assert vault.check("nightly", secret + "x") is None
    assert vault.check("nightly", "") is None
    assert vault.check("other", secret) is None
    assert Vault({}).check("nightly", secret) is None


@pytest.mark.parametrize(
    "text",
    ["", ".", "a", "a.", ".b", "a.b.c", "a b.c", "\u00e4.b", "a.\u00e4", "a.b\n", "a\n.b", "a.b c", "a." + "x" * 257,
     "x" * 65 + ".b", "a/b.c"],
)  # fmt: skip
def test_what_has_not_the_form(text: str) -> None:
    assert split(text) is None


def test_ids() -> None:
    assert is_id("a-Z_09")
    assert not any(is_id(text) for text in ("", "a.b", "a b", "a\n", "x" * 65, "\u00e4"))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "no argon2id hash"),
        ("secret", "no argon2id hash"),
        ("$2b$12$abcdefghijklmnopqrstuv", "no argon2id hash"),
        (PasswordHasher(1, 8, 1, type=Type.I).hash("a"), "no argon2id hash"),
        (PasswordHasher(1, 8, 1, type=Type.D).hash("a"), "no argon2id hash"),
        (PasswordHasher(1, 8, 1, hash_len=8).hash("a"), "no argon2id hash"),
        ("$argon2id$v=19$m=8,t=11,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA", "got 11 as argon2id's time"),
        ("$argon2id$v=19$m=262145,t=1,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA", "got 262145 as"),
        ("$argon2id$v=19$m=999,t=1,p=9$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA", "got 9 as"),
        ("$argon2id$v=19$m=x,t=1,p=9$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA", "no argon2id hash"),
        ("$argon2id$" + "$" * 1000, "no argon2id hash"),
    ],
)
def test_bad_hashes(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_hash(text)
    assert complaint in caught.value.detail
    assert not text or text not in str(caught.value)


def test_decoys_cost_what_hashes_do() -> None:
    """An id that is not there is compared, and with a hash of a cost that the file has."""
    dear = PasswordHasher(time_cost=2, memory_cost=16, parallelism=1)
    vault = Vault({"a": CHEAP.hash("a"), "b": dear.hash("b"), "c": CHEAP.hash("c")})
    costs = [each.rpartition("$")[0].rpartition("$")[0] for each in vault._decoys]
    assert costs == ["$argon2id$v=19$m=8,t=1,p=1", "$argon2id$v=19$m=16,t=2,p=1", "$argon2id$v=19$m=8,t=1,p=1"]
    assert len(set(vault._decoys)) == 2


def welch_t(check: Callable[[str], object], pairs: int, chance: random.Random) -> float:
    """Return Welch's t over the times of refusing an id that is there and one that is not, in turn and at random."""
    times_s: dict[str, list[float]] = {"known": [], "other": []}
    for _ in range(pairs):
        for identifier in chance.sample(list(times_s), 2):
            begun_s = time.perf_counter()
            check(identifier)
            times_s[identifier].append(time.perf_counter() - begun_s)
    # What the machine does meanwhile comes upon both alike, in spikes that hide everything else.
    bound_s = statistics.quantiles([*times_s["known"], *times_s["other"]], n=10)[7]
    known, other = ([each for each in found if each <= bound_s] for found in times_s.values())
    spread = math.sqrt(statistics.variance(known) / len(known) + statistics.variance(other) / len(other))
    return (statistics.fmean(known) - statistics.fmean(other)) / spread


def test_time_says_nothing_of_the_id() -> None:
    seed = random.randrange(1 << 32)
    vault = Vault({"known": CHEAP.hash("right")})
    found = welch_t(lambda identifier: vault.check(identifier, "wrong"), SAMPLES, random.Random(seed))
    assert abs(found) < WELCH_T_MAX, f"t {found:.2f} over {SAMPLES} pairs, seed {seed}"


def test_the_timing_test_finds_a_leak() -> None:
    """Without decoys the same measure is far beyond its bound: it can fail."""
    vault = Vault({"known": CHEAP.hash("right")})

    def leaking(identifier: str) -> None:
        if identifier in vault._hashes:
            vault.check(identifier, "wrong")

    assert abs(welch_t(leaking, 300, random.Random(1))) > WELCH_T_MAX
