"""Pages as a client of HTTP sees them: what is there, under which policy, and nothing else."""

from __future__ import annotations

import http.client
import re
from typing import TYPE_CHECKING

import pytest

from tests.browser.served import ROOT

if TYPE_CHECKING:
    from tests.browser.served import Server

LINK = re.compile(r'(?:href|src)="(/[^"]*)"|(?:from|import) "(\.[^"]+)"')


def get(server: Server, path: str, **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection(server.address, timeout=10)
    try:
        connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer, answer.read()
    finally:
        connection.close()


def test_all_that_a_page_names_is_there(server: Server) -> None:
    wanted = ["/", "/chat"]
    seen: set[str] = set()
    while wanted:
        path = wanted.pop()
        if path in seen:
            continue
        seen.add(path)
        answer, body = get(server, path)
        assert answer.status == 200, path
        assert answer.getheader("x-content-type-options") == "nosniff"
        policy = answer.getheader("content-security-policy") or ""
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        for rooted, beside in LINK.findall(body.decode()):
            folder = path.rpartition("/")[0]
            named = rooted or f"{folder}/{beside}"
            wanted.append(re.sub(r"/[^/.]+/\.\./|/\./", "/", named))
    assert {"/client/broker.js", "/console/app.js", "/chat/chat.js", "/console/style.css"} <= seen


def test_nothing_comes_from_elsewhere() -> None:
    for path in (ROOT / "broker" / "web").rglob("*"):
        if path.suffix in (".html", ".css", ".js", ".ts"):
            text = path.read_text()
            assert not re.search(r"https?://(?!127\.0\.0\.1|www\.w3\.org/2000/svg)|innerHTML|eval\(| style=", text), path


def test_a_copy_is_not_sent_again(server: Server) -> None:
    answer, body = get(server, "/")
    tag = answer.getheader("etag") or ""
    again, nothing = get(server, "/", if_none_match=f'"other", W/{tag}')
    assert (again.status, nothing) == (304, b"")
    assert again.getheader("etag") == tag
    changed, whole = get(server, "/", if_none_match='"other"')
    assert (changed.status, whole) == (200, body)


@pytest.mark.parametrize(
    "path",
    ["/client/../console/app.js", "/console/%2e%2e/client/broker.js", "/client/", "/client/package.json"]
    + ["/console/..%2f..%2f__init__.py", "//etc/passwd", "/console/style.css%00", "/chat/index.html/"],
)
def test_no_path_leads_elsewhere(server: Server, path: str) -> None:
    assert get(server, path)[0].status == 404
