"""How long one core takes for a whole phantom study, and how much memory.

    python benchmarks/phantom.py [--seed 1] [--slices 250]

A study of 512 x 512 pixels is made in one process with one thread, and timed in seconds of that core. For scale, the
same process has SimpleITK blur the finished volume and add noise to it, with one thread too: what a phantom would
cost at the least if its anatomy, its artefacts and its truth were free.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time

GOAL_SECONDS = 25.0


def main() -> None:
    """Measure and print a table."""
    # Before numpy is imported: it reads them once.
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    import numpy as np
    import SimpleITK as sitk

    from cspine.phantoms.acquisition import acquire
    from cspine.phantoms.case import case_of
    from cspine.phantoms.scanner import Scanner, field_of
    from cspine.phantoms.scene import make_scene

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--slices", type=int, default=250)
    options = parser.parse_args()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)

    begin = time.process_time()
    scene = make_scene(options.seed, multiplier=2.0)
    anatomy = time.process_time() - begin
    probe = Scanner(spacing=0.7, thickness=1.0, above_c1=40, below_c7=40)
    extra = options.slices * 0.7 - field_of(probe, scene.spine.poses).shape[0] * 0.7
    scanner = Scanner(spacing=0.7, thickness=1.0, above_c1=40 + extra / 2, below_c7=40 + extra / 2)
    case = case_of(scene, acquire(scene, scanner, np.random.default_rng(options.seed)), name="benchmark")
    whole = time.process_time() - begin
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    image = case.volume.to_sitk()
    begin = time.process_time()
    sitk.AdditiveGaussianNoise(sitk.DiscreteGaussian(image, 0.5), standardDeviation=50.0)
    peer = time.process_time() - begin

    print(f"phantom {' x '.join(map(str, case.volume.shape[::-1]))}, one core")
    print(f"  anatomy and fractures      {anatomy:8.1f} s")
    print(f"  whole study with truth     {whole:8.1f} s   goal {GOAL_SECONDS:.0f} s: {_verdict(whole <= GOAL_SECONDS)}")
    print(f"  SimpleITK blur and noise   {peer:8.1f} s   ratio {whole / peer:.1f}")
    volume = case.volume.hu.nbytes / 2**20
    print(f"  peak memory                {memory / 2**20:8.0f} MiB   volume itself {volume:.0f} MiB")


def _verdict(good: bool) -> str:
    return "met" if good else "missed"


if __name__ == "__main__":
    main()
