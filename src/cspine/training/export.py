"""A trained run becomes a bundle: ONNX files, parity, precision gate, calibration, thresholds, card, digests."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cspine.errors import BundleError, UsageError
from cspine.evaluation.records import CaseRecord
from cspine.inference.bundle import Bundle, GateRecord, StageName, write_bundle
from cspine.inference.runtime import (
    Distance,
    classifier_distance,
    gate,
    locator_distance,
    make_runtime,
    refiner_distance,
)
from cspine.inference.verify import VERIFY_FILES, forget
from cspine.training.calibrate import PREVALENCE, fit_calibration
from cspine.training.cards import add_figures, model_card, trained_on
from cspine.training.data import HeldBack, type_names
from cspine.training.first_weights import PRETRAINED, pretrained_note
from cspine.training.fit import CHECKPOINT, load_network, samples_folder
from cspine.training.onnx_files import (
    INTERFACES,
    PARITY_TOLERANCE,
    Interface,
    Kind,
    differences,
    export_onnx,
    stored_half,
    torch_answers,
)
from cspine.training.planar_export import Probabilities, planar_distance, planar_interface
from cspine.training.recipe import ClassifierStage, FlexibleUNetNetwork, LocatorStage, PlanarStage, Recipe, Stage

__all__ = [
    "ExportedStage", "add_figures", "calibrate_bundle", "export_bundle", "export_stage", "recipe_of", "trained_on",
    "type_levels",
]  # fmt: skip

# What bf16 may change: a share of bone voxels or of the heat; a share of bone voxels; a probability.
GATE_TOLERANCE: dict[Kind, float] = {"locator": 0.02, "refiner": 0.02, "classifier": 0.03}
# A share of vertebra pixels or a probability.
PLANAR_TOLERANCE = 0.03
GATE_INPUTS: dict[Kind, int] = {"locator": 4, "refiner": 6, "classifier": 16}
PLANAR_INPUTS = 16
DISTANCE: dict[Kind, Distance] = {
    "locator": locator_distance,
    "refiner": refiner_distance,
    "classifier": classifier_distance,
}
_OPTIONAL: tuple[StageName, ...] = ("refiner",)

Tensor = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ExportedStage:
    """One network on its way into a bundle.

    Attributes:
        model: ONNX bytes as shipped.
        facts: steps and minutes of training.
        parity: largest difference of each runtime from torch, as a share of the largest logit.
        precision: gate records by precision; empty where this machine cannot measure.
        stage: as it was trained.
    """

    model: bytes
    facts: dict[str, Any]
    parity: dict[str, float]
    precision: dict[str, GateRecord]
    stage: Stage


@dataclass(frozen=True, slots=True)
class _Plan:
    """How a kind of stage is exported and checked."""

    use: Interface
    distance: Distance
    tolerance: float
    inputs: list[Tensor]


def export_stage(run: Path, name: StageName, samples: Path, *, half: bool = True) -> ExportedStage:
    """ONNX bytes of a stage's averaged network, checked against torch in both runtimes on held-back samples.

    Raises:
        UsageError: no checkpoint there.
        BundleError: a runtime answers differently from torch.
    """
    checkpoint = run / name / CHECKPOINT
    if not checkpoint.exists():
        raise UsageError(
            f"the run has no trained {name}",
            where=str(checkpoint),
            fix="Train it with cspine train; or export what was trained with --only, to judge single pictures with it",
        )
    network, stage, facts = load_network(checkpoint)
    plan = _plan(stage, name, samples / samples_folder(stage, name))
    if isinstance(stage, PlanarStage):
        network = Probabilities(network, stage.loss.levels_as)
    model = export_onnx(network, plan.use)
    if half:
        model = stored_half(model)
    few = plan.inputs[:2]
    parity = differences(model, plan.use, few, [torch_answers(network, plan.use, x) for x in few])
    # Weights rounded to half precision move logits a little; the runtimes among themselves must not.
    allowed = 10 * PARITY_TOLERANCE if half else PARITY_TOLERANCE
    for library, value in parity.items():
        if not value <= allowed:
            raise BundleError(f"{library} differs from torch by {value:.2g} of the largest logit", where=name)
    runtime = make_runtime("openvino")
    precision = {}
    if runtime.supports("bf16"):
        tensors = [{plan.use.input: x} for x in plan.inputs]
        precision["bf16"] = gate(runtime, model, tensors, distance=plan.distance, tolerance=plan.tolerance)
    return ExportedStage(model, facts, parity, precision, stage)


def _plan(stage: Stage, name: StageName, folder: Path) -> _Plan:
    """How a stage is checked, on held-back examples, or on noise when a run has none."""
    if isinstance(stage, PlanarStage):
        from cspine.training.planar_data import PlanarHeldBack

        use = planar_interface(stage, name)
        held = PlanarHeldBack(folder, stage, PLANAR_INPUTS)
        inputs = [held[k]["image"][None].numpy() for k in range(len(held))]
        return _Plan(use, planar_distance, PLANAR_TOLERANCE, inputs or [_noise(use)])
    kind: Kind = "locator" if isinstance(stage, LocatorStage) else "refiner"
    if isinstance(stage, ClassifierStage):
        kind = "classifier"
    use = INTERFACES[kind]
    found = HeldBack(folder, stage, 10_000)
    chosen = np.linspace(0, len(found) - 1, min(len(found), GATE_INPUTS[kind])).astype(int)
    inputs = [found[int(k)][use.input][None].numpy() for k in chosen]
    return _Plan(use, DISTANCE[kind], GATE_TOLERANCE[kind], inputs or [_noise(use)])


def _noise(use: Interface) -> Tensor:
    rng = np.random.default_rng(0)
    return rng.uniform(-1, 1, (1, *use.example[1:])).astype(np.float32)


def export_bundle(
    run: Path,
    out: Path,
    *,
    samples: Path | None = None,
    half: bool = True,
    name: str | None = None,
    sources: str | None = None,
    only: StageName | None = None,
) -> Bundle:
    """Write the bundle of a run, not calibrated yet; see ``calibrate_bundle``.

    Args:
        run: folder that ``fit_stage`` trained the stages in; a refiner is taken along when there is one.
        out: folder of the bundle.
        samples: where the run's samples are (default ``run/samples``).
        half: store large weights in float16.
        name: of the bundle; the recipe's by default.
        sources: where the data come from and under which licences, for the card.
        only: this stage alone: a planar classifier, which then judges single pictures, or the locator.

    Raises:
        UsageError: a stage of the recipe was not trained, or the one that is asked for cannot stand alone.
        BundleError: a runtime answers differently from torch.
    """
    recipe = _recipe(run)
    names = _chosen(recipe, run, only)
    folder = samples or run / "samples"
    stages = {stage: export_stage(run, stage, folder, half=half) for stage in names}
    files = {f"{stage}.onnx": part.model for stage, part in stages.items()}
    typed = any(_names_types(part.stage) for part in stages.values())
    fields: dict[str, Any] = {
        "name": name or recipe.name,
        "version": recipe.version,
        "recipe": recipe.name,
        "trained_on": trained_on(folder, recipe, names),
        "stages": _entries(recipe, stages),
        "types": type_names() if typed else (),
        "type_levels": type_levels() if typed else {},
        "precision": _precision(recipe, stages),
    }
    notes = [sources, *(pretrained_note(run / stage / PRETRAINED, stage) for stage in names)]
    notes += [_in_place(recipe, stage, part.stage) for stage, part in stages.items()]
    card = model_card(recipe, stages, fields["trained_on"], [note for note in notes if note])
    forget(out)
    return write_bundle(out, {**files, "card.md": card.encode()}, fields)


def _chosen(recipe: Recipe, run: Path, only: StageName | None) -> list[StageName]:
    """The stages that go into the bundle.

    Raises:
        UsageError: the one that is asked for is not in the recipe, or cannot stand alone.
    """
    stages = recipe.stages()
    if only is None:
        return [name for name in stages if name not in _OPTIONAL or (run / name / CHECKPOINT).exists()]
    stage = stages.get(only)
    if stage is None:
        has = ", ".join(stages)
        raise UsageError(f"the recipe {recipe.name} has no {only}", where="--only", fix=f"It has {has}")
    whole = not isinstance(stage, PlanarStage) or stage.view.field == "whole"
    if not whole or (only == "classifier" and not (isinstance(stage, PlanarStage) and "axial" in stage.view.planes)):
        raise UsageError(
            f"the {only} of {recipe.name} needs the others: it does not see whole axial images",
            where="--only",
            fix="Train and export the whole recipe",
        )
    return [only]


def _recipe(run: Path) -> Recipe:
    return Recipe.model_validate_json((run / "recipe.json").read_bytes())


def _in_place(recipe: Recipe, name: StageName, trained: Stage) -> str | None:
    """For the card: which detector stands where the recipe has one of a library that was not installed."""
    planned = recipe.stages()[name]
    if not isinstance(planned, PlanarStage) or not isinstance(trained, PlanarStage):
        return None
    if planned.network.body == trained.network.body:
        return None
    return (
        f"The recipe's {name} is {planned.network.encoder} ({planned.network.body}); where this bundle was trained "
        f"its library was not installed, and {trained.network.body} on {trained.network.encoder} took its place."
    )


def _names_types(stage: Stage) -> bool:
    """Whether a stage's network names types of fractures."""
    if isinstance(stage, PlanarStage):
        return "types" in stage.network.heads
    return isinstance(stage, ClassifierStage)


