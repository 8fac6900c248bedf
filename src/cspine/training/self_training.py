"""Samples for the locator from real scans that nobody labelled: the network's own masks, where it agrees with itself.

``python -m cspine.training.self_training --scans DIR --bundle BUNDLE --out DIR`` reads every NIfTI volume of a folder.
A scan is kept when the levels found in it, in its mirror image, and in two copies cut short all lie at the same
places under the same names. A reader may give better level centres with ``--marks``: they replace the network's
counting, and the masks follow them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cspine.anatomy import THORACIC
from cspine.errors import CspineError, StudyError
from cspine.inference.chain import THORACIC_STATE, ChainSettings, Link
from cspine.inference.levels import LevelMap, LevelSettings, find_levels
from cspine.inference.locate import BODY_HU, CLASSES, SPACING_MM, Located, Network, locate
from cspine.inference.relabel import relabel
from cspine.training.samples import LocatorSample, Point, write_sample
from cspine.volume import AIR_HU, Volume

# Two answers about a body centre further apart than this do not agree.
AGREE_MM = 6.0
# A level that the chain is less sure of makes the scan useless for teaching.
MIN_CONFIDENCE = 0.8
MIN_LEVELS = 4
# Share of a full slice's tissue below which a slice was blanked.
MIN_TISSUE = 0.25
# Share of the slices that is cut off the top and, in another copy, off the bottom.
CUT_SHARE = 0.2

Centres = dict[int, NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a scan may teach, and why not.

    Attributes:
        sample: None when the scan is left out.
        reason: of leaving it out, else empty.
    """

    sample: LocatorSample | None
    reason: str = ""


def pseudo_label(volume: Volume, network: Network, marks: Mapping[int, Point] | None = None) -> Verdict:
    """A locator sample from an unlabelled scan.

    Args:
        volume: HU.
        network: the locator, see ``inference.locate``.
        marks: body centres in LPS mm by label (8 and up thoracic), consecutive, as a reader set them; the scan is
            then kept without asking whether the network agrees with itself.
    """
    volume = volume.reoriented()
    shown = _only_scanned(volume)
    located = _both_ways(shown, network)
    found = find_levels(located, LevelSettings(chain=ChainSettings(temperature=1.0)))
    if marks:
        centres = {label: np.asarray(at) for label, at in marks.items()}
        return Verdict(_sample(volume, relabel(located, _links(marks)), located, centres))
    reason = _doubt(found) or _disagreement(found, shown, network)
    if reason:
        return Verdict(None, reason)
    return Verdict(_sample(volume, found.labels, located, _centres(found)))


def _both_ways(volume: Volume, network: Network) -> Located:
    """The locator's answer averaged over the scan and its mirror image."""
    plain = locate(volume, network)
    mirrored = locate(volume, lambda image: network(np.ascontiguousarray(image[..., ::-1]))[..., ::-1])
    classes = (plain.classes.astype(np.float32) + mirrored.classes.astype(np.float32)) / 2
    heat = (plain.heat.astype(np.float32) + mirrored.heat.astype(np.float32)) / 2
    return replace(plain, classes=classes.astype(np.float16), heat=heat.astype(np.float16))


def _doubt(found: LevelMap) -> str:
    cervical = [item for item in found.found if item.level is not None]
    if len(cervical) < MIN_LEVELS:
        return f"only {len(cervical)} cervical levels found"
    least = min(item.confidence for item in cervical)
    return f"a level's confidence is only {least:.2f}" if least < MIN_CONFIDENCE else ""


def _disagreement(found: LevelMap, volume: Volume, network: Network) -> str:
    """In what a copy that is cut short differs from the whole scan, or nothing."""
    cut = round(volume.shape[0] * CUT_SHARE)
    for name, part in (("above", slice(0, volume.shape[0] - cut)), ("below", slice(cut, volume.shape[0]))):
        short = volume.crop(part, slice(None), slice(None))
        other = _centres(find_levels(_both_ways(short, network), LevelSettings(chain=ChainSettings(temperature=1.0))))
        shared = [label for label in other if label in _centres(found) and label <= THORACIC]
        apart = [label for label in shared if np.linalg.norm(other[label] - _centres(found)[label]) > AGREE_MM]
        if len(shared) < MIN_LEVELS - 1 or apart:
            return f"cut {name}, {len(apart)} of {len(shared)} levels move"
    return ""


def scanned_slices(volume: Volume) -> slice:
    """The slices that were really scanned: some collections blank the others but for a strip around the canal.

    Returns:
        Range of z in which more than ``MIN_TISSUE`` of the tissue of a full slice is left.
    """
    tissue = (volume.hu > BODY_HU).sum(axis=(1, 2))
    full = np.flatnonzero(tissue > MIN_TISSUE * np.percentile(tissue, 90))
    return slice(int(full.min()), int(full.max()) + 1) if len(full) else slice(0, len(tissue))


