"""One piece of a comparison, in a process of its own: train a network, or export a recipe and score it.

``python -m cspine.training.compare_job JOB.json``; what goes wrong is left in ``failed.json`` in the job's folder.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from cspine.errors import BundleError, CspineError, StudyError
from cspine.inference.bundle import MANIFEST, Bundle, StageName
from cspine.reports.atomic import write_file
from cspine.training.recipe import Recipe

DONE_FILE, FAILED_FILE, FAULTS_FILE, MADE_FROM_FILE = "done.json", "failed.json", "faults.json", "stages.json"
RUN_FOLDER, BUNDLE_FOLDER, CASES_FOLDER = "run", "bundle", "cases"
# All samples are there before training begins: what is not found in so many seconds never comes.
PATIENCE = 10.0
# A process whose parent is gone looks this often, seconds.
_WATCH = 2.0


class _Job(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Path
    threads: int = 1

    @property
    def failure(self) -> str | None:
        """Why it failed the last time; None when it did not."""
        try:
            return str(json.loads((self.folder / FAILED_FILE).read_bytes())["reason"])
        except (OSError, ValueError, KeyError, TypeError):
            return None


class StageJob(_Job):
    """Train one stage.

    Attributes:
        folder: of the trained stage: ``folder/<stage>/last.ckpt``, and ``done.json`` when it is finished.
        threads: of torch.
        recipe: whose stage it is, with the fold that is held back.
        stage: which.
        steps: of training.
        samples: folder of the samples.
        accelerator: ``auto``, ``cpu`` or ``gpu``.
        weights: folder of pretrained weights.
    """

    kind: Literal["stage"] = "stage"
    recipe: Recipe
    stage: StageName
    steps: int
    samples: Path
    accelerator: str = "cpu"
    weights: Path | None = None

    @property
    def is_done(self) -> bool:
        """Trained to the end."""
        return (self.folder / DONE_FILE).is_file()


class RecipeJob(_Job):
    """Export a recipe and score it.

    Attributes:
        folder: ``run``, ``bundle`` and ``cases`` go there.
        threads: of the runtime.
        recipe: None for a bundle that is there already.
        bundle: that one; None for ``folder/bundle``.
        stages: folder of each trained stage.
        samples: folder of the samples.
        data: the data set.
        names: of the studies to score.
    """

    kind: Literal["recipe"] = "recipe"
    recipe: Recipe | None = None
    bundle: Path | None = None
    stages: dict[StageName, Path] = {}
    samples: Path
    data: Path
    names: tuple[str, ...]

    @property
    def bundle_folder(self) -> Path:
        """Where the bundle is, or will be."""
        return self.bundle or self.folder / BUNDLE_FOLDER

    @property
    def made_from(self) -> dict[str, str]:
        """Which trained stages the bundle is made of: their folders' names are their keys."""
        return {name: folder.name for name, folder in self.stages.items()}

    @property
    def is_exported(self) -> bool:
        """The bundle is there, and made of these stages."""
        if self.bundle is not None:
            return True
        try:
            known = json.loads((self.folder / MADE_FROM_FILE).read_bytes())
        except (OSError, ValueError):
            return False
        return known == self.made_from and (self.bundle_folder / MANIFEST).is_file()


Job = Annotated[StageJob | RecipeJob, Field(discriminator="kind")]
_READER: TypeAdapter[StageJob | RecipeJob] = TypeAdapter(Job)
Fit = Callable[..., Path]
Export = Callable[..., Bundle]


