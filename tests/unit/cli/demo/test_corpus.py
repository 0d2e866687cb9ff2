"""The demo's corpus: every line once, to the channel where it belongs."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

from broker.cli.demo.corpus import LINE_BYTES_MAX, Source, count_lines, file_sources, library_sources
from broker.model.errors import ConfigError
from broker.model.names import check_channel


def test_library_has_a_channel_for_each_package() -> None:
    sources = {source.channel: source for source in library_sources()}
    assert {"demo.lib.asyncio", "demo.lib.json", "demo.lib.os"} <= sources.keys()
    assert all(check_channel(channel) for channel in sources)
    files = [path for source in sources.values() for path in source.files]
    assert len(files) == len(set(files))
    os_file = Path(sources["demo.lib.os"].files[0])
    assert list(sources["demo.lib.os"].lines()) == os_file.read_bytes().replace(b"\r\n", b"\n").splitlines()


def test_library_without_sources_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(ConfigError, match=r"got no \.py file"):
        library_sources()


def test_lines_of_a_file_are_dealt_out(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"".join(b"line %d\n" % n for n in range(100)) + b"no end")
    sources = file_sources(path)
    dealt = {source.channel: list(source.lines()) for source in sources}
    assert list(dealt) == [f"demo.file.part{part}" for part in range(8)]
    assert dealt["demo.file.part0"][:3] == [b"line 0", b"line 8", b"line 16"]
    assert dealt["demo.file.part4"][-2:] == [b"line 92", b"no end"]
    assert sum(map(len, dealt.values())) == 101


def test_line_without_an_end_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"x" * (LINE_BYTES_MAX + 5) + b"\r\nshort\r\n\n")
    lines = list(Source("demo.file.whole", (path,)).lines())
    assert lines == [b"x" * LINE_BYTES_MAX, b"x" * 5, b"short", b""]


def test_lines_are_counted_up_to_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"\n" * 20)
    counts = count_lines(file_sources(path), 1_000)
    assert sum(counts.values()) == 20
    assert sum(count_lines(file_sources(path), 9).values()) == 16
    assert count_lines([Source("demo.file.whole", (path,))], 5) == {"demo.file.whole": 5}


def test_empty_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.touch()
    with pytest.raises(ConfigError, match="got 0 lines"):
        count_lines(file_sources(path), 10)
    with pytest.raises(ConfigError, match="No such file"):
        count_lines(file_sources(tmp_path / "none"), 10)
