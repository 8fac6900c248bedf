"""From a folder of labelled studies to samples: once, study by study, in any number of processes.

``OUT/studies/<name>.json`` is written last: a study that has one is finished, so an interrupted run goes on where it
stopped. A study that cannot be used is noted there too, with the reason, and tried again by the next run. When later
more kinds of samples are wanted, only these are made.
"""

from __future__ import annotations

import csv
import io
import json
import time
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from cspine.anatomy import LEVELS
from cspine.errors import BundleError, CspineError, OutputError, StudyError, TooLargeError, UsageError
from cspine.inference.bundle import Bundle, bundle_digest
from cspine.inference.predictor import Predictor
from cspine.reports.atomic import write_file
from cspine.studies.labelled import LabelledStudies, open_labelled
from cspine.training.case_samples import KINDS, Masks, Predict, SampleKind, write_samples
from cspine.training.splits import Splits, settled_splits

RECORDS, SETTINGS_FILE, TABLE_FILE, REPORT_FILE = "studies", "prepare.json", "prepared.csv", "prepared.json"
# What no study can do without; anything else that goes wrong is one study's own.
FATAL = (BundleError, OutputError)
# What notes and records meant before they named kinds of samples.
_FIRST_KINDS: tuple[SampleKind, ...] = ("locator", "refiner", "classifier")


