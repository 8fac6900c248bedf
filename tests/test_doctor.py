"""``cspine doctor`` tries things rather than looking whether they are installed."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cspine import errors
from cspine.cli import checks
from cspine.cli.app import app
from cspine.cli.checks import Check


@pytest.mark.parametrize(("file", "lossy"), [(file, lossy) for file, _, lossy in checks.SYNTAXES])
def test_every_transfer_syntax_decodes(file: str, lossy: bool) -> None:
    assert checks.decode_sample(file, lossy).startswith("decodes")


def test_a_decoder_that_returns_other_pixels_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "SAMPLE_START", -1000)
    with pytest.raises(errors.DamagedFileError, match="off by up to 24 HU"):
        checks.decode_sample("explicit.dcm", False)


def test_both_runtimes_run() -> None:
    found = checks.runtimes()
    assert [check.name for check in found] == ["OpenVINO", "ONNX Runtime"]
    assert all(check.good for check in found), found


def test_a_library_that_cannot_be_imported_is_a_finding_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    check = checks.runtimes()[1]
    assert not check.good
    assert check.fault is errors.MissingExtraError
    assert "pip install" in check.fix


def test_a_damaged_bundle_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "bundle.json").write_text("{}")
    check = checks.bundles(tmp_path)[0]
    assert not check.good
    assert check.fault is errors.BundleError


def test_extras_that_are_missing_come_with_their_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cspine.cli.extras.find_spec", lambda _: None)
    for check in checks.extras():
        assert not check.good
        assert check.fault is None
        assert check.fix.startswith('pip install "cspine[')


def test_memory_is_a_number_or_unknown() -> None:
    total, free = checks.memory()
    assert total is None or total > 0
    assert free is None or total is None or free <= total


@pytest.mark.parametrize(
    ("found", "code", "says"),
    [
        ([Check("a", "works", True, "1.0")], 0, "predicting works here"),
        ([Check("a", "extra", False, fix="pip install x")], 0, "pip install x"),
        ([Check("a", "decoder", False, "broken", "do this", errors.MissingExtraError)], 6, "do this"),
        ([Check("a", "bundle", False, "digest", "get it", errors.BundleError)], 4, "predicting does not work here"),
    ],
)
def test_exit_code_says_whether_predicting_would_work(
    found: list[Check], code: int, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "everything", lambda _: found)
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["doctor"])
    assert result.exit_code == code
    assert says in result.output
