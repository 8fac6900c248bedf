"""One study in a process of its own: limits, crashes, what is told of them, and results that appear whole."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cspine import errors
from cspine.node import child
from cspine.node.child import JobOutcome, Order
from cspine.node.supervise import finished, judge, scrub
from dicom_factory import Grid, write_series
from fake_predictor import FakePredictor
from node_work_factory import saved_outcome

GIB = 2**30


def order(folder: Path, *, study: Path | None = None, memory_bytes: int = 4 * GIB) -> Order:
    return Order(
        key="study-1",
        study=study or folder / "study",
        out=folder / "work" / "result",
        formats=("json",),
        memory_bytes=memory_bytes,
    )


def command(folder: Path, judging: str) -> tuple[str, ...]:
    """The real child, whose judge is replaced by a few lines that get ``order`` and ``folder``."""
    script = folder / "child.py"
    body = textwrap.indent(textwrap.dedent(judging), "    ")
    script.write_text(
        "import sys\nfrom cspine import errors\nfrom cspine.node.child import JobOutcome, main\n"
        f"def judge(order, folder):\n{body}\n    return JobOutcome(ending='judged')\n"
        "sys.exit(main(sys.argv[1:], judge))\n",
        encoding="utf-8",
    )
    return (sys.executable, "-X", "faulthandler", str(script))


def test_results_appear_in_one_piece(tmp_path: Path) -> None:
    made = judge(order(tmp_path), 30, command(tmp_path, "(folder / 'report.json').write_text('{}')"))
    assert made == JobOutcome(ending="judged") == finished(order(tmp_path).out)
    assert sorted(path.name for path in order(tmp_path).out.iterdir()) == ["outcome.json", "report.json"]
    assert saved_outcome(order(tmp_path).out)["ending"] == "judged"


def test_what_was_finished_before_the_node_died_is_not_done_again(tmp_path: Path) -> None:
    out = order(tmp_path).out
    out.mkdir(parents=True)
    (out / "outcome.json").write_text(JobOutcome(ending="skipped", reason="earlier").model_dump_json())
    assert judge(order(tmp_path), 30, ("/no/such/program",)).reason == "earlier"


def test_what_was_left_half_done_is_thrown_away(tmp_path: Path) -> None:
    part = order(tmp_path).out.with_name("result.part")
    part.mkdir(parents=True)
    (part / "half").write_text("")
    judge(order(tmp_path), 30, command(tmp_path, "pass"))
    assert not part.exists() and not (order(tmp_path).out / "half").exists()


def test_time_up_kills_the_child_and_all_it_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    judging = f"""
        import os, subprocess, time
        other = subprocess.Popen(["sleep", "600"])
        open({str(pids)!r}, "w").write(f"{{os.getpid()}} {{other.pid}}")
        time.sleep(600)
        """
    outcome = judge(order(tmp_path), 3.0, command(tmp_path, judging))
    assert (outcome.ending, outcome.reason) == ("failed", "timeout")
    assert pids.exists(), "the child did not get as far as to start another process"
    for pid in pids.read_text().split():
        end = time.monotonic() + 5
        while alive(int(pid)):
            assert time.monotonic() < end
            time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except FileNotFoundError:
        return False


def test_memory_beyond_the_limit_is_refused_to_the_child_alone(tmp_path: Path) -> None:
    small = order(tmp_path, memory_bytes=GIB)
    outcome = judge(small, 30, command(tmp_path, "bytearray(8 * 2**30)"))
    assert (outcome.ending, outcome.reason) == ("failed", "memory")


@pytest.mark.parametrize(
    ("dying", "reason"),
    [
        ("import os; os.abort()", "crashed"),
        ("import os; os.kill(os.getpid(), 9)", "killed"),
        ("import os; os._exit(7)", "crashed"),
        ("raise RuntimeError('of Secret^Name')", "crashed"),
        ("import sys; sys.stderr.write('std::bad_alloc\\n'); sys.stderr.flush(); import os; os.abort()", "memory"),
    ],
)
def test_a_crash_has_a_reason_and_tells_no_names(tmp_path: Path, dying: str, reason: str) -> None:
    outcome = judge(order(tmp_path), 30, command(tmp_path, dying))
    assert (outcome.ending, outcome.reason) == ("failed", reason)
    assert "Secret" not in outcome.message
    assert not list(order(tmp_path).out.parent.glob("stderr*"))


@pytest.mark.parametrize(
    ("error", "ending"),
    [
        (errors.NotCtError, "skipped"),
        (errors.NoImagesError, "skipped"),
        (errors.DamagedFileError, "refused"),
        (errors.GeometryError, "refused"),
        (errors.TooLargeError, "refused"),
        (errors.BundleError, "hindered"),
        (errors.OutputError, "hindered"),
        (errors.CspineError, "failed"),
    ],
)
def test_an_error_says_what_happens_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[errors.CspineError], ending: str
) -> None:
    def fail(order: Order, folder: Path) -> JobOutcome:
        raise error("expected X, got Y", where="Secret^Name.dcm")

    monkeypatch.setattr(child, "confine", lambda *_: None)
    asked = order(tmp_path)
    asked.out.parent.mkdir()
    request = tmp_path / "order.json"
    request.write_text(asked.model_dump_json())
    assert child.main([str(request)], fail) == 0
    outcome = finished(asked.out)
    assert outcome is not None and (outcome.ending, outcome.reason) == (ending, error.code)
    assert "Secret" not in outcome.model_dump_json()


def test_the_child_sees_no_passwords_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBOS_SYSTEM_DATABASE_URL", "postgresql://user:password@host/name")
    seen = tmp_path / "seen"
    judge(order(tmp_path), 30, command(tmp_path, f"import os; open({str(seen)!r}, 'w').write(repr(os.environ))"))
    assert "PATH" in seen.read_text() and "password" not in seen.read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills children of a dead parent")
def test_a_child_dies_with_its_node(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    run = command(tmp_path, f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(600)")
    asked = order(tmp_path).model_dump_json()
    parent = f"""
