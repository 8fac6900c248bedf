"""How far a child is: a small file that it rewrites, and that its parent reads."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

# The disk is not asked more often than this.
PAUSE_SECONDS = 0.2
# Steps of a judgement by the share of the whole at which each begins; words of the catalogue ``jobs.step``.
STEPS = (
    (0.0, "open"), (0.08, "load"), (0.15, "locate"), (0.5, "outline"), (0.56, "classify"), (0.88, "combine"),
    (0.9, "write"), (0.96, "view"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Mark:
    """How far it is: share of the whole, 0 to 1, and the step it is at."""

    share: float
    step: str


@dataclass(slots=True)
class Progress:
    """Writes how far a judgement is.

    Attributes:
        file: None when nobody wants to know.
    """

    file: Path | None
    clock: Callable[[], float] = time.monotonic
    _last: float = field(default=float("-inf"), init=False)
    _step: str = field(default="", init=False)

    def at(self, share: float) -> None:
        """Say that this share of the whole is done, 0 to 1; what is the same for the eye is not written."""
        if self.file is None:
            return
        step, now = step_at(share), self.clock()
        if step == self._step and now < self._last + PAUSE_SECONDS:
            return
        self._last, self._step = now, step
        part = self.file.with_name(self.file.name + ".part")
        # A full disk must not end a judgement for the sake of its bar.
        with contextlib.suppress(OSError):
            part.write_text(json.dumps({"share": round(share, 4), "step": step}), encoding="ascii")
            part.replace(self.file)

    def within(self, start: float, end: float) -> Callable[[float, str], None]:
        """Takes shares of a part of the whole, as ``Predictor`` gives them."""
        return lambda share, _: self.at(start + (end - start) * min(max(share, 0.0), 1.0))


def step_at(share: float) -> str:
    """The step that a share of the whole lies in."""
    return [name for start, name in STEPS if share >= start or start == 0.0][-1]


def read(file: Path) -> Mark | None:
    """What a child has written; None when there is nothing yet, or nothing that makes sense."""
    try:
        with file.open("rb") as stream:
            said = json.loads(stream.read(4096))
        share, step = float(said["share"]), str(said["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    known = {name for _, name in STEPS}
    return Mark(min(max(share, 0.0), 1.0), step) if step in known and share == share else None


def seconds_left(share: float, elapsed: float, usual: float | None) -> float | None:
    """Seconds until the end: the usual ones at first, those of this judgement the more, the further it is.

    Args:
        share: that is done, 0 to 1.
        elapsed: seconds that it took.
        usual: seconds of whole judgements of late, or None.

    Returns:
        None when there is nothing to go by.
    """
    if share >= 0.05:
        own = elapsed / share
        whole = own if usual is None else share * own + (1 - share) * usual
        return max(0.0, (1 - share) * whole)
    return None if usual is None else max(0.0, usual - elapsed)


def stamp(file: Path) -> None:
    """Begin: an older file of this name says nothing of the new child."""
    with contextlib.suppress(FileNotFoundError):
        file.unlink()
