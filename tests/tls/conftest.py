"""Certificates for all tests of the folder: drawing keys takes longer than most of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.tls.places import write_certificates

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all certificates; what a test changes it copies."""
    folder = tmp_path_factory.mktemp("certificates")
    write_certificates(folder)
    return folder
