"""What tests of several native modules use."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    """A folder in memory if there is one."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="broker-native-", dir=memory if memory.is_dir() else None))
    yield folder
    shutil.rmtree(folder)
