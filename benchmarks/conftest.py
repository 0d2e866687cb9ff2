"""Makes one benchmark of each work that a file of `micro/` lists in WORKS."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Hand `kernel_work` each of the module's works (a hook of pytest)."""
    if "kernel_work" in metafunc.fixturenames:
        metafunc.parametrize("kernel_work", list(metafunc.module.WORKS), ids=str)
