"""The queue: fair among people, cancelled at once, nothing lost and nothing done twice whoever is killed when."""

from __future__ import annotations

import os
import signal
from itertools import pairwise
from pathlib import Path

import pytest
from flask import Flask
from hypothesis import given
from hypothesis import strategies as st

from cspine.errors import UsageError
from cspine.web import job_work
from cspine.web.app import Context
from cspine.web.jobs import Jobs
from cspine.web.models import Job, JobState, Study, Upload, UploadFile, new_id, now
from cspine.web.orders import JudgeOrder
from cspine.web.progress import Progress, read, seconds_left, step_at
from cspine.web.supervising import CHILD, supervise
from dicom_factory import Grid, write_series
from web_children import TESTS, in_process, quick_judge, scripted
from web_factory import person, web_app
from web_worker import eventually, worker


@pytest.fixture
def app(tmp_path: Path) -> Flask:
    return web_app(tmp_path, blueprints=(), inline=False)


def context(app: Flask) -> Context:
    found = app.extensions["cspine"]
    assert isinstance(found, Context)
    return found


def jobs_of(app: Flask) -> Jobs:
    return context(app).jobs


def study(app: Flask, owner: str) -> str:
    """A study that is ready, with a file in its folder."""
    here = context(app)
    with here.sessions.begin() as session:
        made = Study(id=new_id(), owner_id=owner, title="CT", facts={"bytes": 1})
        session.add(made)
    folder = here.store.files(made.id)
    folder.mkdir(parents=True)
    (folder / "000001.dcm").write_bytes(b"x")
    return made.id


def job(app: Flask, job_id: str) -> Job:
    with context(app).sessions() as session:
        return session.get_one(Job, job_id)


def ended(app: Flask, job_id: str) -> bool:
    return job(app, job_id).state not in (JobState.QUEUED, JobState.RUNNING)


def state_of(app: Flask, study_id: str) -> str:
    with context(app).sessions() as session:
        return str(session.get_one(Study, study_id).state)


# Order ---------------------------------------------------------------------------------------------------------------


def test_the_first_study_of_a_person_does_not_wait_for_all_of_anothers(app: Flask) -> None:
    ada, eve = person(app, "ada@example.org"), person(app, "eve@example.org")
    many = [jobs_of(app).submit(study(app, ada), ada) for _ in range(5)]
    assert jobs_of(app).records.begin(many[0].id, 0) is not None
    first, second = (jobs_of(app).submit(study(app, eve), eve) for _ in range(2))
    waiting = [one.id for one in jobs_of(app).records.active() if one.state == JobState.QUEUED]
    assert waiting == [first.id, many[1].id, second.id, *(one.id for one in many[2:])]


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=40), st.integers(0, 3))
def test_nobody_is_passed_over_by_another_again_and_again(asked: list[str], eager: int) -> None:
    """Between two jobs of one person that wait, no other person gets more than two."""
    places: dict[str, list[float]] = {}
    begun = 1.0
    for number, name in enumerate(asked):
        mine = places.setdefault(name, [])
        mine.append(max(begun, mine[-1] + 1 if mine else 1.0))  # what ``_place`` says
        if eager and number % eager == 0:
            begun = max(begun, min(place for own in places.values() for place in own))
    for own in places.values():
        assert own == sorted(set(own))
        for other in places.values():
            for low, high in pairwise(own):
                assert sum(low < place < high for place in other) <= high - low + 1


def test_a_study_that_waits_is_not_queued_again_and_there_is_a_limit(tmp_path: Path) -> None:
    app = web_app(tmp_path, blueprints=(), inline=False, limits={"waiting": 2})
    ada = person(app, "ada@example.org")
    one = study(app, ada)
    first = jobs_of(app).submit(one, ada)
    assert jobs_of(app).submit(one, ada).id == first.id
    jobs_of(app).submit(study(app, ada), ada)
    with pytest.raises(UsageError, match="2 studies waiting"):
        jobs_of(app).submit(study(app, ada), ada)


