"""Score a predictor on phantoms that it has never seen; one JSON a case, so that an interrupted run goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

from pydantic import ValidationError

from cspine.errors import OutputError, UsageError
from cspine.evaluation.records import CaseRecord, score_case
from cspine.inference.bundle import Bundle, bundle_digest
from cspine.inference.predictor import Predictor

# Seeds of evaluation phantoms start here and never meet those of training.
SEED_BASE = 900_000_000
CASES_PER_SEED = 10_000


@dataclass(frozen=True, slots=True)
class PhantomSet:
    """Which phantoms are scored.

    Attributes:
        count: how many.
        seed: 0 and up; sets of different seeds share no phantom.
        preset: kind of scan, see ``phantoms.scanner.sample_scanner``.
        multiplier: factor on the prevalence of fractures.
    """

    count: int = 60
    seed: int = 0
    preset: str = "clinical"
    multiplier: float = 2.0

    def phantom_seed(self, number: int) -> int:
        """Seed of one phantom of the set."""
        return SEED_BASE + self.seed * CASES_PER_SEED + number

    def name(self, number: int) -> str:
        """Name of one phantom of the set; says all that makes it."""
        return f"{self.preset}-x{self.multiplier:g}-{self.phantom_seed(number)}"


def evaluate_phantoms(
    phantoms: PhantomSet,
    predictor: Predictor,
    *,
    folder: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[CaseRecord]:
    """Make each phantom, judge it, compare.

    Args:
        phantoms: which.
        predictor: what is scored.
        folder: a JSON file a case goes there; those of the same bundle are not done again.
        progress: called with cases done and all.
    """
    done = []
    for number in range(phantoms.count):
        record = _stored(folder, phantoms.name(number), predictor.bundle.sha256)
        done.append(record or _score(phantoms, number, predictor, folder))
        if progress:
            progress(len(done), phantoms.count)
    return done


def evaluate_phantoms_in_parallel(
    phantoms: PhantomSet, bundle: Path, *, folder: Path, workers: int, runtime: str = "openvino",
    progress: Callable[[int, int], None] | None = None,
) -> list[CaseRecord]:  # fmt: skip
    """As ``evaluate_phantoms``, in several processes of one thread each.

    Args:
        phantoms: which.
        bundle: folder of the bundle.
        folder: a JSON file a case goes there.
        workers: processes.
        runtime: of each.
        progress: called with cases done and all.
    """
    digest = bundle_digest(bundle)
    waiting = [n for n in range(phantoms.count) if _stored(folder, phantoms.name(n), digest) is None]
    # Fresh processes: a forked one would inherit the runtime's threads half alive.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(_work, phantoms, number, folder, bundle, runtime) for number in waiting}
        for finished in _as_finished(futures):
            finished.result()
            if progress:
                progress(phantoms.count - len(futures), phantoms.count)
    records = [_stored(folder, phantoms.name(number), digest) for number in range(phantoms.count)]
    return [record for record in records if record is not None]


def _as_finished(futures: set[Future[None]]) -> Iterator[Future[None]]:
    while futures:
        done, _ = wait(futures, return_when=FIRST_COMPLETED)
        for future in done:
            futures.remove(future)
            yield future


@lru_cache(maxsize=1)
def _predictor(bundle: Path, runtime: str) -> Predictor:
    """A worker's predictor: networks are loaded once a process, not once a case."""
    return Predictor(Bundle.load(bundle), runtime, threads=1)


def _work(phantoms: PhantomSet, number: int, folder: Path, bundle: Path, runtime: str) -> None:
    _score(phantoms, number, _predictor(bundle, runtime), folder)


def _score(phantoms: PhantomSet, number: int, predictor: Predictor, folder: Path | None) -> CaseRecord:
    from cspine.phantoms.case import make_case
    from cspine.phantoms.scanner import PRESETS

    known = {name: name for name in PRESETS}
    if phantoms.preset not in known:
        raise UsageError(f"no phantom preset {phantoms.preset!r}, expected one of {', '.join(PRESETS)}")
    case = make_case(
        phantoms.phantom_seed(number),
        preset=known[phantoms.preset],
        multiplier=phantoms.multiplier,
        name=phantoms.name(number),
    )
    record = score_case(case, predictor.predict_full(case.volume))
    if folder is not None:
        _store(folder, record)
    return record


def _store(folder: Path, record: CaseRecord) -> None:
    path = folder / f"{record.name}.json"
    part = path.with_suffix(".part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part.write_text(record.model_dump_json(indent=1) + "\n")
        part.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write a scored case: {error}", where=str(path)) from error


def _stored(folder: Path | None, name: str, bundle: str) -> CaseRecord | None:
    """A case that this bundle was scored on before; None when there is none or it cannot be read."""
    if folder is None:
        return None
    try:
        record = CaseRecord.model_validate_json((folder / f"{name}.json").read_bytes())
    except (OSError, ValidationError):
        return None
    return record if record.bundle == bundle else None
