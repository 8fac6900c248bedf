"""Children of the web application for tests: the real ones, whose networks are replaced by a predictor that looks away.

A stand-in opens the study, writes all reports and the reading room's files as the real child does, in a second or two.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from cspine.errors import CspineError
from cspine.node.child import PART, JobOutcome, Order, _ended, publish
from cspine.web.intake import recognise
from cspine.web.orders import JudgeOrder

TESTS = Path(__file__).resolve().parent


def stand_in(folder: Path, before: str = "") -> tuple[str, ...]:
    """Command of a child that judges with ``fake_predictor``.

    Args:
        folder: where the script is written.
        before: lines that run first, indented by nothing; ``order`` and ``folder`` are known to them.
    """
    lines = "\n".join(f"    {line}" for line in before.splitlines())
    return _script(
        folder,
        "judge",
        f"""
import cspine.inference.bundle, cspine.inference.predictor
from fake_predictor import FakePredictor
cspine.inference.predictor.Predictor = FakePredictor
cspine.inference.bundle.Bundle.default = classmethod(lambda cls: None)

def judge(order, folder):
{lines}
    return child.judge(order, folder)
""",
    )


def scripted(folder: Path, body: str) -> tuple[str, ...]:
    """Command of a child that does what ``body`` says; it ends with ``judged`` unless that returns something else."""
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    return _script(folder, "judge", f"\ndef judge(order, folder):\n{lines}\n    return JobOutcome(ending='judged')\n")


def quick(folder: Path, name: str, body: str) -> tuple[str, ...]:
    """Command of a child that needs nothing but the standard library, for tests of what lies around children.

    Args:
        folder: where the script is written.
        name: of the script.
        body: lines that get ``order``, a dictionary, and ``part``, the folder to fill; they set ``outcome``.
    """
    path = folder / f"{name}.py"
    path.write_text(
        "import ctypes, json, os, sys, time\nfrom pathlib import Path\n"
        "ctypes.CDLL(None).prctl(1, 9)  # dies with its parent, as the real one: see node.child.confine\n"
        "order = json.loads(Path(sys.argv[1]).read_text())\nout = Path(order['out'])\n"
        "part = out.with_name(out.name + '.part')\npart.mkdir(parents=True)\noutcome = {'ending': 'judged'}\n"
        f"{body}\n"
        "(part / 'outcome.json').write_text(json.dumps(outcome))\npart.rename(out)\n",
        encoding="utf-8",
    )
    return (sys.executable, "-S", str(path))


def quick_recognise(folder: Path) -> tuple[str, ...]:
    """Command of a child that finds one CT of six slices in whatever it is given."""
    study = {"kind": "volume", "title": "CT, 6 axial slices", "facts": {"slices": 6, "bytes": 6}}
    return quick(
        folder,
        "recognise",
        f"(part / '0').mkdir()\n(part / '0' / '000001.dcm').write_text('x')\nstudy = {study!r}\n"
        "(part / 'recognised.json').write_text(json.dumps({'studies': [study], 'patients': 1}))",
    )


def quick_judge(folder: Path) -> tuple[str, ...]:
    """Command of a child that notes its beginning in ``begun``, waits for ``go``, notes its end in ``judged``."""
    return quick(
        folder,
        "judge",
        f"home = Path({str(folder)!r})\n"
        "with (home / 'begun').open('a') as out_: out_.write(f'{os.getpid()}\\n')\n"
        "Path(order['progress']).write_text(json.dumps({'share': 0.6, 'step': 'classify'}))\n"
        "while not (home / 'go').exists(): time.sleep(0.02)\n"
        "(part / 'findings.json').write_text('{}')\n"
        "with (home / 'judged').open('a') as out_: out_.write('once\\n')\n"
        "outcome |= {'positive': False, 'probability': 0.04, 'files': {'json': ['findings.json']}}",
    )


def _script(folder: Path, name: str, text: str) -> tuple[str, ...]:
    path = folder / f"{name}.py"
    path.write_text(
        f"import sys, time\nsys.path.insert(0, {str(TESTS)!r})\n"
        "from cspine.node.child import JobOutcome, main\nfrom cspine.web import child\n"
        f"from cspine.web.orders import JudgeOrder\n{text}\nsys.exit(main(sys.argv[1:], judge, JudgeOrder))\n",
        encoding="utf-8",
    )
    return (sys.executable, "-X", "faulthandler", str(path))


def in_process(
    order: Order, seconds: float, command: object, *, go_on: Callable[[], bool] = lambda: True
) -> JobOutcome:
    """Stands for ``supervising.supervise`` where a process of its own would only cost time; limits do not hold here."""
    judged = isinstance(order, JudgeOrder)
    part = order.out.with_name(order.out.name + PART)
    part.mkdir(parents=True)
    try:
        outcome = _looked_away(order, part) if judged else recognise(order, part)  # type: ignore[arg-type]
    except CspineError as error:
        outcome = _ended(error)
    publish(outcome, part, order.out)
    return outcome


def _looked_away(order: Order, folder: Path) -> JobOutcome:
    """A result with next to nothing in it."""
    (folder / "findings.json").write_text("{}", encoding="utf-8")
    return JobOutcome(
        ending="judged", positive=True, probability=0.83, levels=("C2",), files={"json": ("findings.json",)}
    )