def _only_scanned(volume: Volume) -> Volume:
    """The volume with air outside ``scanned_slices``; its labels hold nothing there, so the network learns as much."""
    kept = scanned_slices(volume)
    hu = np.full_like(volume.hu, AIR_HU)
    hu[kept] = volume.hu[kept]
    return replace(volume, hu=hu)


def _centres(found: LevelMap) -> Centres:
    """Centres of the vertebrae whose middle was scanned."""
    return {item.label: np.asarray(item.center_mm) for item in found.found if item.inside}


def _links(marks: Mapping[int, Point]) -> tuple[Link, ...]:
    labels = sorted(marks)
    if labels != list(range(labels[0], labels[-1] + 1)):
        raise StudyError(f"expected marks of consecutive levels, got {labels}", fix="Mark the level between them too")
    return tuple(Link(min(k - 1, THORACIC_STATE), None, np.asarray(marks[k], np.float64), 1.0) for k in labels)


def _sample(volume: Volume, labels: NDArray[np.uint8], located: Located, centres: Centres) -> LocatorSample:
    """The scan on the locator's grid with these labels; thoracic vertebrae without a centre are unknown."""
    coarse = volume.resampled(SPACING_MM)
    x, y, z = np.rint(coarse.to_index(located.affine[:3, 3])).astype(int)
    part = coarse.crop(*(slice(int(a), int(a) + n) for a, n in zip((z, y, x), labels.shape, strict=True)))
    rows = [(label, *part.to_index(at)) for label, at in sorted(centres.items())]
    hu = np.clip(np.rint(part.hu), AIR_HU, 4000).astype(np.int16)
    mask = np.minimum(labels, CLASSES - 1).astype(np.uint8)
    return LocatorSample(hu, mask, np.asarray(rows, np.float64).reshape(-1, 4), thoracic_known=False)


def read_marks(path: Path) -> dict[str, dict[int, Point]]:
    """Level centres by scan from a JSON file: ``{"scan": {"levels": {"C1": [x, y, z], …}}}``, LPS mm.

    Raises:
        StudyError: not such a file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {scan: {_label(k): _point(v) for k, v in item["levels"].items()} for scan, item in content.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        fix = "See docs/how-to/train.md"
        raise StudyError(f"expected marks of levels: {error}", where=path.name, fix=fix) from error


def _label(name: str) -> int:
    return int(name[1:]) + (7 if name[0] == "T" else 0)


def _point(values: Iterable[float]) -> Point:
    x, y, z = (float(value) for value in values)
    return x, y, z


def self_train(
    scans: Path,
    network: Network,
    folder: Path,
    *,
    marks: Mapping[str, Mapping[int, Point]] | None = None,
    leave_out: frozenset[str] = frozenset(),
    progress: Callable[[str, str], None] | None = None,
) -> Iterator[Path]:
    """Samples of all ``*.nii*`` volumes of a folder that may teach; finished ones are skipped.

    Args:
        scans: folder of NIfTI volumes in HU.
        network: the locator.
        folder: where samples go.
        marks: by name of the scan (file name up to the first dot, without ``_ct``).
        leave_out: names of scans that are kept for testing.
        progress: called with a scan's name and what became of it.
    """
    from cspine.studies import open_study

    files = sorted(path for path in scans.glob("*.nii*") if not path.name.split(".")[0].endswith("_cord"))
    for number, path in enumerate(files):
        name = path.name.split(".")[0].removesuffix("_ct")
        target = f"scan-{number:06d}"
        if name in leave_out or (folder / target / "meta.json").exists():
            continue
        verdict = pseudo_label(open_study(path), network, (marks or {}).get(name))
        if progress:
            progress(name, verdict.reason or "kept")
        if verdict.sample is not None:
            yield write_sample(verdict.sample, folder, target)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(arguments: list[str] | None = None) -> int:
    """Entry of ``python -m cspine.training.self_training``; one line a scan on standard output."""
    from cspine.inference.bundle import Bundle
    from cspine.inference.runtime import make_runtime

    parser = argparse.ArgumentParser(description="Draw locator samples from unlabelled scans.")
    parser.add_argument("--scans", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, help="whose locator labels them (default: the one of cspine)")
    parser.add_argument("--out", type=Path, required=True, help="samples go to OUT/locator")
    parser.add_argument("--marks", type=Path, help="JSON of level centres that a reader set")
    parser.add_argument("--leave-out", type=Path, help="JSON whose keys name scans that are kept for testing")
    options = parser.parse_args(arguments)
    try:
        bundle = Bundle.load(options.bundle) if options.bundle else Bundle.default()
        loaded = make_runtime("openvino", None).load(bundle.model("locator"), "f32")
        samples = self_train(
            options.scans,
            lambda image: loaded({"image": image})["locator"],
            options.out / "locator",
            marks=read_marks(options.marks) if options.marks else None,
            leave_out=frozenset(read_marks(options.leave_out)) if options.leave_out else frozenset(),
            progress=lambda name, said: _say(f"{name}: {said}"),
        )
        _say(f"{sum(1 for _ in samples)} scans kept")
    except CspineError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