# How it ends ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "state", "tries", "words"),
    [
        ("raise errors.GeometryError('two images lie at one place')", "refused", 0, "Two images lie at one place."),
        ("raise errors.BundleError('no such bundle')", "failed", 0, "model of this server cannot be used"),
        ("raise errors.CspineError('odd')", "failed", 2, "Odd."),
        ("return JobOutcome(ending='skipped', message='no neck')", "refused", 0, "No neck."),
    ],
)
def test_each_end_has_its_state_and_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, state: str, tries: int, words: str
) -> None:
    from cspine import errors
    from cspine.node.child import JobOutcome, _ended

    def judge(*_: object, **__: object) -> JobOutcome:
        space: dict[str, object] = {"errors": errors, "JobOutcome": JobOutcome}
        try:
            exec(f"def f():\n    {body}\nresult = f()", space)
        except errors.CspineError as error:
            return _ended(error)
        result = space["result"]
        assert isinstance(result, JobOutcome)
        return result

    monkeypatch.setattr(job_work, "supervise", judge)
    app = web_app(tmp_path, blueprints=(), inline=True)
    ada = person(app, "ada@example.org")
    one = study(app, ada)
    done = job(app, jobs_of(app).submit(one, ada).id)
    assert (done.state, done.tries, state_of(app, one)) == (state, tries, state)
    assert words in done.message


def test_a_full_disk_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = web_app(tmp_path, blueprints=(), inline=True)
    ada = person(app, "ada@example.org")
    one = study(app, ada)
    seen: list[str] = []

    def full(*_: object, **__: object) -> object:
        raise OSError(28, "No space left on device")

    def pause(_: float) -> None:
        (waiting,) = jobs_of(app).records.active()
        seen.append(waiting.message)
        monkeypatch.setattr(job_work, "supervise", in_process)

    monkeypatch.setattr(job_work, "supervise", full)
    jobs_of(app).work.pause = pause
    done = job(app, jobs_of(app).submit(one, ada).id)
    assert (done.state, done.tries) == (JobState.DONE, 0)
    assert seen == ["Waits for room on the disk of the server."]


def test_a_second_judgement_that_is_cancelled_leaves_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_work, "supervise", in_process)
    app = web_app(tmp_path, blueprints=(), inline=True)
    ada = person(app, "ada@example.org")
    one = study(app, ada)
    jobs_of(app).submit(one, ada)
    monkeypatch.setattr(jobs_of(app), "_inline", False)
    again = jobs_of(app).submit(one, ada)
    assert jobs_of(app).cancel(again.id) and not jobs_of(app).cancel(again.id)
    assert state_of(app, one) == "done"
    with context(app).sessions() as session:
        assert context(app).store.results(session.get_one(Study, one)) is not None


# The child -----------------------------------------------------------------------------------------------------------


def judge_order(folder: Path, **more: object) -> JudgeOrder:
    return JudgeOrder.model_validate(
        {"key": "k", "study": folder, "out": folder / "out", "formats": (), "memory_bytes": 2**32, **more}
    )


