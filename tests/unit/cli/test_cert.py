"""`broker cert dev`: files that a server and its clients get along with, for this user alone, and never over others."""

from __future__ import annotations

import ssl
import stat
from typing import TYPE_CHECKING

import pytest
from cryptography import x509

from broker.cli.main import main
from broker.config import TlsConfig
from broker.edge.certificates import server_context
from broker.remote.tls import client_context

if TYPE_CHECKING:
    from pathlib import Path


def test_what_it_writes_serves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "made" / "here"
    made = ["cert", "dev", "--directory", str(folder), "--name", "broker.lan", "--name", "10.0.0.7", "--name", "::1"]
    assert main([*made, "--client", "worker"]) == 0
    out, err = capsys.readouterr()
    names = ["ca.pem", "server.pem", "server-key.pem", "worker.pem", "worker-key.pem"]
    assert out.splitlines() == [str(folder / name) for name in names]
    assert "broker serve --set tls.certificate=" in err
    assert "broker+tls://localhost?ca=" in err
    assert {stat.S_IMODE((folder / name).stat().st_mode) for name in names} == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    files = {name: str(folder / name) for name in names}
    server_context(TlsConfig(certificate=files["server.pem"], key=files["server-key.pem"], client_ca=files["ca.pem"]))
    client_context(files["ca.pem"], files["worker.pem"], files["worker-key.pem"])
    server = x509.load_pem_x509_certificate((folder / "server.pem").read_bytes())
    found = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert found.get_values_for_type(x509.DNSName) == ["localhost", "broker.lan"]
    assert [str(each) for each in found.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1", "10.0.0.7"]
    assert (server.not_valid_after_utc - server.not_valid_before_utc).days == 365
    authority = ssl.create_default_context(cafile=files["ca.pem"]).get_ca_certs()
    assert [each["subject"] for each in authority] == [((("commonName", "broker development"),),)]


def test_nothing_is_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "server-key.pem").write_text("mine")
    assert main(["cert", "dev", "--directory", str(tmp_path)]) == 5
    assert f"{tmp_path}/server-key.pem is there already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["server-key.pem"], "and nothing else is left behind"
    assert (tmp_path / "server-key.pem").read_text() == "mine"


def test_a_link_is_not_followed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "ca.pem").symlink_to(tmp_path / "elsewhere")
    assert main(["cert", "dev", "--directory", str(tmp_path / "made")]) == 5
    assert not (tmp_path / "elsewhere").exists()
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ("--name", "two words"),
        ("--name", "-x.example"),
        ("--name", ""),
        ("--client", "../up"),
        ("--client", "ca"),
        ("--client", "server"),
        ("--client", "a", "--client", "a"),
        ("--client", "a" * 65),
    ],
)
def test_names_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    assert main(["cert", "dev", "--directory", str(tmp_path / "made"), *arguments]) == 5
    assert "INVALID_CONFIG" in capsys.readouterr().err
    assert not (tmp_path / "made").exists()


def test_a_key_shows_in_no_text() -> None:
    from broker.access.issuing import Issuer

    issued = Issuer().issue_server(["here.example"])
    assert "PRIVATE" in issued.key.decode()
    assert "PRIVATE" not in repr(issued) + str(issued)
