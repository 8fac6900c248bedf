"""A server that is killed between a judgement and its record; other moments are in test_web_jobs and _upload_page."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cspine.web.models import Job, Study
from web_children import TESTS
from web_factory import person, web_app
from web_studies import add_study
from web_worker import eventually, worker

KILLER = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from cspine.node.child import JobOutcome, main
from cspine.web.orders import JudgeOrder
home = Path({home!r})

def judge(order, folder):
    (folder / "findings.json").write_text("{{}}")
    with (home / "judged").open("a") as out:
        out.write("once\\n")
    files = {{"json": ("findings.json",)}}
    return JobOutcome(ending="judged", positive=True, probability=0.8, levels=("C2",), files=files)

server = os.getppid()
status = main(sys.argv[1:], judge, JudgeOrder)
if not (home / "killed").exists():
    (home / "killed").touch()
    os.kill(server, signal.SIGKILL)
sys.exit(status)
"""


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_what_was_judged_when_the_server_died_is_not_judged_again(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    """The results are on the disk, and nobody wrote them down: the next life does, and asks no child."""
    database = request.getfixturevalue("postgres") if kind == "postgresql" else None
    app = web_app(tmp_path, blueprints=(), inline=False, database=database)
    ada = person(app, "ada@example.org")
    study = add_study(app, ada)
    here = app.extensions["cspine"]
    (here.store.files(study)).mkdir(parents=True)
    job = here.jobs.submit(study, ada)
    script = tmp_path / "killer.py"
    script.write_text(KILLER.format(tests=str(TESTS), home=str(tmp_path)), encoding="utf-8")
    command = (sys.executable, str(script))
    with worker(tmp_path, judge=command, database=database) as server:
        eventually(lambda: server.process.poll() is not None)
    with worker(tmp_path, judge=command, database=database):
        eventually(lambda: state(app, Job, job.id) == "done")
    assert (tmp_path / "judged").read_text().split() == ["once"]
    assert state(app, Study, study) == "done"
    runs = [path for path in (here.store.study_folder(study) / "results").iterdir() if path.is_dir()]
    assert len(runs) == 1


def state(app: object, kind: type[Job] | type[Study], number: str) -> str:
    with app.extensions["cspine"].sessions() as session:  # type: ignore[attr-defined]
        return str(session.get_one(kind, number).state)
