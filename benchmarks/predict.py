"""A whole study, 300 DICOM slices of 512x512 on disk to findings and report: cspine against PyTorch eager.

The study is a phantom, written once as a DICOM series. Each way runs in a process of its own, in turns, after one
run that warms the disk cache:

- ``openvino`` and ``onnxruntime``: what ``cspine predict`` does, with that runtime;
- ``eager``: the same steps, but the same networks in PyTorch eager, float32, all threads. Their weights are random,
  which costs the same time; so that levels are found, each eager call is timed and then answered with what
  OpenVINO had answered to the same input in an untimed run before.

Prints median seconds of each step and of the whole, the time of the networks alone, and the peak memory of the
process. Imports are not counted; loading the networks is.

    python benchmarks/predict.py [--bundle DIR] [--study FOLDER] [--threads N] [--repeats 3]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

SLICES = 300
GOAL_SECONDS, GOAL_BYTES, GOAL_RATIO = 10.0, 2 * 2**30, 4.0
WAYS = ("openvino", "onnxruntime", "eager")
STEPS = ("open", "load", "locate", "levels", "outline", "stacks", "classify", "combine", "report", "whole", "networks")


def write_study(folder: Path) -> None:
    """A phantom of exactly 300 slices, 0.4 mm pixels and 0.7 mm apart, with a fracture of C5."""
    from cspine.phantoms.case import make_case
    from cspine.phantoms.scanner import Scanner
    from cspine.phantoms.write import write_dicom

    scanner = Scanner(pixel=0.4, spacing=0.7, thickness=0.8, above_c1=45.0, below_c7=65.0)
    case = make_case(20, scanner=scanner, multiplier=4.0, name="benchmark")
    whole = slice(None)
    start = max(0, case.volume.shape[0] - SLICES)
    cut = case.volume.crop(slice(start, None), whole, whole)
    write_dicom(replace(case, volume=cut, labels=None, fracture=None, boxes=()), folder)


class Timed:
    """Wraps a runtime; sums the seconds spent in its networks."""

    def __init__(self, runtime: Any) -> None:
        self.runtime, self.seconds, self.name = runtime, 0.0, runtime.name

    def supports(self, precision: str) -> bool:
        """As the runtime says."""
        return bool(self.runtime.supports(precision))

    def load(self, model: bytes, precision: str = "f32") -> Callable[[Any], Any]:
        """A network whose calls are timed."""
        network = self.runtime.load(model, precision)

        def call(inputs: Any) -> Any:
            start = time.perf_counter()
            answer = network(inputs)
            self.seconds += time.perf_counter() - start
            return answer

        return call


class Recorder:
    """Runs OpenVINO and keeps its answers by the digest of the input."""

    name = "recorder"

    def __init__(self, runtime: Any) -> None:
        self.runtime, self.answers = runtime, {}

    def supports(self, precision: str) -> bool:
        """float32 only, so that answers are those of the reference."""
        return precision == "f32"

    def load(self, model: bytes, precision: str = "f32") -> Callable[[Any], Any]:
        """A network that remembers."""
        network = self.runtime.load(model, precision)

        def call(inputs: Any) -> Any:
            answer = network(inputs)
            self.answers[digest(inputs)] = answer
            return answer

        return call


class Eager:
    """PyTorch eager networks of the base recipe that are run for their time and answer from a recording."""

    def __init__(self, answers: dict[str, Any], threads: int) -> None:
        import torch

        from cspine.inference.bundle import STAGES

        torch.set_num_threads(threads)
        self.answers, self.name, self.hidden = answers, f"torch {torch.__version__}", 0.0
        self._stages = iter(STAGES)

    def supports(self, precision: str) -> bool:
        """float32 only."""
        return precision == "f32"

    def load(self, *_: Any) -> Callable[[Any], Any]:
        """The predictor loads the stages in their order."""
        import torch

        from cspine.training.networks import build_network
        from cspine.training.recipe import load_recipe

        network = build_network(getattr(load_recipe("base"), next(self._stages)).network).eval()

        def call(inputs: Any) -> Any:
            with torch.inference_mode():
                network(*(torch.from_numpy(np.ascontiguousarray(value)) for value in inputs.values()))
            start = time.perf_counter()
            answer = self.answers[digest(inputs)]
            self.hidden += time.perf_counter() - start
            return answer

        return call


def digest(inputs: Any) -> str:
    """SHA-256 of all input arrays."""
    total = hashlib.sha256()
    for name, value in sorted(inputs.items()):
        total.update(name.encode() + np.ascontiguousarray(value).tobytes())
    return total.hexdigest()


def measure(way: str, study: Path, bundle_folder: Path | None, threads: int) -> dict[str, Any]:
    """Run in the child: one study, seconds of each step."""
    import cspine.reports as reports
    from cspine.inference.bundle import Bundle
    from cspine.inference.predictor import Predictor
    from cspine.inference.runtime import make_runtime
    from cspine.studies import open_study

    bundle = Bundle.default() if bundle_folder is None else Bundle.load(bundle_folder)
    eager = None
    if way == "eager":
        recorder = Recorder(make_runtime("openvino", threads))
        Predictor(bundle, recorder).predict(open_study(study, threads=threads))
        runtime = Timed(eager := Eager(recorder.answers, threads))
    else:
        runtime = Timed(make_runtime(way, threads))
    with tempfile.TemporaryDirectory() as out:
        start = time.perf_counter()
        volume = open_study(study, threads=threads)
        opened = time.perf_counter()
        prediction = Predictor(bundle, runtime).predict_full(volume)
        judged = time.perf_counter()
        reports.write(prediction, volume, Path(out))
        end = time.perf_counter()
    hidden = eager.hidden if eager else 0.0
    seconds = {**prediction.findings.provenance.seconds, "open": opened - start, "report": end - judged}
    seconds |= {"whole": end - start - hidden, "networks": runtime.seconds - hidden}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "seconds": seconds,
        "peak": peak,
        "shape": volume.shape,
        "judged": sum(level.probability is not None for level in prediction.findings.levels),
        "precision": prediction.findings.provenance.bundle.precision,
        "runtime": runtime.name,
    }


def in_child(way: str, study: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One measurement in a fresh process."""
    command = [sys.executable, __file__, "--measure", way, "--study", str(study), "--threads", str(options.threads)]
    if options.bundle:
        command += ["--bundle", str(options.bundle)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def table(results: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """Print medians as Markdown; medians by way and step."""
    medians = {
        way: {step: statistics.median(run["seconds"].get(step, 0.0) for run in runs) for step in STEPS}
        for way, runs in results.items()
    }
    print(f"| seconds | {' | '.join(results)} |\n|---|{'---|' * len(results)}")
    for step in STEPS:
        print(f"| {step} | {' | '.join(f'{medians[way][step]:.2f}' for way in results)} |")
    peaks = {way: statistics.median(run["peak"] for run in runs) for way, runs in results.items()}
    print(f"| peak memory, MiB | {' | '.join(f'{peaks[way] / 2**20:.0f}' for way in results)} |")
    return {way: {**medians[way], "peak": peaks[way]} for way in results}


def compare(study: Path, options: argparse.Namespace) -> bool:
    """Run all ways in turns and print; whether the goals are met."""
    results: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    in_child("openvino", study, options)
    for _ in range(options.repeats):
        for way, runs in results.items():
            runs.append(in_child(way, study, options))
    one = results["openvino"][0]
    print(f"\n{one['shape']} voxels, {one['judged']} levels judged")
    print(f"{options.threads} threads, medians of {options.repeats} runs")
    for way, runs in results.items():
        print(f"- {way}: {runs[0]['runtime']}, {runs[0]['precision']}")
    print()
    medians = table(results)
    fast, slow = medians["openvino"], medians["eager"]
    whole, alone = slow["whole"] / fast["whole"], slow["networks"] / fast["networks"]
    print(f"\nOpenVINO is {whole:.1f} times as fast as eager over the whole study, {alone:.1f} times in the networks.")
    met = fast["whole"] <= GOAL_SECONDS and fast["peak"] <= GOAL_BYTES and alone >= GOAL_RATIO
    print("goals met" if met else "goals NOT met: 10 s, 2 GiB, 4 times eager")
    return met


def main() -> int:
    """Run the comparison; 0 when the goals are met."""
    from cspine.inference.runtime import available_threads

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="bundle to run (default: the built-in one)")
    parser.add_argument("--study", type=Path, help="DICOM folder (default: a phantom is made)")
    parser.add_argument("--threads", type=int, default=available_threads())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--measure", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.study, options.bundle, options.threads)))
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        study = options.study or Path(temporary) / "study"
        if not study.is_dir():
            write_study(study)
        return 0 if compare(study, options) else 1


if __name__ == "__main__":
    raise SystemExit(main())
