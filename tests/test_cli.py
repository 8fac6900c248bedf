"""The program itself: it starts fast, lists what it can do, and ends with the documented exit codes."""

from __future__ import annotations

import contextlib
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cspine import __version__, errors
from cspine.cli import console
from cspine.cli.app import app
from cspine.cli.extras import EXTRAS, require

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "openvino", "onnxruntime", "scipy", "SimpleITK", "numpy", "jinja2", "PIL")
COMMANDS = (
    "predict",
    "demo",
    "doctor",
    "info",
    "phantom",
    "recipes",
    "prepare",
    "train",
    "curves",
    "evaluate",
    "compare",
    "submission",
    "explain",
    "export",
)


def all_errors() -> list[type[errors.CspineError]]:
    """Those that any command may end with; what other tests have imported makes no difference."""
    return [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.CspineError)]


def everywhere(base: type[errors.CspineError] = errors.CspineError) -> list[type[errors.CspineError]]:
    """All of them, those of single rooms too."""
    for path in sorted((ROOT / "src" / "cspine").rglob("*.py")):
        if re.search(r"^class \w+\(\w*Error\)", path.read_text(encoding="utf-8"), re.MULTILINE):
            with contextlib.suppress(ImportError):  # an extra that is not installed
                importlib.import_module(".".join(path.relative_to(ROOT / "src").with_suffix("").parts))
    return [base, *(found for child in base.__subclasses__() for found in everywhere(child))]


def loaded_by(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after running some code."""
    tail = "\nimport sys; print('LOADED', *sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code + tail], capture_output=True, text=True, check=True)
    return set(done.stdout.rpartition("LOADED")[2].split())


@pytest.mark.parametrize("arguments", [[], ["predict"], ["demo"], ["doctor"], ["info"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = f"""
from cspine.cli.app import app
try:
    app({[*arguments, "--help"]!r})
except SystemExit as end:
    assert not end.code
"""
    assert not loaded_by(code) & set(HEAVY)


def test_help_lists_the_commands_and_says_what_it_is_not() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    assert "Not a diagnosis" in result.output
    for command in COMMANDS:
        assert re.search(rf"\b{command}\b", result.output), command


def test_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"cspine {__version__}\n")


def test_unknown_options_are_usage_errors() -> None:
    assert CliRunner().invoke(app, ["predict", "--nonsense"]).exit_code == 2
    assert CliRunner().invoke(app, ["nonsense"]).exit_code == 2


@pytest.mark.parametrize("kind", all_errors(), ids=lambda kind: kind.__name__)
def test_every_error_ends_with_its_code_and_says_what_where_and_what_to_do(
    kind: type[errors.CspineError], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise kind("expected [bold]X[/bold], got Y", where="file [1].dcm", fix="Do Z")

    monkeypatch.setattr("cspine.cli.checks.everything", fail)
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == kind.exit_code
    assert result.stderr == "error: expected [bold]X[/bold], got Y\nwhere: file [1].dcm\n   do: Do Z\n"
    assert "Traceback" not in result.output


def test_interrupting_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cspine.cli.checks.everything", interrupt)
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == console.EXIT_INTERRUPTED == 130


def test_exit_codes_are_documented() -> None:
    text = (ROOT / "docs" / "reference" / "exit-codes.md").read_text(encoding="utf-8")
    for kind in everywhere():
        if kind.exit_code != errors.StudyError.exit_code or kind is errors.StudyError:
            assert re.search(rf"\| {kind.exit_code} \| `{kind.code}` \|", text), kind
        else:
            assert f"| `{kind.code}` |" in text, kind
    assert f"| {console.EXIT_INTERRUPTED} |" in text


def test_every_option_is_documented() -> None:
    text = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    for command in COMMANDS:
        result = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"}).invoke(app, [command, "--help"])
        assert result.exit_code == 0
        part = text.partition(f"## cspine {command}\n")[2].partition("\n## ")[0]
        assert part, f"docs/reference/cli.md has no section for {command}"
        for option in set(re.findall(r"--[a-z][a-z0-9-]+", result.output)) - {"--help"}:
            assert option in part, f"{command} {option}"


def test_a_missing_extra_names_its_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cspine.cli.extras.find_spec", lambda _: None)
    with pytest.raises(errors.MissingExtraError, match=r"cspine train needs .*pip install \"cspine\[train\]\""):
        require("train", for_what="cspine train")


def test_extras_are_those_of_the_package() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {extra.name for extra in EXTRAS} == set(project["optional-dependencies"])