def do(job: StageJob | RecipeJob, *, fit: Fit | None = None, export: Export | None = None) -> None:
    """Do a job; one that is done, or begun, goes on from there.

    Args:
        job: what.
        fit: ``training.fit.fit_stage`` when not given.
        export: ``training.export.export_bundle`` when not given.

    Raises:
        CspineError: it cannot be done.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / FAILED_FILE).unlink(missing_ok=True)
    if isinstance(job, StageJob):
        _train(job, fit)
    else:
        if not job.is_exported:
            _export(job, export)
        _score(job)


def _train(job: StageJob, fit: Fit | None) -> None:
    from cspine.training.trainer import FitOptions

    if fit is None:
        from cspine.training.fit import fit_stage

        fit = fit_stage
    options = FitOptions(
        max_steps=job.steps, threads=job.threads, workers=0, progress=False, accelerator=job.accelerator,
        weights=job.weights, patience=PATIENCE,
    )  # fmt: skip
    began = time.perf_counter()
    checkpoint = fit(job.recipe, job.stage, job.samples, job.folder, options)
    seconds = _trained_seconds(checkpoint) or time.perf_counter() - began
    facts = {"stage": job.stage, "steps": job.steps, "minutes": round(seconds / 60, 2)}
    write_file(job.folder / DONE_FILE, (json.dumps(facts) + "\n").encode())


def _trained_seconds(checkpoint: Path) -> float | None:
    """What the checkpoint says of its training, earlier runs included; None when it says nothing."""
    import pickle

    import torch

    try:
        return float(torch.load(checkpoint, map_location="cpu", weights_only=True)["trained_seconds"])
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError):
        return None


def _export(job: RecipeJob, export: Export | None) -> None:
    """Bring the trained stages together as one run, and export it."""
    if export is None:
        from cspine.training.export import export_bundle

        export = export_bundle
    if job.recipe is None:
        raise BundleError("nothing to export", where=str(job.folder))
    run = job.folder / RUN_FOLDER
    for old in (run, job.bundle_folder):
        shutil.rmtree(old, ignore_errors=True)
    run.mkdir(parents=True)
    for name, folder in job.stages.items():
        shutil.copytree(folder / name, run / name, copy_function=_linked)
    write_file(run / "recipe.json", (job.recipe.model_dump_json(indent=2) + "\n").encode())
    export(run, job.bundle_folder, samples=job.samples)
    write_file(job.folder / MADE_FROM_FILE, (json.dumps(job.made_from) + "\n").encode())


def _linked(source: str, target: str) -> None:
    """The same file under a second name where the disk can, else a copy: checkpoints are large."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _score(job: RecipeJob) -> None:
    from cspine.evaluation.labelled_set import LabelledCases
    from cspine.evaluation.running import evaluate_cases
    from cspine.inference.predictor import Predictor

    predictor = Predictor(Bundle.load(job.bundle_folder), threads=job.threads)
    faults: dict[str, CspineError] = {}
    cases = LabelledCases(job.data, job.names, job.threads)
    records = evaluate_cases(cases, predictor, folder=job.folder / CASES_FOLDER, faults=faults)
    reasons = {name: error.message for name, error in faults.items()}
    write_file(job.folder / FAULTS_FILE, (json.dumps(reasons, indent=1) + "\n").encode())
    if not records:
        raise StudyError("no study could be scored", where=next(iter(reasons.values()), None))


def fail(folder: Path, reason: str) -> None:
    """Note why a job failed."""
    write_file(folder / FAILED_FILE, (json.dumps({"reason": reason}) + "\n").encode())


def reason_of(error: CspineError) -> str:
    """An error in one line."""
    return f"{error.message} ({error.where})" if error.where else error.message


def main(arguments: list[str]) -> int:
    """Do the job in a file. Errors go to ``failed.json``; the exit code is that of the command line."""
    job = _READER.validate_json(Path(arguments[0]).read_bytes())
    _end_with_parent(os.getppid())
    try:
        do(job)
    except CspineError as error:
        fail(job.folder, reason_of(error))
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def _end_with_parent(parent: int) -> None:
    """Interrupt this process when its parent is gone, so that a killed comparison leaves no orphan at work.

    What nohup or a shell's background started ignores interrupts, and so would its children: they are heard here.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH)
        # A real signal: it also ends a sleep.
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
