"""Classifier samples from real bone: fractures planted into scans of unbroken necks, and untouched vertebrae beside.

``python -m cspine.training.planted --out DIR --count 40 SCAN [SCAN …]`` labels each scan once with a bundle's locator
and writes ``count`` samples of it, each with other fractures. A scan in other units than HU is given with its scale:
``SCAN=2400,-1000``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from cspine.errors import CspineError, UsageError
from cspine.inference.bundle import Bundle
from cspine.inference.predictor import Predictor
from cspine.training.samples import classifier_sample, write_sample
from cspine.volume import Volume

FRACTURE_RATE = 0.4
# Seeds of different uses never meet; each scan has room for this many.
SEED_BASE, SEED_STEP = 30_000_000, 10_000


def labelled(scan: str, predictor: Predictor) -> tuple[Volume, Volume]:
    """A scan and the mask that the locator gives it.

    Args:
        scan: path, with ``=SLOPE,INTERCEPT`` behind it when its values are not HU.
        predictor: whose locator is used.

    Raises:
        UsageError: the scale cannot be read.
        StudyError: the scan cannot be read.
    """
    from cspine.studies import open_study

    path, _, scale = scan.partition("=")
    volume = open_study(Path(path), scale=_scale(scale) if scale else None).reoriented()
    prediction = predictor.predict_full(volume)
    return volume, Volume(prediction.labels, prediction.labels_affine)


def _scale(text: str) -> tuple[float, float]:
    try:
        slope, intercept = (float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"expected SLOPE,INTERCEPT after '=', got {text!r}", where="scan") from error
    return slope, intercept


def planted_samples(scan: str, number: int, predictor: Predictor, folder: Path, count: int) -> Iterator[Path]:
    """Write ``count`` samples of scan ``number``; those that exist are skipped."""
    from cspine.phantoms.planting import planted_case

    names = [f"scan-{number:02d}-{k:06d}" for k in range(count)]
    wanted = [k for k, name in enumerate(names) if not (folder / name / "meta.json").exists()]
    if not wanted:
        return
    volume, labels = labelled(scan, predictor)
    for k in wanted:
        seed = SEED_BASE + SEED_STEP * number + k
        case = planted_case(volume, labels, seed=seed, rate=FRACTURE_RATE, name=names[k])
        yield write_sample(classifier_sample(case), folder, names[k])


def main(arguments: list[str] | None = None) -> int:
    """Entry of ``python -m cspine.training.planted``; one line a sample on standard output."""
    parser = argparse.ArgumentParser(description="Plant fractures into scans of unbroken necks.")
    parser.add_argument("scans", nargs="+", help="path, or path=SLOPE,INTERCEPT when values are not HU")
    parser.add_argument("--out", type=Path, required=True, help="samples go to OUT/classifier")
    parser.add_argument("--count", type=int, required=True, help="samples of each scan")
    parser.add_argument("--bundle", type=Path, help="whose locator labels the scans (default: the one of cspine)")
    options = parser.parse_args(arguments)
    try:
        predictor = Predictor(Bundle.load(options.bundle) if options.bundle else None)
        for number, scan in enumerate(options.scans):
            for path in planted_samples(scan, number, predictor, options.out / "classifier", options.count):
                sys.stdout.write(f"{path.name}\n")
                sys.stdout.flush()
    except CspineError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
