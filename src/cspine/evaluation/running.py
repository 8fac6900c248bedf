"""Judge the cases of a set one by one; one JSON a case, so that an interrupted run goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError

from cspine.cases import Case
from cspine.errors import BundleError, CspineError, OutputError
from cspine.evaluation.records import CaseRecord, score_case
from cspine.inference.bundle import Bundle, bundle_digest
from cspine.inference.predictor import Predictor

Progress = Callable[[int, int], None]


class CaseSet(Protocol):
    """Cases that are made when they are needed. What runs in several processes must be picklable."""

    @property
    def count(self) -> int:
        """How many."""
        ...

    def name(self, number: int) -> str:
        """Name of case ``number``; says all that makes it, and names its file."""
        ...

    def case(self, number: int) -> Case:
        """Case ``number``, 0 to ``count - 1``; the same every time."""
        ...


def evaluate_cases(
    cases: CaseSet, predictor: Predictor, *, folder: Path | None = None, progress: Progress | None = None,
    faults: dict[str, CspineError] | None = None,
) -> list[CaseRecord]:  # fmt: skip
    """Make each case, judge it, compare.

    Args:
        cases: which.
        predictor: what is scored.
        folder: a JSON file a case goes there; those of the same bundle are not done again.
        progress: called with cases done and all.
        faults: takes the errors of cases that cannot be opened, by name; without it they end everything.
    """
    done = []
    for number in range(cases.count):
        record = stored_record(folder, cases.name(number), predictor.bundle.sha256)
        try:
            done.append(record or _score(cases, number, predictor, folder))
        except CspineError as error:
            _note(faults, cases.name(number), error)
        if progress:
            progress(number + 1, cases.count)
    return done


def _note(faults: dict[str, CspineError] | None, name: str, error: CspineError) -> None:
    """Keep the fault of one case; one that concerns all of them, or that nobody asked for, goes on its way."""
    if faults is None or isinstance(error, (BundleError, OutputError)):
        raise error
    faults[name] = error


def evaluate_cases_in_parallel(
    cases: CaseSet, bundle: Path, *, folder: Path, workers: int, runtime: str = "openvino",
    progress: Progress | None = None, faults: dict[str, CspineError] | None = None,
) -> list[CaseRecord]:  # fmt: skip
    """As ``evaluate_cases``, in several processes of one thread each.

    Args:
        cases: which.
        bundle: folder of the bundle.
        folder: a JSON file a case goes there.
        workers: processes.
        runtime: of each.
        progress: called with cases done and all.
        faults: takes the errors of cases that cannot be opened, by name; without it they end everything.
    """
    digest = bundle_digest(bundle)
    waiting = [n for n in range(cases.count) if stored_record(folder, cases.name(n), digest) is None]
    # Fresh processes: a forked one would inherit the runtime's threads half alive.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        names = {pool.submit(_work, cases, number, folder, bundle, runtime): cases.name(number) for number in waiting}
        left = set(names)
        for finished in as_finished(left):
            try:
                finished.result()
            except CspineError as error:
                _note(faults, names[finished], error)
            if progress:
                progress(cases.count - len(left), cases.count)
    records = [stored_record(folder, cases.name(number), digest) for number in range(cases.count)]
    return [record for record in records if record is not None]


def as_finished(futures: set[Future[None]]) -> Iterator[Future[None]]:
    """Futures one by one as they end; what is left in ``futures`` is still under way."""
    while futures:
        done, _ = wait(futures, return_when=FIRST_COMPLETED)
        for future in done:
            futures.remove(future)
            yield future


@lru_cache(maxsize=1)
def _predictor(bundle: Path, runtime: str) -> Predictor:
    """A worker's predictor: networks are loaded once a process, not once a case."""
    return Predictor(Bundle.load(bundle), runtime, threads=1)


def _work(cases: CaseSet, number: int, folder: Path, bundle: Path, runtime: str) -> None:
    _score(cases, number, _predictor(bundle, runtime), folder)


def _score(cases: CaseSet, number: int, predictor: Predictor, folder: Path | None) -> CaseRecord:
    case = cases.case(number)
    record = score_case(case, predictor.predict_full(case.volume))
    if folder is not None:
        store_record(folder, record)
    return record


def store_record(folder: Path, record: CaseRecord) -> None:
    """Write a scored case as ``folder/<name>.json``, whole or not at all.

    Raises:
        OutputError: the folder cannot be written.
    """
    path = folder / f"{record.name}.json"
    # Not with_suffix: names may hold dots.
    part = folder / f"{record.name}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part.write_text(record.model_dump_json(indent=1) + "\n")
        part.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write a scored case: {error}", where=str(path)) from error


def stored_record(folder: Path | None, name: str, bundle: str) -> CaseRecord | None:
    """A case that this bundle was scored on before; None when there is none or it cannot be read."""
    if folder is None:
        return None
    try:
        record = CaseRecord.model_validate_json((folder / f"{name}.json").read_bytes())
    except (OSError, ValidationError):
        return None
    return record if record.bundle == bundle else None
