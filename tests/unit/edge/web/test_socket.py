"""Close codes mirror the registry of errors."""

from __future__ import annotations

from broker.edge.web.socket import close_code
from broker.model.errors import ERROR_CODES


def test_each_error_has_a_close_code_of_its_own() -> None:
    codes = {close_code(entry.code): entry for entry in ERROR_CODES}
    assert len(codes) == len(ERROR_CODES)
    for code, entry in codes.items():
        assert 4000 <= code <= 4999
        assert divmod(code - 4000, 100) == divmod(entry.code, 1000)


def test_codes_are_as_the_specification_says() -> None:
    assert (close_code(3004), close_code(1007), close_code(4001)) == (4304, 4107, 4401)
