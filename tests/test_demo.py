"""``cspine demo``: what is planted is in the truth, and the table shows both sides."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner, Result

from cspine.anatomy import LEVELS, Level
from cspine.cases import Case
from cspine.cli import demo
from cspine.cli.app import app
from cspine.phantoms.scanner import Scanner
from cspine.studies import open_study
from fake_predictor import FakePredictor, findings_of


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Result, Path, Case]]:
    """The whole command with a predictor that looks at nothing, and the case it made."""
    out, cases, real = tmp_path_factory.mktemp("demo"), [], demo.make_study

    def remember(folder: Path, seed: int) -> Case:
        # Coarser than the real demo: the same steps in a tenth of the time.
        scanner = Scanner(pixel=1.0, matrix=(160, 160), spacing=2.0, thickness=2.0, sample=1.0)
        cases.append(real(folder, seed, scanner=scanner))
        return cases[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "make_study", remember)
        patch.setattr("cspine.inference.predictor.Predictor", FakePredictor)
        patch.setattr("cspine.inference.bundle.Bundle.default", classmethod(lambda _: SimpleNamespace(sha256="0" * 64)))
        result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["demo", "-o", str(out)])
        yield result, out, cases[0]


def test_two_fractures_are_planted_in_a_neck_that_is_wholly_in_view(run: tuple[Result, Path, Case]) -> None:
    case = run[2]
    broken = [level for level in LEVELS if case.levels[level].fractured]
    assert len(broken) == 2
    assert case.levels[Level.C2].types == ("dens-ii",)
    assert all(case.levels[level].visible_fraction > 0.99 for level in LEVELS)


def test_it_is_a_dicom_series_that_opens_as_what_was_made(run: tuple[Result, Path, Case]) -> None:
    case = run[2]
    volume = open_study(run[1] / "study")
    assert volume.source.kind == "dicom"
    assert volume.shape == case.volume.shape
    assert (volume.hu == case.volume.hu).mean() > 0.99
    assert volume.warnings == ()


def test_it_shows_planted_beside_found_and_where_the_report_is(run: tuple[Result, Path, Case]) -> None:
    result, out, _ = run
    assert result.exit_code == 0, result.output
    for level in LEVELS:
        assert level.name in result.stdout
    assert "dens-ii" in result.stdout
    assert str(out / "result" / "report.html") in result.stdout
    assert (out / "result" / "report.html").is_file()
    assert "not a diagnosis" in result.stdout


def test_comparison_says_what_was_not_judged(run: tuple[Result, Path, Case]) -> None:
    from rich.console import Console

    case = run[2]
    text = io.StringIO()
    Console(width=200, file=text).print(demo.comparison(case, findings_of(case.volume, neck=False)))
    assert text.getvalue().count("not judged: not in the scan") == 7