import sys
from cspine.node.child import Order
from cspine.node.supervise import judge
judge(Order.model_validate_json({asked!r}), 600, {run!r})
"""
    node = subprocess.Popen([sys.executable, "-c", parent])
    try:
        end = time.monotonic() + 30
        while not (pid.exists() and pid.read_text()):
            assert time.monotonic() < end
            time.sleep(0.02)
    finally:
        node.kill()
        node.wait()
    while alive(int(pid.read_text())):
        assert time.monotonic() < end
        time.sleep(0.02)


@given(st.text())
def test_nothing_but_code_places_and_kinds_of_errors_is_told_of_stderr(text: str) -> None:
    name = "Doe^Jane 19700101"
    trace = f'Traceback\n  File "/x/pydicom/filereader.py", line 12, in read\n    {name}\nValueError: {name} {text}\n'
    assert scrub(trace).startswith("pydicom/filereader.py:12 read; ValueError")
    assert "Doe" not in scrub(trace)


def test_a_study_is_opened_judged_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cspine.inference.predictor.Predictor", FakePredictor)
    monkeypatch.setattr("cspine.inference.bundle.Bundle.default", lambda: None)
    write_series(tmp_path / "study", Grid(count=12))
    out = tmp_path / "out"
    out.mkdir()
    outcome = child.judge_study(order(tmp_path), out)
    assert outcome.ending == "judged" and outcome.positive is False and outcome.probability == 0.2
    assert outcome.files == {"json": ("findings.json",)} and (out / "findings.json").is_file()
    assert outcome.facts is not None
    assert (outcome.facts.thickness_mm, outcome.facts.kernel, outcome.facts.maker) == (2.5, "Br64", "Maker")
    assert sum(outcome.facts.hu) == pytest.approx(1, abs=1e-4)
    assert "Secret" not in outcome.model_dump_json() and "SECRET" not in outcome.model_dump_json()


def test_a_ct_without_a_neck_is_not_for_us(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cspine.inference.predictor.Predictor", FakePredictor)
    monkeypatch.setattr("cspine.inference.bundle.Bundle.default", lambda: None)
    write_series(tmp_path / "study", Grid(count=12), edit=lambda _, ds: setattr(ds, "ConvolutionKernel", "CHEST"))
    outcome = child.judge_study(order(tmp_path), tmp_path)
    assert (outcome.ending, outcome.reason, outcome.files) == ("skipped", "no-cervical-spine", {})


def test_no_core_file_with_images_is_left(tmp_path: Path) -> None:
    seen = tmp_path / "limits"
    run = command(tmp_path, f"import resource as r; open({str(seen)!r}, 'w').write(str(r.getrlimit(r.RLIMIT_CORE)))")
    judge(order(tmp_path), 30, run)
    assert seen.read_text() == "(0, 0)"
    assert [path.name for path in order(tmp_path).out.iterdir()] == ["outcome.json"]
