"""Opening a CT of 300 slices of 512x512: cspine against SimpleITK's ImageSeriesReader, same files, same run.

Prints, for plain files and for JPEG Lossless, the median seconds of each, their ratio, and the peak memory of the
whole process against the size of the volume. Every measurement runs in a process of its own, in turns, after one
reading that warms the disk cache. cspine's time includes all checks and the SHA-256 of every file; SimpleITK's
includes finding and sorting the files (GetGDCMSeriesFileNames).

    python benchmarks/open_study.py [--slices 300] [--repeats 5] [--data FOLDER]
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

SYNTAXES = {"explicit little endian": "1.2.840.10008.1.2.1", "JPEG Lossless SV1": "1.2.840.10008.1.2.4.70"}
SIDE = 512
MIB = 2**20


def write(folder: Path, slices: int, syntax: str) -> None:
    """A neck-like cylinder with the noise of a bone kernel, so that it compresses like a real scan (about 1.8:1)."""
    from dicom_factory import Grid, make_slice, save

    rng = np.random.default_rng(0)
    grid = Grid(count=slices, rows=SIDE, columns=SIDE, spacing=(0.4, 0.4), thickness=0.6)
    y, x = np.mgrid[:SIDE, :SIDE]
    body = (x - 250) ** 2 + (y - 270) ** 2 < 180**2
    bone = (x - 250) ** 2 + (y - 300) ** 2 < 40**2
    clean = np.where(bone, 400, np.where(body, 40, -1000))
    noise = rng.normal(0, 1, (8, SIDE, SIDE))
    folder.mkdir(parents=True)
    for k in range(slices):
        hu = clean + noise[k % 8] * np.where(body, 45, 12) + k % 5
        ds = make_slice(grid, k, k, hu=np.clip(np.rint(hu), -1024, 3000).astype(np.int16))
        save(ds, folder / f"{k:04d}.dcm", syntax)


def open_with_cspine(folder: str) -> tuple[int, ...]:
    """Shape of the volume."""
    from cspine.studies import open_study

    return open_study(folder).shape


def open_with_sitk(folder: str) -> tuple[int, ...]:
    """Shape of the image, as an array would have it."""
    import SimpleITK as sitk

    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(folder))
    return tuple(reader.Execute().GetSize()[::-1])


def measure(reader: str, folder: str) -> None:
    """Run in the child: import first, then time one opening; prints JSON."""
    if reader == "cspine":
        import cspine.studies  # noqa: F401
    else:
        import SimpleITK  # noqa: F401
    run = open_with_cspine if reader == "cspine" else open_with_sitk
    start = time.perf_counter()
    shape = run(folder)
    seconds = time.perf_counter() - start
    # Linux counts kilobytes, macOS bytes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(json.dumps({"seconds": seconds, "peak": peak, "shape": shape}))


def in_child(reader: str, folder: Path) -> dict[str, float]:
    """One measurement in a fresh process."""
    command = [sys.executable, __file__, "--measure", reader, "--data", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def compare(name: str, folder: Path, slices: int, repeats: int) -> bool:
    """Print one row; whether the goals are met."""
    runs: dict[str, list[dict[str, float]]] = {"cspine": [], "sitk": []}
    for reader in runs:
        in_child(reader, folder)
    for _ in range(repeats):
        for reader, results in runs.items():
            results.append(in_child(reader, folder))
    seconds = {reader: statistics.median(r["seconds"] for r in results) for reader, results in runs.items()}
    peak = {reader: statistics.median(r["peak"] for r in results) for reader, results in runs.items()}
    volume = slices * SIDE * SIDE * 2
    ratio, memory = seconds["sitk"] / seconds["cspine"], peak["cspine"] / volume
    print(
        f"{name:24} cspine {seconds['cspine']:.3f} s, SimpleITK {seconds['sitk']:.3f} s, "
        f"{ratio:.2f} times as fast; peak {peak['cspine'] / MIB:.0f} MiB = {memory:.2f} x volume "
        f"(SimpleITK {peak['sitk'] / volume:.2f} x)"
    )
    return ratio >= 1 and memory <= 1.5


def main() -> int:
    """Run the comparison; 0 when both goals are met for both kinds of file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--data", help="folder for the generated files; kept when given")
    parser.add_argument("--measure", choices=("cspine", "sitk"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, options.data)
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(options.data or temporary)
        met = []
        for name, syntax in SYNTAXES.items():
            folder = base / f"{options.slices}-{syntax}"
            if not folder.is_dir():
                write(folder, options.slices, syntax)
            met.append(compare(name, folder, options.slices, options.repeats))
    print("goals met" if all(met) else "goals NOT met: at least as fast as SimpleITK, at most 1.5 x the volume")
    return 0 if all(met) else 1


if __name__ == "__main__":
    raise SystemExit(main())
