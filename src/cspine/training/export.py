"""A trained run becomes a bundle: ONNX files, parity, precision gate, calibration, thresholds, card, digests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cspine import __version__
from cspine.errors import BundleError, UsageError
from cspine.evaluation.records import CaseRecord
from cspine.inference.bundle import NEEDED, Bundle, GateRecord, write_bundle
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
from cspine.training.data import PHANTOM, SCAN, HeldBack, Stage, type_names
from cspine.training.fit import CHECKPOINT, PRETRAINED, STAGES, StageName, load_network
from cspine.training.onnx_files import (
    EXAMPLE,
    INPUT,
    PARITY_TOLERANCE,
    differences,
    export_onnx,
    stored_half,
    torch_answers,
)
from cspine.training.recipe import Recipe
from cspine.training.samples import sample_paths

# What bf16 may change: a share of bone voxels or of the heat; a share of bone voxels; a probability.
GATE_TOLERANCE = {"locator": 0.02, "refiner": 0.02, "classifier": 0.03}
# What copies of real scans are, a stage.
_REAL = {
    "locator": "real scans with levels marked or found",
    "classifier": "copies of real scans with planted fractures",
}
_NO_PATIENT = "no patient with a known fracture"
GATE_INPUTS = {"locator": 4, "refiner": 6, "classifier": 16}
DISTANCE: dict[StageName, Distance] = {
    "locator": locator_distance,
    "refiner": refiner_distance,
    "classifier": classifier_distance,
}

Tensor = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ExportedStage:
    """One network on its way into a bundle.

    Attributes:
        model: ONNX bytes as shipped.
        facts: steps and minutes of training.
        parity: largest difference of each runtime from torch, as a share of the largest logit.
        precision: gate records by precision; empty where this machine cannot measure.
    """

    model: bytes
    facts: dict[str, Any]
    parity: dict[str, float]
    precision: dict[str, GateRecord]


def export_stage(run: Path, name: StageName, samples: Path, *, half: bool = True) -> ExportedStage:
    """ONNX bytes of a stage's averaged network, checked against torch in both runtimes on held-back samples.

    Raises:
        UsageError: no checkpoint there.
        BundleError: a runtime answers differently from torch.
    """
    checkpoint = run / name / CHECKPOINT
    if not checkpoint.exists():
        raise UsageError(f"the run has no trained {name}", where=str(checkpoint), fix="Train it with cspine train")
    network, stage, facts = load_network(checkpoint)
    model = export_onnx(network, name)
    if half:
        model = stored_half(model)
    inputs = _inputs(stage, samples / name, name)
    few = inputs[:2]
    parity = differences(model, name, few, [torch_answers(network, name, x) for x in few])
    # Weights rounded to half precision move logits a little; the runtimes among themselves must not.
    allowed = 10 * PARITY_TOLERANCE if half else PARITY_TOLERANCE
    for library, value in parity.items():
        if not value <= allowed:
            raise BundleError(f"{library} differs from torch by {value:.2g} of the largest logit", where=name)
    runtime = make_runtime("openvino")
    precision = {}
    if runtime.supports("bf16"):
        tensors = [{INPUT[name]: x} for x in inputs]
        tolerance = GATE_TOLERANCE[name]
        precision["bf16"] = gate(runtime, model, tensors, distance=DISTANCE[name], tolerance=tolerance)
    return ExportedStage(model, facts, parity, precision)


def _inputs(stage: Stage, folder: Path, name: StageName) -> list[Tensor]:
    """Held-back examples as network inputs, or noise when a run has none."""
    held = HeldBack(folder, stage, 10_000)
    count = min(len(held), GATE_INPUTS[name])
    if count:
        chosen = np.linspace(0, len(held) - 1, count).astype(int)
        return [held[int(k)][INPUT[name]][None].numpy() for k in chosen]
    rng = np.random.default_rng(0)
    return [rng.uniform(-1, 1, (1, *EXAMPLE[name][1:])).astype(np.float32)]


def export_bundle(
    run: Path,
    out: Path,
    *,
    samples: Path | None = None,
    half: bool = True,
    name: str | None = None,
    sources: str | None = None,
) -> Bundle:
    """Write the bundle of a run, not calibrated yet; see ``calibrate_bundle``.

    Args:
        run: folder that ``fit_stage`` trained the stages in; a refiner is taken along when there is one.
        out: folder of the bundle.
        samples: where the run's samples are (default ``run/samples``).
        half: store large weights in float16.
        name: of the bundle; the recipe's by default.
        sources: where the data come from and under which licences, for the card.
    """
    recipe = Recipe.model_validate_json((run / "recipe.json").read_bytes())
    names = [stage for stage in STAGES if stage in NEEDED or (run / stage / CHECKPOINT).exists()]
    folder = samples or run / "samples"
    stages = {stage: export_stage(run, stage, folder, half=half) for stage in names}
    files = {f"{stage}.onnx": part.model for stage, part in stages.items()}
    fields: dict[str, Any] = {
        "name": name or recipe.name,
        "version": recipe.version,
        "recipe": recipe.name,
        "trained_on": trained_on(folder, recipe),
        "stages": {stage: {"file": f"{stage}.onnx"} for stage in names},
        "types": type_names(),
        "type_levels": type_levels(),
        "precision": {stage: {k: v.model_dump() for k, v in part.precision.items()} for stage, part in stages.items()},
    }
    notes = [sources, _pretrained_note(run / "classifier" / PRETRAINED)]
    card = _card(recipe, stages, fields["trained_on"], [note for note in notes if note])
    forget(out)
    return write_bundle(out, {**files, "card.md": card.encode()}, fields)


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


def add_figures(bundle: Path, table: str) -> Bundle:
    """Put an evaluation table (Markdown, headings included) into the card of a bundle."""
    loaded = Bundle.load(bundle)
    fields = loaded.manifest.model_dump(exclude={"schema_version", "files"}, mode="json")
    files = dict(loaded.files)
    card = files["card.md"].decode().split("\n## Figures")[0].rstrip()
    body = table.split("\n", 1)[1].strip()
    files["card.md"] = f"{card}\n\n## Figures\n\n{body}\n".encode()
    return write_bundle(bundle, files, fields)


def trained_on(samples: Path, recipe: Recipe) -> str:
    """One sentence on the samples of a run: how many phantoms, real scans and patients each stage saw.

    Args:
        samples: folder of the stages' samples.
        recipe: says which part was held back.
    """
    parts, patients = [], False
    for stage in STAGES:
        fold = getattr(recipe, stage).fold
        names = [path.name for path in sample_paths(samples / stage, held_back=False, fold=fold)]
        scans = sum(name.startswith(SCAN) for name in names)
        phantoms = sum(name.startswith(PHANTOM) for name in names)
        others = len(names) - scans - phantoms
        patients |= others > 0
        counts = ((phantoms, "phantoms"), (scans, _REAL.get(stage, "real scans")), (others, "studies of patients"))
        if names:
            parts.append(f"{stage}: " + " and ".join(f"{count} {what}" for count, what in counts if count))
    said = "; ".join(parts or ["unknown samples"])
    return f"{said}; the terms of the patients' data bind this bundle" if patients else f"{said}; {_NO_PATIENT}"


def _pretrained_note(record: Path) -> str | None:
    """Who made the weights that the classifier's encoder started from."""
    if not record.is_file():
        return None
    source = json.loads(record.read_text(encoding="utf-8"))
    return (
        f"The classifier's encoder started from weights learnt on photographs (ImageNet): {source['package']} "
        f"{source['version']}, {source['by']}, {source['licence']}, SHA-256 {source['sha256']}."
    )


