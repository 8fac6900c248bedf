"""Many studies: names, resuming, going on past a bad one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cspine import errors
from cspine.cli.batch import Batch, Outcome, refused_findings
from cspine.cli.jobs import ATTEMPT_FILE, Job, input_digest, plan_jobs
from cspine.findings import Findings, WarningItem
from cspine.reports import atomic


def judged(status: str = "partial", *warnings: WarningItem) -> Findings:
    """Findings of a study that was looked at; the batch does not look inside."""
    return refused_findings(errors.NotCtError("x")).model_copy(update={"status": status, "warnings": warnings})


class Judge:
    """Writes findings like the real one, counts, and does what is asked for a name."""

    def __init__(self, **faults: BaseException) -> None:
        self.faults = faults
        self.seen: list[str] = []
        self.answer = judged()

    def __call__(self, job: Job) -> Findings:
        self.seen.append(job.name)
        if job.name in self.faults:
            raise self.faults[job.name]
        findings = self.answer
        files = {"report.html": b"<html>", "findings.json": findings.to_json().encode()}
        atomic.write_set(job.folder, files)
        return findings


@pytest.fixture
def studies(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "in" / name for name in ("a", "b", "c")]
    for path in paths:
        path.mkdir(parents=True)
        (path / "1.dcm").write_bytes(path.name.encode())
    return paths


def run(studies: list[Path], out: Path, judge: Judge, *, resume: bool = True, **settings: str) -> list[Outcome]:
    return Batch(plan_jobs(studies, out), out, settings, resume).run(judge)


def test_one_study_goes_to_the_output_folder_itself(studies: list[Path], tmp_path: Path) -> None:
    assert plan_jobs(studies[:1], tmp_path / "out") == (Job("a", studies[0], tmp_path / "out"),)


@pytest.mark.parametrize(
    ("file", "name"),
    [("x.nii.gz", "x"), ("X.NII.GZ", "X"), ("x.nii", "x"), ("x.v2.zip", "x.v2"), ("x", "x"), ("x.dcm", "x")],
)
def test_name_of_a_file_is_without_its_ending(tmp_path: Path, file: str, name: str) -> None:
    path = tmp_path / file
    path.write_bytes(b"")
    assert plan_jobs([path], tmp_path)[0].name == name


def test_dots_of_a_folder_belong_to_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "1.2.840.1"
    folder.mkdir()
    assert plan_jobs([folder], tmp_path)[0].name == "1.2.840.1"
    assert plan_jobs([folder / ".."], tmp_path)[0].name == tmp_path.name


def test_clashing_names_are_numbered_in_order(tmp_path: Path) -> None:
    paths = [tmp_path / "1" / "neck.nii", tmp_path / "2" / "Neck.nii.gz", tmp_path / "3" / "neck", tmp_path / "neck-2"]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert [job.name for job in plan_jobs(paths, tmp_path)] == ["neck", "Neck-2", "neck-3", "neck-2-2"]


def test_a_study_cannot_take_the_place_of_the_summary(tmp_path: Path) -> None:
    paths = [tmp_path / "summary.csv", tmp_path / "b"]
    for path in paths:
        path.mkdir()
    assert [job.name for job in plan_jobs(paths, tmp_path)] == ["summary.csv-2", "b"]


def test_missing_studies_are_named_before_anything_is_done(studies: list[Path], tmp_path: Path) -> None:
    with pytest.raises(errors.UsageError, match=r"gone1.*gone2"):
        plan_jobs([*studies, tmp_path / "gone1", tmp_path / "gone2"], tmp_path)


@given(st.lists(st.sampled_from(["x", "X", "x-2", "x-3", "summary.csv", "y"]), min_size=2, max_size=8))
def test_folders_are_unique_whatever_the_names(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    root = tmp_path_factory.mktemp("names")
    paths = [root / str(number) / name for number, name in enumerate(names)]
    for path in paths:
        path.mkdir(parents=True)
    folders = [job.folder.name.casefold() for job in plan_jobs(paths, root / "out")]
    assert len(set(folders)) == len(folders)
    assert "summary.csv" not in folders


def test_a_bad_study_does_not_stop_the_others(studies: list[Path], tmp_path: Path) -> None:
    outcomes = run(studies, tmp_path / "out", Judge(b=errors.NotCtError("expected CT, got MR", fix="Give a CT")))
    assert [outcome.status for outcome in outcomes] == ["partial", "refused", "partial"]
    written = json.loads((tmp_path / "out" / "b" / "findings.json").read_text())
    assert written["status"] == "refused"
    assert written["warnings"] == [{"code": "not-ct", "message": "expected CT, got MR. Give a CT"}]
    assert [level["level"] for level in written["levels"]] == ["C1", "C2", "C3", "C4", "C5", "C6", "C7"]


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (MemoryError(), "refused", "too-large"),
        (PermissionError(13, "no"), "refused", "study"),
        (ZeroDivisionError("bug"), "failed", "error"),
    ],
)
def test_what_is_no_typed_error_becomes_one(
    studies: list[Path], tmp_path: Path, fault: Exception, status: str, code: str
) -> None:
    outcomes = run(studies, tmp_path / "out", Judge(a=fault))
    assert [outcome.status for outcome in outcomes] == [status, "partial", "partial"]
    assert outcomes[0].findings.warnings[0].code == code
    assert outcomes[0].error is not None
    assert outcomes[0].error.__cause__ is fault


@pytest.mark.parametrize("fault", [errors.OutputError("disk full"), errors.BundleError("digest")])
def test_what_concerns_all_studies_ends_the_run(studies: list[Path], tmp_path: Path, fault: Exception) -> None:
    judge = Judge(b=fault)
    with pytest.raises(type(fault)):
        run(studies, tmp_path / "out", judge)
    assert judge.seen == ["a", "b"]


def test_an_interrupted_run_goes_on_where_it_stopped(studies: list[Path], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(studies, tmp_path / "out", Judge(b=KeyboardInterrupt()))
    assert not (tmp_path / "out" / "b" / "findings.json").exists()
    again = Judge()
    outcomes = run(studies, tmp_path / "out", again)
    assert again.seen == ["b", "c"]
    assert [outcome.resumed for outcome in outcomes] == [True, False, False]


# Dies as a decoder's crash would: nothing of the process is left to say so, but the note that it wrote.
CRASH = """
import os, sys
from pathlib import Path
from test_batch import Judge, run

