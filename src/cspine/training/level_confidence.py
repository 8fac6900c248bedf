"""Fit the confidence of level names on marked scans of the development half and on phantoms, into a bundle.

    python -m cspine.training.level_confidence BUNDLE --landmarks MARKS.json --scans DIR --rows rows/ --phantoms 40

The networks run once a scan and variant; what the fit needs is kept as JSON, so an interrupted run goes on. The
bundle's ``level_temperature`` and ``level_confidence`` change, and its card gets a sentence; nothing else does.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from cspine.evaluation.landmark_runs import MarkedScan, marked_scans
from cspine.evaluation.landmarks import Truths, truths
from cspine.evaluation.level_confidence import TEMPERATURES, ConfidenceFit, ConfidenceRow, fit_level_confidence, rows_of
from cspine.evaluation.marks import Marks, halves, load_marks
from cspine.evaluation.phantoms import PhantomSet
from cspine.evaluation.variants import Variant, choose
from cspine.inference import answers
from cspine.inference.bundle import Bundle, write_bundle
from cspine.inference.levels import LevelSettings, find_chains
from cspine.inference.locate import WINDOW, Located, locate
from cspine.inference.runtime import Network, make_runtime
from cspine.inference.visibility import Field
from cspine.studies import open_study
from cspine.volume import Volume

# Variants that cost little and are hard: fields without an anchor, and turned heads.
VARIANTS = "cropped,nod+25,tilt+25"
# Phantoms of this set are used for nothing else.
PHANTOM_SEED = 77
NOTE = "\n## Confidence of levels"
_ROWS = TypeAdapter(list[ConfidenceRow])


@dataclass(frozen=True, slots=True)
class Locator:
    """The locator of a bundle."""

    network: Network
    window: tuple[int, int, int]

    @classmethod
    def of(cls, bundle: Bundle, threads: int | None) -> Locator:
        """Loaded with the bundle's window, in float32."""
        network = make_runtime("openvino", threads).load(bundle.model("locator"), "f32")
        return cls(network, bundle.manifest.stages["locator"].window or WINDOW)

    def __call__(self, volume: Volume) -> Located:
        """The locator's answer."""
        return locate(volume.reoriented(), lambda image: answers.located(self.network, image), window=self.window)


def collect(
    scans: Sequence[MarkedScan], variants: Sequence[Variant], locator: Locator, folder: Path
) -> Iterator[ConfidenceRow]:
    """Rows of marked scans and their variants, stored in ``folder`` a scan."""
    for scan in scans:
        path = folder / f"{scan.name.replace('/', '_')}.json"
        rows = _stored(path)
        if rows is None:
            volume = open_study(scan.path, scale=scan.scale)
            rows = [row for variant in variants for row in _scan_rows(scan, variant, volume, locator)]
            _store(path, rows)
        yield from rows


def _scan_rows(scan: MarkedScan, variant: Variant, volume: Volume, locator: Locator) -> list[ConfidenceRow]:
    made = variant(volume, scan.marks, scan.name)
    if made is None:
        return []
    fields = [made.volume] if made.motion is None else [made.volume, volume]
    there = truths(scan.marks, fields, made.motion)
    return _rows(made.volume, locator, there, scan.name, variant.name)


def _rows(volume: Volume, locator: Locator, there: Truths, scan: str, variant: str) -> list[ConfidenceRow]:
    located = locator(volume)
    view = Field(located.field_affine, located.field_shape, located.void, located.affine)
    return rows_of(find_chains(located, LevelSettings(), TEMPERATURES), view, there, scan=scan, variant=variant)


def phantom_rows(phantoms: PhantomSet, locator: Locator, folder: Path) -> Iterator[ConfidenceRow]:
    """Rows of phantoms, stored in ``folder`` a phantom."""
    for number in range(phantoms.count):
        name = phantoms.name(number)
        path = folder / f"{name}.json"
        rows = _stored(path)
        if rows is None:
            case = phantoms.case(number)
            centres = {
                level.name: item.body_center_mm
                for level, item in case.levels.items()
                if item.body_center_mm is not None
            }
            there = truths(Marks(levels=centres), [case.volume])
            rows = _rows(case.volume, locator, there, name, "phantom")
            _store(path, rows)
        yield from rows


def _stored(path: Path) -> list[ConfidenceRow] | None:
    try:
        return _ROWS.validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def _store(path: Path, rows: list[ConfidenceRow]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(_ROWS.dump_json(rows, indent=1))
    part.replace(path)


def write_fit(folder: Path, fit: ConfidenceFit) -> Bundle:
    """Put a fit into the bundle at ``folder``."""
    loaded = Bundle.load(folder)
    update = {"level_temperature": fit.temperature, "level_confidence": fit.curve}
    calibration = loaded.manifest.calibration.model_copy(update=update)
    fields = loaded.manifest.model_dump(exclude={"schema_version", "files"}, mode="json")
    fields["calibration"] = calibration.model_dump(mode="json")
    files = dict(loaded.files)
    before, _, after = files["card.md"].decode().partition(NOTE)
    # Sections that follow stay: only this one is renewed.
    rest = after[after.find("\n## ") :] if "\n## " in after else ""
    files["card.md"] = f"{before.rstrip()}\n{NOTE}\n\n{fit.note}\n{rest}".encode()
    return write_bundle(folder, files, fields)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="folder of the bundle; changed in place")
    parser.add_argument("--landmarks", type=Path, action="append", required=True, help="marks, JSON; repeat")
    parser.add_argument("--scans", type=Path, action="append", default=[], help="folder of the scans of each")
    parser.add_argument("--development", action="append", default=[], help="scan of the development half; repeat")
    parser.add_argument("--rows", type=Path, required=True, help="where what the fit needs is kept")
    parser.add_argument("--variants", default=VARIANTS)
    parser.add_argument("--phantoms", type=int, default=40)
    parser.add_argument("--preset", default="coarse")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--dry", action="store_true", help="print the fit, and change no bundle")
    chosen = parser.parse_args(arguments)
    bundle = Bundle.load(chosen.bundle)
    folder = chosen.rows / bundle.manifest.files[bundle.manifest.stages["locator"].file][:12]
    locator = Locator.of(bundle, chosen.threads)
    rows: list[ConfidenceRow] = []
    for number, path in enumerate(chosen.landmarks):
        marks = load_marks(path)
        roles = halves(tuple(marks), [name for name in chosen.development if name in marks])
        kept = {name: item for name, item in marks.items() if roles[name] == "development"}
        place = chosen.scans[number] if number < len(chosen.scans) else path.parent
        rows += collect(marked_scans(kept, roles, place), choose(chosen.variants), locator, folder)
    phantoms = PhantomSet(count=chosen.phantoms, seed=PHANTOM_SEED, preset=chosen.preset)
    rows += phantom_rows(phantoms, locator, folder)
    fit = fit_level_confidence(rows)
    sys.stdout.write(f"{fit.note}\n{fit.curve}\n")
    if not chosen.dry:
        write_fit(chosen.bundle, fit)


if __name__ == "__main__":
    main()
