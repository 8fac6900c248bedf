"""Train, export and score several recipes on the same cases, each piece in a process of its own.

A stage that several recipes have in common is trained once. Everything that is finished stays: trained stages,
bundles, scored cases. A recipe that fails is noted with its reason and costs the others nothing.

    OUT/stages/<key>/<stage>/last.ckpt                a trained stage, by ``compare_plan.stage_key``
    OUT/runs/<recipe>/fold-<k>/{run,bundle,cases}     what became of a recipe
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from filelock import FileLock, Timeout

from cspine.errors import UsageError
from cspine.evaluation.comparison import REFERENCE
from cspine.evaluation.records import CaseRecord
from cspine.training.compare_job import CASES_FOLDER, FAULTS_FILE, RecipeJob, StageJob, fail
from cspine.training.compare_plan import Budget, Haste, hastened, on_reference, resized, stage_key, steps_for
from cspine.training.compare_process import AnyJob, Handle, Launch, in_process, last_words
from cspine.training.recipe import Recipe
from cspine.training.splits import SPLITS_FILE, read_splits

# The row of the bundle that comes with cspine.
SHIPPED = "base as shipped"
_POLL = 0.2
LOCK_FILE = "compare.lock"
# A process that was interrupted has this long to save its checkpoint, seconds.
_GRACE = 180.0
# Called with jobs done, jobs in all, and what is being done.
Progress = Callable[[int, int, Sequence[str]], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """A comparison to be made.

    Attributes:
        out: its folder.
        data: the data set.
        samples: made of it; its ``splits.json`` says what is held back.
        recipes: whole ones, not cut to ``size`` yet.
        folds: the parts that are held back in turn.
        budget: what every network sees in training.
        haste: how schedules are changed for it.
        size: pixels of planar views at most.
        stack_size: rows of the images of stacks at most.
        shipped: folder of a bundle that is scored beside them, as it is.
        threads: of every process.
        accelerator: ``auto``, ``cpu`` or ``gpu``.
        weights: folder of pretrained weights.
        keep: leave checkpoints; without it those that no recipe needs any more are removed.
    """

    out: Path
    data: Path
    samples: Path
    recipes: tuple[Recipe, ...]
    folds: tuple[int, ...]
    budget: Budget
    haste: Haste | None = None
    size: int | None = None
    stack_size: int | None = None
    shipped: Path | None = None
    threads: int = 1
    accelerator: str = "cpu"
    weights: Path | None = None
    keep: bool = True

    def recipe_jobs(self) -> list[RecipeJob]:
        """One a recipe and fold, the shipped bundle first.

        Raises:
            UsageError: the samples have no splits, or not that fold.
        """
        jobs = []
        for fold in self.folds:
            names = self.held_back(fold)
            common = {"threads": self.threads, "samples": self.samples, "data": self.data, "names": names}
            if self.shipped is not None:
                jobs.append(RecipeJob(folder=self.place(SHIPPED, fold), bundle=self.shipped, **common))  # type: ignore[arg-type]
            for recipe in self.methods():
                own = self.cut(recipe, fold)
                stages = {job.stage: job.folder for job in self.stage_jobs(recipe, fold)}
                folder = self.place(recipe.name, fold)
                jobs.append(RecipeJob(folder=folder, recipe=own, stages=stages, **common))  # type: ignore[arg-type]
        return jobs

    def stage_jobs(self, recipe: Recipe, fold: int) -> list[StageJob]:
        """The networks of a recipe."""
        own = self.cut(recipe, fold)
        data = hashlib.sha256((self.samples / SPLITS_FILE).read_bytes()).hexdigest()
        jobs = []
        for name, stage in own.stages().items():
            steps = steps_for(stage, self.budget)
            key = stage_key(own, name, steps=steps, data=data)
            jobs.append(
                StageJob(
                    folder=self.out / "stages" / key[:16], threads=self.threads, recipe=own, stage=name, steps=steps,
                    samples=self.samples, accelerator=self.accelerator, weights=self.weights,
                )
            )  # fmt: skip
        return jobs

    def exchanged(self) -> dict[str, Recipe]:
        """Every classifier behind the locator of ``REFERENCE``, by the recipe's name; see ``on_reference``.

        They train no network of their own: both halves are there anyway.
        """
        reference = next((recipe for recipe in self.recipes if recipe.name == REFERENCE), None)
        if reference is None:
            return {}
        pairs = ((recipe.name, on_reference(recipe, reference)) for recipe in self.recipes)
        return {name: other for name, other in pairs if other is not None}

    def methods(self) -> list[Recipe]:
        """All that is judged: each recipe, and then what ``exchanged`` made of it."""
        others = self.exchanged()
        pairs = ((recipe, others.get(recipe.name)) for recipe in self.recipes)
        return [one for pair in pairs for one in pair if one is not None]

    def cut(self, recipe: Recipe, fold: int) -> Recipe:
        """A recipe as it is trained here."""
        return resized(hastened(recipe.on_fold(fold), self.haste, self.budget), self.size, self.stack_size)

    def held_back(self, fold: int) -> tuple[str, ...]:
        """Names of the studies that are scored.

        Raises:
            UsageError: the samples have no splits, or not that fold.
        """
        splits = read_splits(self.samples)
        parts = () if splits is None else splits.parts
        if not 0 <= fold < len(parts):
            raise UsageError(
                f"the samples are split in {len(parts)}", where=str(self.samples), fix="Give another --fold"
            )
        return parts[fold]

    def place(self, name: str, fold: int) -> Path:
        """Folder of a method and fold."""
        return self.out / "runs" / name.replace(" ", "-") / f"fold-{fold}"


@dataclass(slots=True)
class Board:
    """Which jobs there are, and how far they are."""

    stages: dict[Path, StageJob]
    recipes: list[RecipeJob]
    finished: set[Path] = field(default_factory=set)
    failed: dict[Path, str] = field(default_factory=dict)

    @classmethod
    def of(cls, plan: Plan) -> Board:
        """The jobs of a plan; a stage is needed while a recipe that uses it is not exported."""
        recipes = plan.recipe_jobs()
        waiting = {folder for job in recipes if not job.is_exported for folder in job.stages.values()}
        stages: dict[Path, StageJob] = {}
        for recipe, fold in product(plan.methods(), plan.folds):
            for job in plan.stage_jobs(recipe, fold):
                if job.folder in waiting and not job.is_done:
                    # The first recipe that asks for a stage trains it.
                    stages.setdefault(job.folder, job)
        return cls(stages, recipes, finished={job.folder for job in recipes if _is_scored(job)})

    @property
    def total(self) -> int:
        """Number of jobs."""
        return len(self.stages) + len(self.recipes)

    @property
    def settled(self) -> int:
        """Number of jobs that are finished or have failed."""
        return len(self.finished) + len(self.failed)

    def waiting(self, at_work: Sequence[Path]) -> Iterator[AnyJob]:
        """Jobs that can begin now: recipe after recipe, each as soon as its stages are trained."""
        out = self.finished | self.failed.keys() | set(at_work)
        for job in self.recipes:
            if job.folder in out:
                continue
            needed = [] if job.is_exported else [f for f in job.stages.values() if f in self.stages]
            open_stages = [folder for folder in needed if folder not in self.finished]
            if not open_stages:
                yield job
            yield from (self.stages[folder] for folder in open_stages if folder not in out)

    def settle(self, job: AnyJob, reason: str | None) -> None:
        """A job has ended, well or not; recipes fail with their stages."""
        if reason is None:
            self.finished.add(job.folder)
            return
        self.failed[job.folder] = reason
        if isinstance(job, StageJob):
            for recipe in self.recipes:
                if job.folder in recipe.stages.values() and not recipe.is_exported:
                    self.failed.setdefault(recipe.folder, f"its {job.stage} could not be trained: {reason}")
                    fail(recipe.folder, self.failed[recipe.folder])


def run(plan: Plan, *, workers: int, launch: Launch | None = None, progress: Progress | None = None) -> Board:
    """Do all that is missing.

    Args:
        plan: what.
        workers: processes at a time.
        launch: begins a job; in a process of its own when not given.
        progress: called whenever something begins or ends.

    Raises:
        UsageError: the samples have no splits, or not that fold; or another run works in the folder.
        OutputError: the folder cannot be written.
        KeyboardInterrupt: the user's; what was under way has saved its checkpoints.
    """
    try:
        with FileLock(plan.out / LOCK_FILE, blocking=False):
            return _run(plan, _Shop(Board.of(plan), workers, launch or in_process, progress))
    except Timeout as error:
        raise UsageError(
            "another comparison is at work in this folder",
            where=str(plan.out),
            fix="Wait for it, or take another --out",
        ) from error


def _run(plan: Plan, shop: _Shop) -> Board:
    try:
        while shop.begin():
            if shop.collect() and not plan.keep:
                discard(shop.board)
            time.sleep(_POLL if shop.at_work else 0)
    except BaseException:
        shop.close()
        raise
    return shop.board


@dataclass(slots=True)
class _Shop:
    """The jobs under way."""

    board: Board
    workers: int
    launch: Launch
    progress: Progress | None
    at_work: dict[Path, tuple[AnyJob, Handle]] = field(default_factory=dict)

    def begin(self) -> bool:
        """Begin what can begin; whether anything is under way."""
        for job in self.board.waiting(list(self.at_work)):
            if len(self.at_work) < self.workers and job.folder not in self.at_work:
                self.at_work[job.folder] = (job, self.launch(job))
                self._tell()
        return bool(self.at_work)

    def collect(self) -> bool:
        """Settle what has ended; whether anything has."""
        ended = [(job, code) for job, handle in self.at_work.values() if (code := handle.poll()) is not None]
        for job, code in ended:
            del self.at_work[job.folder]
            self.board.settle(job, None if code == 0 else job.failure or last_words(job, code))
            self._tell()
        return bool(ended)

    def close(self) -> None:
        """Ask what is under way to save and end, and wait for it."""
        for _, handle in self.at_work.values():
            handle.interrupt()
        for _, handle in self.at_work.values():
            handle.wait(_GRACE)

    def _tell(self) -> None:
        if self.progress:
            self.progress(self.board.settled, self.board.total, [title(job) for job, _ in self.at_work.values()])


def title(job: AnyJob) -> str:
    """What is being done, for a person."""
    fold = job.folder.name.removeprefix("fold-") if isinstance(job, RecipeJob) else ""
    if isinstance(job, RecipeJob):
        return f"{job.folder.parent.name} is judged (fold {fold})"
    return f"{job.recipe.name}: {job.stage} is trained, {job.steps} steps"


def discard(board: Board) -> None:
    """Remove the checkpoints of stages that no recipe needs any more: optimisers take most of the disk."""
    needed = {folder for job in board.recipes if not job.is_exported for folder in job.stages.values()}
    for job in board.recipes:
        if not job.is_exported:
            continue
        for place in (job.folder / "run", *(folder for folder in job.stages.values() if folder not in needed)):
            for path in place.rglob("*.ckpt"):
                path.unlink(missing_ok=True)


def _is_scored(job: RecipeJob) -> bool:
    """Every case was scored with this bundle; what could not be opened is tried again."""
    return job.is_exported and job.failure is None and len(records_of(job)[0]) == len(job.names)


def records_of(job: RecipeJob) -> tuple[list[CaseRecord], dict[str, str]]:
    """The scored cases of a recipe and fold, and why the others could not be scored."""
    from cspine.evaluation.running import stored_record
    from cspine.inference.bundle import bundle_digest

    digest = bundle_digest(job.bundle_folder)
    found = (stored_record(job.folder / CASES_FOLDER, name, digest) for name in job.names)
    faults: dict[str, str] = {}
    with suppress(OSError, ValueError):
        faults = dict(json.loads((job.folder / FAULTS_FILE).read_bytes()))
    return [record for record in found if record is not None], faults
