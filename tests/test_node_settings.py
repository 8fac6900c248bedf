"""Settings of the node: one TOML file, every mistake named by its key."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from cspine.errors import RecipeError
from cspine.node.settings import CStoreDestination, NodeSettings, StowDestination, load_settings

FULL = """
ae_title = "NECK"
host = "0.0.0.0"
port = 104
data = "node"
quiet_seconds = 45
complete = "release"
database = "postgresql://node:hunter2@db/cspine"

[[peers]]
name = "ct1"
ae_title = "CT1"
address = "10.1.2.3"
port = 104

[[peers]]
name = "floor2"
ae_title = "WS"
address = "10.1.3.0/24"

[[destinations]]
kind = "cstore"
name = "pacs"
ae_title = "PACS"
host = "pacs.example"

[[destinations]]
kind = "stow"
name = "archive"
url = "https://archive.example/dicom-web"
password_file = "password"

[limits]
associations = 4

[tls]
certificate = "node.pem"
key = "/etc/node.key"
authorities = "ca.pem"
"""


def load(folder: Path, text: str) -> NodeSettings:
    path = folder / "node.toml"
    path.write_text(text)
    return load_settings(path)


def test_without_a_file_nobody_but_this_machine_reaches_the_node_and_nothing_is_sent() -> None:
    settings = NodeSettings()
    assert (settings.host, settings.ae_title, settings.port) == ("127.0.0.1", "CSPINE", 11112)
    assert settings.destinations == () and settings.database is None and settings.tls is None


def test_a_whole_file_is_read(tmp_path: Path) -> None:
    settings = load(tmp_path, FULL)
    assert settings.ae_title == "NECK" and settings.complete == "release"
    assert settings.peers[0].host == "10.1.2.3" and settings.peers[1].host is None
    pacs, archive = settings.destinations
    assert isinstance(pacs, CStoreDestination) and isinstance(archive, StowDestination)


def test_relative_paths_lie_beside_the_file(tmp_path: Path) -> None:
    settings = load(tmp_path, FULL)
    assert settings.data == tmp_path / "node"
    assert settings.tls is not None
    assert settings.tls.certificate == tmp_path / "node.pem" and settings.tls.key == Path("/etc/node.key")
    assert load(tmp_path, "").data == tmp_path / "cspine-node"


def test_the_password_in_the_database_address_is_not_shown(tmp_path: Path) -> None:
    assert "hunter2" not in repr(load(tmp_path, FULL))


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("ae_titel = 'X'", "ae_titel"),
        ("ae_title = 'SEVENTEEN LETTERS'", "ae_title"),
        ("ae_title = 'A\\\\B'", "ae_title"),
        ("port = 70000", "port"),
        ("quiet_seconds = -1", "quiet_seconds"),
        ("complete = 'soon'", "complete"),
        ("[[peers]]\nname = 'a'\nae_title = 'A'\naddress = 'host.example'", "peers.0.address"),
        ("[[peers]]\nname = 'a'\nae_title = 'A'\naddress = '10.0.0.0/8'\nport = 104", "peers.0"),
        ("[[peers]]\nname = 'a'\nae_title = 'A'\n[[peers]]\nname = 'a'\nae_title = 'B'", "top level"),
        ("[[destinations]]\nkind = 'ftp'\nname = 'a'", "destinations.0"),
        ("[[destinations]]\nkind = 'stow'\nname = 'a'\nurl = 'ftp://x'", "destinations.0.url"),
        ("[[destinations]]\nkind = 'cstore'\nname = 'a'\nae_title = 'A'\nhost = 'h'\ntls = true", "top level"),
        ("[limits]\npdu_bytes = 10", "limits.pdu_bytes"),
        ("[limits]\nmessage_bytes = 2000000\nmemory_bytes = 1500000", "limits"),
        ("[tls]\ncertificate = 'c'\nkey = 'k'", "tls"),
        ("[worker]\nmemory = 5", "worker.memory"),
        ("ae_title = ", "node.toml"),
    ],
)
def test_a_mistake_is_named_by_file_and_key(tmp_path: Path, text: str, key: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, text)
    assert caught.value.where is not None and caught.value.where.startswith("node.toml")
    assert caught.value.where.endswith(key)


def test_an_error_does_not_repeat_the_value_which_may_be_a_password(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, "[notify]\nwebhook = 'hunter2'")
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot read"):
        load_settings(tmp_path / "none.toml")


def fields(model: type[BaseModel]) -> Iterator[str]:
    """Names of all keys, at any depth."""
    for name, field in model.model_fields.items():
        yield name
        for part in _models(field.annotation):
            yield from fields(part)


def _models(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def test_every_key_is_in_the_reference() -> None:
    text = (Path(__file__).parents[1] / "docs" / "reference" / "node-settings.md").read_text()
    words = set(re.findall(r"[a-z0-9_]+", " ".join(re.findall(r"`[^`]+`|\[\[?[a-z]+\]?\]", text))))
    assert set(fields(NodeSettings)) - words == set()