class Crashing(Judge):
    def __call__(self, job):
        print(job.name, flush=True)
        return super().__call__(job) if job.name != "a" else os._exit(139)

run([Path(name) for name in sys.argv[2:]], Path(sys.argv[1]), Crashing())
"""


def test_a_study_with_which_runs_died_comes_last_and_is_left_out_after_two(studies: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", CRASH, str(out), *map(str, studies)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    ends = [subprocess.run(command, env=environment, capture_output=True, text=True, check=False) for _ in range(2)]
    assert [(end.returncode, end.stdout.split()) for end in ends] == [(139, ["a"]), (139, ["b", "c", "a"])]
    outcomes = run(studies, out, Judge())
    assert [(outcome.job.name, outcome.status) for outcome in outcomes[:2]] == [("b", "partial"), ("c", "partial")]
    assert outcomes[2].status == "failed" and "died 2 times" in str(outcomes[2].error)
    assert [outcome.status for outcome in run(studies, out, Judge(), resume=False)] == ["partial"] * 3
    assert not (out / "a" / ATTEMPT_FILE).exists()


def test_refused_studies_are_tried_again(studies: list[Path], tmp_path: Path) -> None:
    run(studies, tmp_path / "out", Judge(b=errors.GeometryError("tilt")))
    again = Judge()
    run(studies, tmp_path / "out", again)
    assert again.seen == ["b"]


def test_a_scan_without_a_neck_is_refused_with_the_reason_and_not_judged_twice(
    studies: list[Path], tmp_path: Path
) -> None:
    judge = Judge()
    coarse = WarningItem(code="too-coarse-for-fractures", message="coarse")
    judge.answer = judged("refused", coarse, WarningItem(code="no-cervical-spine", message="no neck"))
    for resumed in (False, True):
        outcome = run(studies[:1], tmp_path, judge)[0]
        assert (outcome.status, outcome.resumed) == ("refused", resumed)
        assert outcome.error is not None
        assert (outcome.error.message, outcome.error.exit_code) == ("no neck", 3)
    assert judge.seen == ["a"]


def test_changed_input_is_judged_again(studies: list[Path], tmp_path: Path) -> None:
    run(studies, tmp_path / "out", Judge())
    (studies[1] / "2.dcm").write_bytes(b"one slice more")
    again = Judge()
    run(studies, tmp_path / "out", again)
    assert again.seen == ["b"]


def test_changed_settings_or_no_resume_judge_again(studies: list[Path], tmp_path: Path) -> None:
    run(studies, tmp_path / "out", Judge(), bundle="1")
    for judge, resume, bundle in ((Judge(), True, "2"), (Judge(), False, "2")):
        run(studies, tmp_path / "out", judge, resume=resume, bundle=bundle)
        assert judge.seen == ["a", "b", "c"]


def test_a_result_that_was_tampered_with_is_made_again(studies: list[Path], tmp_path: Path) -> None:
    run(studies, tmp_path / "out", Judge())
    findings = tmp_path / "out" / "a" / "findings.json"
    findings.write_text(findings.read_text().replace("partial", "ok"))
    (tmp_path / "out" / "c" / "run.json").write_text("{")
    again = Judge()
    run(studies, tmp_path / "out", again)
    assert again.seen == ["a", "c"]


def test_no_earlier_result_survives_a_refusal(studies: list[Path], tmp_path: Path) -> None:
    run(studies[:1], tmp_path, Judge())
    assert (tmp_path / "report.html").exists()
    run(studies[:1], tmp_path, Judge(a=errors.NotCtError("MR now")), resume=False)
    assert Findings.load(tmp_path / "findings.json").status == "refused"
    assert "MR now" in (tmp_path / "report.html").read_text()
    assert not (tmp_path / "run.json").exists()


def test_output_inside_the_input_does_not_change_its_digest(studies: list[Path]) -> None:
    out = studies[0] / "out"
    before = input_digest(studies[0], outputs=(out,))
    out.mkdir()
    (out / "findings.json").write_text("{}")
    assert input_digest(studies[0], outputs=(out,)) == before
    assert input_digest(studies[0]) != before


def test_results_beside_the_images_are_no_input_but_images_there_are(studies: list[Path]) -> None:
    judge = Judge()
    for resumed in (False, True):
        assert run(studies[:1], studies[0], judge)[0].resumed == resumed
    (studies[0] / "2.dcm").write_bytes(b"one slice more")
    assert not run(studies[:1], studies[0], judge)[0].resumed


def test_digest_sees_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"2")
    before = input_digest(tmp_path)
    (tmp_path / "a").write_bytes(b"2")
    (tmp_path / "b").write_bytes(b"1")
    assert input_digest(tmp_path) != before