class Prepared(BaseModel):
    """What became of one study.

    Attributes:
        study: its name; the UID for RSNA 2022.
        status: ``ok``, ``partial`` (some of its vertebrae are not used), ``unused`` (it teaches nothing of what is
            wanted) or ``refused``.
        masks: whether its vertebrae were outlined by people, found by a locator, or neither.
        samples: kinds of samples that it gave.
        asked: kinds of samples that were wanted of it.
        levels: vertebrae that are used.
        placed: those of them that are fractured at a known place.
        lost: fractured vertebrae that are not used, since they were not found whole.
        code, reason, where, fix: why it was refused, as in the errors of cspine.
        raw_bytes, kept_bytes: size of its images and of its samples.
        seconds: wall time.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    study: str
    status: Literal["ok", "partial", "unused", "refused"]
    masks: Masks = "none"
    samples: tuple[SampleKind, ...] = ()
    asked: tuple[SampleKind, ...] = _FIRST_KINDS
    levels: tuple[str, ...] = ()
    placed: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    code: str = ""
    reason: str = ""
    where: str = ""
    fix: str = ""
    raw_bytes: int = 0
    kept_bytes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Preparation:
    """A folder of studies and where its samples go.

    Attributes:
        data: the studies.
        out: folder of the samples.
        bundle: folder of the bundle that finds vertebrae where nobody outlined them.
        wanted: kinds of samples to make.
    """

    data: LabelledStudies
    out: Path
    bundle: Path
    wanted: tuple[SampleKind, ...] = KINDS

    def begin(self, *, folds: int | None = None, ratio: float | None = None, seed: int = 0) -> Splits:
        """Note the settings, and draw the splits or find them drawn; see ``settled_splits``.

        Raises:
            UsageError: the folder holds samples of another bundle or kind of data, or the studies are split otherwise.
            BundleError: the bundle cannot be read.
            OutputError: the folder cannot be written.
        """
        settings: dict[str, Any] = {"format": 1, "data": self.data.kind, "bundle": bundle_digest(self.bundle)}
        note = self.out / SETTINGS_FILE
        known = _noted(note)
        for key, what in (
            ("format", "by another cspine"),
            ("data", "from other data"),
            ("bundle", "with another bundle"),
        ):
            if known and known.get(key) != settings[key]:
                raise UsageError(
                    f"the folder holds samples that were prepared {what}",
                    where=str(note),
                    fix="Take another folder, or the same data and bundle",
                )
        kinds = {*self.wanted, *(known.get("stages", _FIRST_KINDS) if known else ())}
        splits = settled_splits(
            self.out,
            self.data.labels(),
            folds=folds,
            ratio=ratio,
            seed=seed,
            patients=self.data.patients,
            held_back=self.data.held_back,
        )
        settings["stages"] = [kind for kind in KINDS if kind in kinds]
        write_file(note, (json.dumps(settings, indent=1) + "\n").encode())
        return splits

    def missing(self) -> list[str]:
        """The studies that are not finished."""
        return [name for name in self.data.studies if self._todo(name)]

    def make(self, name: str, *, threads: int | None = None) -> Prepared:
        """Prepare one study and note what became of it; a bad one is noted, never raised.

        Args:
            name: one of the studies.
            threads: of this process.

        Raises:
            BundleError: the bundle cannot be used.
            OutputError: nothing can be written.
        """
        start = time.perf_counter()
        todo, known = self._todo(name) or self.wanted, self._record(name)
        try:
            done = prepare_case(
                self.data,
                name,
                self.out,
                lambda volume: _predictor(self.bundle, threads).predict_full(volume),
                wanted=todo,
                threads=threads,
            )
        except Exception as caught:
            # A fault met in one study must not cost the others; what concerns all of them is raised again.
            if isinstance(caught, FATAL):
                raise
            done = _refused(name, _study_fault(caught, name))
        done = _joined(known, done).model_copy(update={"seconds": round(time.perf_counter() - start, 2)})
        write_file(self.out / RECORDS / f"{name}.json", (done.model_dump_json(indent=1) + "\n").encode())
        return done

    def outcomes(self) -> list[Prepared]:
        """What is known of every study, those that cannot even be tried among them."""
        noted = [self._record(name) for name in self.data.studies]
        faults = [_refused(name, error) for name, error in self.data.faults.items()]
        return sorted([*(item for item in noted if item is not None), *faults], key=lambda item: item.study)

    def finish(self) -> list[Prepared]:
        """Write ``prepared.csv`` and ``prepared.json`` from what is known by now, and return it.

        Raises:
            OutputError: they cannot be written.
        """
        done = self.outcomes()
        write_file(self.out / TABLE_FILE, _table(done).encode())
        content = {
            "format": 1,
            "counts": Counter(item.status for item in done),
            "reasons": Counter(item.reason for item in done if item.reason).most_common(),
            "warnings": [warning.message for warning in self.data.warnings],
            "studies": [item.model_dump(mode="json") for item in done],
        }
        write_file(self.out / REPORT_FILE, (json.dumps(content, indent=1) + "\n").encode())
        return done

    def _record(self, name: str) -> Prepared | None:
        try:
            return Prepared.model_validate_json((self.out / RECORDS / f"{name}.json").read_bytes())
        except (OSError, ValidationError):
            return None

    def _todo(self, name: str) -> tuple[SampleKind, ...]:
        """Kinds of samples that are still wanted of a study."""
        known = self._record(name)
        if known is None or known.status == "refused":
            return self.wanted
        gone = {kind for kind in known.samples if not (self.out / kind / name / "meta.json").is_file()}
        return tuple(kind for kind in self.wanted if kind in gone or kind not in known.asked)


def make_study(data: Path, out: Path, bundle: Path, name: str, *, wanted: tuple[SampleKind, ...], threads: int) -> None:
    """``Preparation.make`` for another process: tables and networks are read once in each.

    Raises:
        BundleError: the bundle cannot be used.
        OutputError: nothing can be written.
    """
    Preparation(_folder(data), out, bundle, wanted).make(name, threads=threads)


@lru_cache(maxsize=1)
def _folder(path: Path) -> LabelledStudies:
    return open_labelled(path)


@lru_cache(maxsize=1)
def _predictor(bundle: Path, threads: int | None) -> Predictor:
    return Predictor(Bundle.load(bundle), threads=threads)


def _noted(note: Path) -> dict[str, Any]:
    """The settings of an earlier run; empty when there was none, and unlike any when they cannot be read."""
    if not note.is_file():
        return {}
    try:
        known = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = None
    return known if isinstance(known, dict) and known else {"format": None}


def prepare_case(
    data: LabelledStudies,
    name: str,
    out: Path,
    predict: Predict,
    *,
    wanted: Collection[SampleKind] = KINDS,
    threads: int | None = None,
) -> Prepared:
    """Write the samples of one study; see ``write_samples``.

    Raises:
        StudyError: it cannot be used.
        OutputError: a sample cannot be written.
    """
    written = write_samples(data, name, out, predict, wanted=wanted, threads=threads)
    whole = len(written.levels) == len(LEVELS) or data.kind == "pictures"
    status: Literal["ok", "partial", "unused"] = "unused" if not written.kinds else "ok" if whole else "partial"
    return Prepared(
        study=name,
        status=status,
        masks=written.masks,
        samples=written.kinds,
        asked=tuple(kind for kind in KINDS if kind in wanted),
        levels=tuple(level.name for level in written.levels),
        placed=tuple(level.name for level in written.placed),
        lost=tuple(level.name for level in written.lost),
        raw_bytes=sum(path.stat().st_size for path in data.files(name)),
        kept_bytes=_kept_bytes(out, name, written.kinds),
    )


def _kept_bytes(out: Path, name: str, kinds: Iterable[SampleKind]) -> int:
    folders = (out / kind / name for kind in kinds)
    return sum(path.stat().st_size for folder in folders for path in folder.iterdir() if path.is_file())


def _joined(known: Prepared | None, done: Prepared) -> Prepared:
    """What is known of a study after another run made further kinds of samples of it."""
    if known is None or known.status == "refused" or done.status == "refused":
        return done
    # What the classifier may use is less than what a mask shows, and says more.
    first, second = (known, done) if "classifier" in known.samples else (done, known)
    both = {*known.samples, *done.samples}
    best = first if first.samples else second
    return best.model_copy(
        update={
            "masks": done.masks if done.masks != "none" else known.masks,
            "samples": tuple(kind for kind in KINDS if kind in both),
            "asked": tuple(kind for kind in KINDS if kind in {*known.asked, *done.asked}),
            "kept_bytes": known.kept_bytes + done.kept_bytes,
        }
    )


def _refused(name: str, error: CspineError) -> Prepared:
    return Prepared(
        study=name,
        status="refused",
        code=error.code,
        reason=error.message,
        where=error.where or "",
        fix=error.fix or "",
    )


def _study_fault(caught: Exception, name: str) -> CspineError:
    """The error of one study."""
    if isinstance(caught, CspineError):
        return caught
    if isinstance(caught, MemoryError):
        return TooLargeError("the study needs more memory than there is", where=name, fix="Use fewer --workers")
    if isinstance(caught, OSError):
        return StudyError(f"the study cannot be read: {caught.strerror or caught}", where=name)
    return CspineError(f"unexpected {type(caught).__name__}: {str(caught)[:200]}", where=name, fix="Please report it")


def _table(done: Iterable[Prepared]) -> str:
    """The outcomes as CSV, one row a study."""
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(Prepared.model_fields)
    for item in done:
        row = item.model_dump(mode="json").values()
        table.writerow([" ".join(value) if isinstance(value, list) else value for value in row])
    return text.getvalue()
