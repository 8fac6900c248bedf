"""The card of a bundle: what it is, what it was trained on, what it must not be used for."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from cspine import __version__
from cspine.inference.bundle import Bundle, GateRecord, StageName, write_bundle
from cspine.training.data import PHANTOM, SCAN
from cspine.training.fit import samples_folder
from cspine.training.recipe import Recipe
from cspine.training.samples import sample_paths

# What copies of real scans are, a stage.
_REAL = {
    "locator": "real scans with levels marked or found",
    "classifier": "copies of real scans with planted fractures",
}
_NO_PATIENT = "no patient with a known fracture"


class Exported(Protocol):
    """What the card tells of a network; see ``export.ExportedStage``."""

    @property
    def model(self) -> bytes:
        """ONNX bytes."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """Of its training."""

    @property
    def parity(self) -> Mapping[str, float]:
        """Difference of each runtime from torch."""

    @property
    def precision(self) -> Mapping[str, GateRecord]:
        """Gate records."""


def add_figures(bundle: Path, table: str) -> Bundle:
    """Put an evaluation table (Markdown, headings included) into the card of a bundle."""
    loaded = Bundle.load(bundle)
    fields = loaded.manifest.model_dump(exclude={"schema_version", "files"}, mode="json")
    files = dict(loaded.files)
    card = files["card.md"].decode().split("\n## Figures")[0].rstrip()
    body = table.split("\n", 1)[1].strip()
    files["card.md"] = f"{card}\n\n## Figures\n\n{body}\n".encode()
    return write_bundle(bundle, files, fields)


def trained_on(samples: Path, recipe: Recipe, stages: Collection[StageName] | None = None) -> str:
    """One sentence on the samples of a run: how many phantoms, real scans and patients each stage saw.

    Args:
        samples: folder of the stages' samples.
        recipe: says which part was held back.
        stages: only these of its networks; None for all.
    """
    parts, patients = [], False
    for name, stage in recipe.stages().items():
        if stages is not None and name not in stages:
            continue
        folder = samples / samples_folder(stage, name)
        names = [path.name for path in sample_paths(folder, held_back=False, fold=stage.fold)]
        scans = sum(name.startswith(SCAN) for name in names)
        phantoms = sum(name.startswith(PHANTOM) for name in names)
        others = len(names) - scans - phantoms
        patients |= others > 0
        counts = ((phantoms, "phantoms"), (scans, _REAL.get(name, "real scans")), (others, "studies of patients"))
        if names:
            parts.append(f"{name}: " + " and ".join(f"{count} {what}" for count, what in counts if count))
    said = "; ".join(parts or ["unknown samples"])
    return f"{said}; the terms of the patients' data bind this bundle" if patients else f"{said}; {_NO_PATIENT}"


def model_card(recipe: Recipe, stages: Mapping[StageName, Exported], seen: str, notes: list[str]) -> str:
    """The model card (Mitchell et al., 2019), Markdown.

    Args:
        recipe: the method.
        stages: its networks.
        seen: from ``trained_on``.
        notes: paragraphs at the end: sources, licences, first weights.
    """
    pictures = "locator" not in stages
    reads = "single axial pictures of CT" if pictures else "CT in Hounsfield units that shows some of C1 to C7"
    answers = "pictures.md" if pictures else "findings.md"
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
            f"- Input: {reads}. Output: see docs/reference/{answers}.",
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
