"""Settings of the web application: what a file may say, and which key is wrong when it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

import cspine.web
from cspine.errors import RecipeError
from cspine.web.passwords import faults
from cspine.web.settings import Password, WebSettings, load_settings

SAMPLE = Path(cspine.web.__file__).with_name("sample.toml")


def written(folder: Path, text: str) -> Path:
    path = folder / "web.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_without_a_file_only_this_machine_can_reach_it() -> None:
    settings = WebSettings()
    assert (settings.host, settings.registration, settings.secure) == ("127.0.0.1", "invitation", False)


def test_the_sample_holds_the_defaults() -> None:
    assert load_settings(SAMPLE).model_dump(exclude={"data"}) == WebSettings().model_dump(exclude={"data"})


def test_every_key_of_the_sample_can_be_used() -> None:
    text = "\n".join(
        line[1:] if line.startswith("#") and not line.startswith("# ") else line
        for line in SAMPLE.read_text(encoding="utf-8").splitlines()
    )
    # All keys at once: they need a proxy's address, which the sample has too.
    import tomllib

    settings = WebSettings.model_validate(tomllib.loads(text))
    assert settings.mail is not None and settings.oidc is not None and settings.secure


def test_paths_lie_beside_the_file(tmp_path: Path) -> None:
    settings = load_settings(written(tmp_path, 'data = "d"\nbundle = "b"\n[metrics]\ntoken_file = "t"\n'))
    assert (settings.data, settings.bundle, settings.metrics.token_file) == (
        tmp_path / "d",
        tmp_path / "b",
        tmp_path / "t",
    )


@pytest.mark.parametrize(
    ("text", "key", "says"),
    [
        ('prot = 1', "prot", "not known"),
        ('port = "many"', "port", "integer"),
        ('[limits]\nfile_bytes = 0', "limits.file_bytes", "greater"),
        ('host = "0.0.0.0"', "top level", "https"),
        ('base_url = "https://a.example/path"', "base_url", "without a path"),
        ('base_url = "https://user:pw@a.example"', "base_url", "without query or user"),
        ('roles = ["administrator"]', "top level", "reader and uploader"),
        ('antivirus = ["clamscan"]', "top level", "{file}"),
        ('[oidc]\nissuer = "http://id.example"\nclient_id = "x"', "oidc", "https"),
        ('port = ', None, "TOML"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path: Path, text: str, key: str | None, says: str) -> None:
    with pytest.raises(RecipeError, match=says) as caught:
        load_settings(written(tmp_path, text))
    assert caught.value.where == ("web.toml" if key is None else f"web.toml: {key}")


def test_a_wrong_value_is_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_settings(written(tmp_path, 'database = ["postgresql://me:hunter2@db/x"]'))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "password",
    [
        "Password1234!",
        "qwertyuiop12",
        "Spring2026!!!",
        "cspine-radiology",
        "aaaaaaaaaaaaaaa",
        "123456789012",
        "adalindqvist99",
        "P@ssw0rd!!!!",
    ],
)
def test_passwords_that_everybody_tries_first_are_refused(password: str) -> None:
    assert faults(password, Password(), email="ada.lindqvist@example.org", name="Ada Lindqvist")


@pytest.mark.parametrize(
    "password", ["seven quiet herons", "correct horse battery staple", "tR7#kq9!mZx2", "Überraschend viele Ähren"]
)
def test_good_passwords_are_taken(password: str) -> None:
    assert faults(password, Password(), email="ada@example.org") == []


def test_a_site_may_forbid_more(tmp_path: Path) -> None:
    forbidden = tmp_path / "list.txt"
    forbidden.write_text("seven quiet herons\n", encoding="utf-8")
    assert faults("Seven Quiet Herons", Password(forbidden_file=forbidden))


@given(st.text(max_size=200))
def test_any_text_gets_an_answer(password: str) -> None:
    found = faults(password, Password(), email="ada@example.org")
    assert all(isinstance(one, str) and one for one in found)


def test_every_setting_is_in_the_reference() -> None:
    text = (Path(__file__).resolve().parents[1] / "docs" / "reference" / "web-settings.md").read_text(encoding="utf-8")

    def keys(model: type[BaseModel], before: str = "") -> Iterator[str]:
        for name, field in model.model_fields.items():
            inner = [one for one in (field.annotation, *get_args(field.annotation)) if isinstance(one, type)]
            below = next((one for one in inner if issubclass(one, BaseModel)), None)
            yield from (f"{before}{name}",) if below is None else keys(below, f"{name}.")

    for key in keys(WebSettings):
        section, _, name = key.rpartition(".")
        assert f"`{name}`" in text or f"`{key}`" in text, key
        assert not section or f"`[{section}]`" in text, section


def test_the_data_folder_is_absolute_wherever_it_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert WebSettings().data == tmp_path / "cspine-web"
    file = tmp_path / "house" / "web.toml"
    file.parent.mkdir()
    file.write_text('data = "files"\n')
    assert load_settings(Path("house/web.toml")).data == tmp_path / "house" / "files"