def test_a_cancelled_child_is_dead_when_the_call_returns(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    command = scripted(tmp_path, f"import os\nopen({str(pid)!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)")
    outcome = supervise(judge_order(tmp_path), 60, command, go_on=lambda: not (pid.exists() and pid.read_text()))
    assert outcome.reason == "cancelled"
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    assert not list(tmp_path.glob("out.*json")) and not list(tmp_path.glob("out.stderr"))


def test_progress_is_read_as_it_is_written(tmp_path: Path) -> None:
    clock = iter(range(100))
    progress = Progress(tmp_path / "p.json", clock=lambda: float(next(clock)))
    said = progress.within(0.05, 0.9)
    assert read(tmp_path / "p.json") is None
    for share, step in ((0.0, "open"), (0.3, "locate"), (0.7, "classify"), (1.0, "write")):
        said(share, "")
        mark = read(tmp_path / "p.json")
        assert mark is not None and mark.step == step == step_at(mark.share)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"share": "x"}', '{"share": 0.5, "step": "<b>"}', '{"share": NaN, "step": "open"}']
)
def test_nonsense_in_the_file_of_progress_is_no_progress(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.json").write_text(text)
    assert read(tmp_path / "p.json") is None


@given(st.floats(0, 1), st.floats(0, 1e5), st.none() | st.floats(0, 1e5))
def test_the_time_that_is_left_makes_sense(share: float, elapsed: float, usual: float | None) -> None:
    left = seconds_left(share, elapsed, usual)
    assert left is None or left >= 0
    assert left is not None or (usual is None and share < 0.05)
    if share == 1:
        assert left == 0


# A process that is killed --------------------------------------------------------------------------------------------


def begun(folder: Path) -> list[int]:
    file = folder / "begun"
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except FileNotFoundError:
        return False


def test_the_server_is_killed_while_a_study_is_judged(tmp_path: Path) -> None:
    app, command = web_app(tmp_path, blueprints=(), inline=False), quick_judge(tmp_path)
    ada = person(app, "ada@example.org")
    studies = [study(app, ada) for _ in range(2)]
    made = [jobs_of(app).submit(one, ada) for one in studies]
    with worker(tmp_path, judge=command) as server:
        eventually(lambda: len(begun(tmp_path)) == 1)
        eventually(lambda: job(app, made[0].id).state == JobState.RUNNING)
        server.kill()
        eventually(lambda: not alive(begun(tmp_path)[0]))
    assert not any(ended(app, one.id) for one in made)
    (tmp_path / "go").touch()
    with worker(tmp_path, judge=command):
        eventually(lambda: all(ended(app, one.id) for one in made))
    assert [job(app, one.id).state for one in made] == ["done", "done"]
    assert [state_of(app, one) for one in studies] == ["done", "done"]
    assert (tmp_path / "judged").read_text().split() == ["once", "once"]


def test_the_child_is_killed_and_the_study_is_judged_again(tmp_path: Path) -> None:
    app, command = web_app(tmp_path, blueprints=(), inline=False), quick_judge(tmp_path)
    ada = person(app, "ada@example.org")
    made = jobs_of(app).submit(study(app, ada), ada)
    with worker(tmp_path, judge=command) as server:
        eventually(lambda: len(begun(tmp_path)) == 1)
        os.kill(begun(tmp_path)[0], signal.SIGKILL)
        (tmp_path / "go").touch()
        eventually(lambda: ended(app, made.id))
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0
    done = job(app, made.id)
    assert (done.state, done.tries) == (JobState.DONE, 1)
    assert (tmp_path / "judged").read_text().split() == ["once"]


def test_cancelling_kills_the_child_and_the_next_study_begins(tmp_path: Path) -> None:
    app, command = web_app(tmp_path, blueprints=(), inline=False), quick_judge(tmp_path)
    ada = person(app, "ada@example.org")
    first, second = (jobs_of(app).submit(study(app, ada), ada) for _ in range(2))
    with worker(tmp_path, judge=command):
        eventually(lambda: len(begun(tmp_path)) == 1)
        assert jobs_of(app).cancel(first.id)
        eventually(lambda: not alive(begun(tmp_path)[0]))
        (tmp_path / "go").touch()
        eventually(lambda: ended(app, second.id))
    assert (job(app, first.id).state, job(app, second.id).state) == ("cancelled", "done")
    assert not (context(app).store.study_folder(first.study_id) / "results" / f"{first.id}-0").exists()


def test_the_server_is_killed_while_an_upload_is_looked_at_in_postgresql(tmp_path: Path, postgres: str) -> None:
    """The same queue in the other kind of database."""
    app, judge = web_app(tmp_path, blueprints=(), inline=False, database=postgres), quick_judge(tmp_path)
    ada = person(app, "ada@example.org")
    upload = arrived(app, ada, tmp_path / "ct")
    slow = tmp_path / "slow.py"
    slow.write_text(
        f"import runpy, sys, time\nfrom pathlib import Path\nsys.path.insert(0, {str(TESTS)!r})\n"
        f"home = Path({str(tmp_path)!r})\n(home / 'looked').open('a').write('x')\n"
        "while not (home / 'go').exists(): time.sleep(0.02)\n"
        "sys.argv = ['child', 'recognise', sys.argv[1]]\nrunpy.run_module('cspine.web.child', run_name='__main__')\n"
    )
    command = (CHILD[0], str(slow))
    with worker(tmp_path, judge=judge, recognise=command, database=postgres) as server:
        eventually((tmp_path / "looked").exists)
        server.kill()
    (tmp_path / "go").touch()
    with worker(tmp_path, judge=judge, recognise=command, database=postgres):
        eventually(lambda: upload_state(app, upload) != "recognising")
        with context(app).sessions() as session:
            (found,) = session.query(Study).all()
        assert found.facts["slices"] == 6
        made = jobs_of(app).submit(found.id, ada)
        eventually(lambda: ended(app, made.id))
    assert upload_state(app, upload) == "recognised" and state_of(app, found.id) == "done"


def arrived(app: Flask, owner: str, folder: Path) -> str:
    """An upload whose files are here, and which is to be looked at."""
    here = context(app)
    upload = Upload(id=new_id(), owner_id=owner, state="recognising", created=now())
    here.store.begin(upload.id)
    for path in write_series(folder, Grid(count=6, rows=16, columns=16)):
        data = path.read_bytes()
        file = UploadFile(id=new_id(), name=path.name, size=len(data), received=len(data))
        upload.files.append(file)
        here.store.write_chunk(upload.id, file.id, 0, data)
    with here.sessions.begin() as session:
        session.add(upload)
    return upload.id


def upload_state(app: Flask, upload: str) -> str:
    with context(app).sessions() as session:
        return str(session.get_one(Upload, upload).state)
