"""What a server tells whoever waits for its start: once, and whether anybody still listens or not."""

from __future__ import annotations

import json
import os

import pytest

from broker.edge.starter import Starter
from broker.model.errors import error, from_wire


def pipe() -> tuple[int, int, int]:
    """Return the reading end, and what a server is handed: the writing end, and an open file for the lock."""
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    return reading, writing, os.open(os.devnull, os.O_RDONLY)


def said(reading: int) -> bytes:
    with os.fdopen(reading, "rb") as file:
        return file.read()


def test_ready_is_told_and_the_right_to_start_let_go_of() -> None:
    reading, *handed = pipe()
    starter = Starter(*handed)
    assert not any(os.get_inheritable(descriptor) for descriptor in handed), "the archiver must hold neither"
    starter.ready({"pid": 7, "run": 3})
    starter.failed(error("STORAGE_FULL", "later"))
    assert json.loads(said(reading)) == {"ready": {"pid": 7, "run": 3}}
    for descriptor in handed:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


def test_a_failure_is_told_as_what_it_is() -> None:
    reading, *handed = pipe()
    Starter(*handed).failed(error("STORAGE_IN_USE", "data: held by process 1", "stop it"))
    failure = from_wire(json.loads(said(reading))["error"])
    assert (failure.name, failure.detail, failure.hint) == ("STORAGE_IN_USE", "data: held by process 1", "stop it")


def test_an_opener_that_is_gone_is_no_failure() -> None:
    reading, *handed = pipe()
    os.close(reading)
    Starter(*handed).ready({"pid": 7, "run": 3})