def _entries(recipe: Recipe, stages: Mapping[StageName, ExportedStage]) -> dict[str, dict[str, Any]]:
    """The manifest's stages; a network that locates and judges is entered as both."""
    entries: dict[str, dict[str, Any]] = {}
    for name, part in stages.items():
        entry: dict[str, Any] = {"file": f"{name}.onnx"}
        if isinstance(part.stage, PlanarStage):
            entry["planar"] = part.stage.use.model_dump(mode="json")
        elif isinstance(part.stage, LocatorStage) and isinstance(part.stage.network, FlexibleUNetNetwork):
            # It takes no other sides than multiples of 32, which its window tells; see ``locate.side_multiple``.
            entry["window"] = part.stage.window
        entries[name] = entry
    if recipe.shared and "locator" in entries:
        entries["classifier"] = dict(entries["locator"])
    return entries


def _precision(recipe: Recipe, stages: Mapping[StageName, ExportedStage]) -> dict[str, dict[str, Any]]:
    records: dict[str, dict[str, Any]] = {}
    for name, part in stages.items():
        records[name] = {precision: record.model_dump() for precision, record in part.precision.items()}
    if recipe.shared:
        records["classifier"] = records["locator"]
    return records


def type_levels() -> dict[str, list[str]]:
    """Levels at which each fracture type occurs in phantoms."""
    from cspine.anatomy import LEVELS
    from cspine.phantoms.fracture_types import FractureType, frequencies

    return {
        str(kind): [level.name for level in LEVELS if frequencies(int(level)).get(kind, 0) > 0] for kind in FractureType
    }


