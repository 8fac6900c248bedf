"""Every recipe that comes with cspine learns two steps, goes on for a third, is exported, and judges a study.

Networks are the recipe's own; images are small and batches tiny. What recipes have in common is trained and exported
once.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from cspine.findings import Findings
from cspine.inference.bundle import Bundle, StageName
from cspine.inference.predictor import Predictor
from cspine.training import export
from cspine.training.fit import CHECKPOINT, FitOptions, fit_stage, samples_folder
from cspine.training.planar_samples import planar_sample, write_planar
from cspine.training.recipe import (
    ClassifierStage,
    LocatorStage,
    PlanarStage,
    Recipe,
    RefinerStage,
    SequenceNetwork,
    Stage,
    load_recipe,
    recipe_names,
)
from cspine.training.samples import classifier_sample, locator_sample, refiner_sample, write_sample
from training_factory import block_case

# Inception v3 takes nothing smaller.
SIZE = 96
RECIPES = recipe_names()


def tiny(stage: Stage) -> Stage:
    """The same networks on small images, a few at a time."""
    # Batch statistics need two images; a stack is many.
    schedule = stage.schedule.model_copy(
        update={"batch_size": 2 if isinstance(stage, PlanarStage) else 1, "accumulate": 1}
    )
    changes: dict[str, object] = {"schedule": schedule}
    if isinstance(stage, PlanarStage):
        changes["view"] = stage.view.model_copy(update={"size": SIZE, "step_mm": 8.0})
    elif isinstance(stage, (LocatorStage, RefinerStage)):
        changes["window"] = (64, 64, 64)
    elif isinstance(stage, ClassifierStage) and isinstance(stage.network, SequenceNetwork):
        changes["network"] = stage.network.model_copy(update={"size": 64})
    return stage.model_copy(update=changes)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cases to learn from and one that is held back, as every kind of sample."""
    folder = tmp_path_factory.mktemp("samples")
    for number in (1, 2, 16):
        case, name = block_case(number), f"phantom-{number:06d}"
        write_sample(locator_sample(case), folder / "locator", name)
        write_sample(refiner_sample(case), folder / "refiner", name)
        write_sample(classifier_sample(case), folder / "classifier", name)
        write_planar(planar_sample(case), folder / "planar", name)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stages that were trained for an earlier recipe, by what they are; processes of one run share them."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "stages"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(autouse=True)
def exported_once(monkeypatch: pytest.MonkeyPatch, trained: Path) -> None:
    """A stage that recipes have in common is also exported once."""
    export_stage = export.export_stage

    def exported(run: Path, name: StageName, samples: Path, *, half: bool = True) -> export.ExportedStage:
        kept = (run / name).resolve().with_suffix(".exported")
        with FileLock(f"{kept}.lock"):
            if not kept.exists():
                kept.write_bytes(pickle.dumps(export_stage(run, name, samples, half=half)))
            stage: export.ExportedStage = pickle.loads(kept.read_bytes())  # noqa: S301  (written above)
        return stage

    monkeypatch.setattr(export, "export_stage", exported)


def options(steps: int) -> FitOptions:
    return FitOptions(
        max_steps=steps,
        workers=0,
        threads=1,
        validate_every=2,
        validate_limit=2,
        progress=False,
        accelerator="cpu",
        patience=5,
    )


def train(recipe: Recipe, name: StageName, stage: Stage, samples: Path, run: Path, trained: Path) -> None:
    """Two steps, then one more after the checkpoint; or what an earlier recipe left."""
    key = hashlib.sha256(f"{samples_folder(stage, name)} {stage.model_dump_json()}".encode()).hexdigest()
    with FileLock(trained / f"{key}.lock"):
        if not (trained / key).exists():
            for steps in (2, 3):
                checkpoint = fit_stage(recipe, name, samples, run, options(steps))
                saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
                assert saved["global_step"] == steps
            (run / name).rename(trained / key)
    (run / name).symlink_to(trained / key)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_learns_goes_on_ships_and_predicts(name: str, samples: Path, trained: Path, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    recipe = recipe.model_copy(update={key: tiny(stage) for key, stage in recipe.stages().items()})
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.json").write_text(recipe.model_dump_json())
    for key, stage in recipe.stages().items():
        train(recipe, key, stage, samples, run, trained)
        assert (run / key / CHECKPOINT).is_file()
    bundle = export.export_bundle(run, tmp_path / "bundle", samples=samples)
    assert set(recipe.stages()) <= set(bundle.manifest.stages)
    findings = Predictor(Bundle.load(tmp_path / "bundle"), threads=1).predict(block_case(3).volume)
    assert isinstance(findings, Findings)
    assert [item.level for item in findings.levels] == ["C1", "C2", "C3", "C4", "C5", "C6", "C7"]
    assert findings.provenance.bundle is not None
    assert findings.provenance.bundle.name == name
