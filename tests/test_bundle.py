"""A bundle is used only when every byte of it is vouched for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cspine.errors import BundleError
from cspine.inference.bundle import MANIFEST, Bundle, bundle_digest, write_bundle
from oracle import oracle_bundle


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    oracle_bundle(tmp_path / "b")
    return tmp_path / "b"


def edit(folder: Path, **changes: object) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**content, **changes}))


def refused(folder: Path) -> BundleError:
    with pytest.raises(BundleError) as caught:
        Bundle.load(folder)
    assert caught.value.exit_code == 4
    assert caught.value.fix
    return caught.value


def test_what_was_written_is_loaded(folder: Path) -> None:
    bundle = Bundle.load(folder)
    assert bundle.model("locator") == b"locator"
    assert bundle.manifest.schema_version == "1"
    assert bundle.sha256 == bundle_digest(folder)


def test_a_changed_file_is_refused(folder: Path) -> None:
    (folder / "locator.onnx").write_bytes(b"locator!")
    error = refused(folder)
    assert "SHA-256" in error.message
    assert error.where == "locator.onnx"


def test_a_missing_file_is_refused(folder: Path) -> None:
    (folder / "classifier.onnx").unlink()
    assert "got nothing" in refused(folder).message


def test_an_extra_file_is_refused(folder: Path) -> None:
    (folder / "more.onnx").write_bytes(b"")
    assert "more.onnx" in refused(folder).message


def test_a_link_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"locator")
    (folder / "locator.onnx").unlink()
    (folder / "locator.onnx").symlink_to(tmp_path / "elsewhere")
    assert "link" in refused(folder).message


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path / "nowhere").where == MANIFEST


@pytest.mark.parametrize("version", ["2", "", None, 1, ["1"]])
def test_another_schema_version_is_refused_before_anything_else(folder: Path, version: object) -> None:
    edit(folder, schema_version=version, future_field={})
    error = refused(folder)
    assert "schema" in error.message
    assert "schema_version" in str(error.where)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "a\\b", "..", ".hidden", "c:x", "", "x\n"])
def test_names_that_leave_the_folder_are_refused(folder: Path, name: str) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    edit(folder, files={**content["files"], name: "0" * 64})
    refused(folder)


def test_an_unknown_key_is_named(folder: Path) -> None:
    edit(folder, treshold=1)
    assert "treshold" in str(refused(folder).where)


@pytest.mark.parametrize("text", [b"", b"[]", b"null", b"{", b"\xff\xfe", b'{"schema_version": "1"}', b"[" * 100000])
def test_nonsense_manifests_are_refused(folder: Path, text: bytes) -> None:
    (folder / MANIFEST).write_bytes(text)
    refused(folder)


@given(st.binary(max_size=200))
def test_no_bytes_crash_the_manifest_parser(tmp_path_factory: pytest.TempPathFactory, text: bytes) -> None:
    folder = tmp_path_factory.mktemp("bundle")
    (folder / MANIFEST).write_bytes(text)
    with pytest.raises(BundleError):
        Bundle.load(folder)


def test_a_stage_without_its_file_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not in files"):
        write_bundle(
            tmp_path,
            {"locator.onnx": b"x"},
            {
                "name": "n",
                "version": "1",
                "recipe": "r",
                "trained_on": "t",
                "stages": {"locator": {"file": "locator.onnx"}, "classifier": {"file": "classifier.onnx"}},
            },
        )


def test_a_type_level_without_its_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="hangman"):
        oracle_bundle(tmp_path / "x", type_levels={"hangman": ("C2",)})


def test_writing_over_a_bundle_replaces_it(folder: Path) -> None:
    first = Bundle.load(folder).sha256
    second = oracle_bundle(folder, version="2")
    assert second.manifest.version == "2"
    assert second.sha256 != first


def test_precision_needs_a_record_within_its_tolerance(tmp_path: Path) -> None:
    good, bad = {"error": 0.01, "tolerance": 0.02, "inputs": 3}, {"error": 0.03, "tolerance": 0.02, "inputs": 3}
    manifest = oracle_bundle(
        tmp_path / "p", precision={"locator": {"bf16": good}, "classifier": {"bf16": bad}}
    ).manifest
    assert manifest.tolerates("locator", "bf16")
    assert not manifest.tolerates("classifier", "bf16")
    assert manifest.tolerates("classifier", "f32")


def test_the_default_bundle_is_whole_when_it_is_there() -> None:
    from importlib import resources

    if not (resources.files("cspine") / "bundles" / "base" / MANIFEST).is_file():
        with pytest.raises(BundleError, match="missing"):
            Bundle.default()
        return
    bundle = Bundle.default()
    assert sum(len(content) for content in bundle.files.values()) <= 20 << 20
    assert "card.md" in bundle.files