def calibrate_bundle(bundle: Path, records: Sequence[CaseRecord], *, prevalence: float = PREVALENCE) -> Bundle:
    """Fit calibration and thresholds on scored cases and write them into the bundle.

    Args:
        bundle: folder of a bundle that the cases were scored with.
        records: from ``evaluation.phantoms``, of phantoms that are used for nothing else.
        prevalence: of fracture a vertebra that probabilities refer to.
    """
    loaded = Bundle.load(bundle)
    fitted = fit_calibration(records, prevalence=prevalence)
    fields = loaded.manifest.model_dump(exclude={"schema_version", "files"}, mode="json")
    fields |= {
        "calibration": fitted.calibration.model_dump(mode="json"),
        "thresholds": fitted.thresholds.model_dump(mode="json"),
    }
    # What was recorded with other probabilities no longer holds; see ``inference.verify.record_into``.
    files = {name: content for name, content in loaded.files.items() if name not in VERIFY_FILES}
    card = files["card.md"].decode().split("\n## Calibration")[0].rstrip()
    files["card.md"] = f"{card}\n\n## Calibration\n\n{fitted.note}\n".encode()
    forget(bundle)
    return write_bundle(bundle, files, fields)


def recipe_of(run: Path) -> dict[str, Any]:
    """The recipe that a run was started with, as it was written."""
    content = json.loads((run / "recipe.json").read_text())
    return dict(content)