def _card(recipe: Recipe, stages: dict[StageName, ExportedStage], seen: str, notes: list[str]) -> str:
    """The model card (Mitchell et al., 2019): what it is, what it was trained on, what it must not be used for."""
    rows = []
    for name, part in stages.items():
        facts = ", ".join(f"{value} {key}" for key, value in part.facts.items())
        parity = ", ".join(f"{key} {value:.1e}" for key, value in part.parity.items())
        bf16 = part.precision.get("bf16")
        gated = "not measured" if bf16 is None else f"{bf16.error:.4f} of {bf16.tolerance:g} allowed"
        rows.append(f"| {name} | {len(part.model) / 1e6:.1f} MB | {facts} | {parity} | {gated} |")
    return "\n".join(
        [
            f"# {recipe.name} {recipe.version}",
            "",
            recipe.title,
            "",
            "**Research use only. Not a diagnosis, not a medical device.**",
            "",
            f"- Trained on: {seen}. Nothing is claimed about patients that it was not measured on.",
            "- Input: CT in Hounsfield units that shows some of C1 to C7. Output: see docs/reference/findings.md.",
            "- Must not be used for: children, decisions about a patient, anything but CT.",
            "- Known weaknesses: hairline fractures of transverse and spinous processes, noise at the shoulders,",
            "  old fractures and vessels that look like fresh ones, anatomy that phantoms do not have.",
            f"- Source: {recipe.source}",
            f"- Exported by cspine {__version__} on {datetime.now(UTC).date().isoformat()}.",
            "",
            "| network | size | training | difference from torch | bf16 gate |",
            "|---|---|---|---|---|",
            *rows,
            *(line for note in notes for line in ("", note)),
            "",
        ]
    )


def recipe_of(run: Path) -> dict[str, Any]:
    """The recipe that a run was started with, as it was written."""
    content = json.loads((run / "recipe.json").read_text())
    return dict(content)
