"""Draw phantoms into a folder of training samples, while training reads what is already there.

``python -m cspine.training.generate --stage locator --out DIR --count 400`` may be run several times at once with
different ``--first``; it skips what exists, so the same command resumes.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from cspine.cases import Case
from cspine.errors import CspineError, UsageError
from cspine.training.recipe import PhantomData, load_recipe
from cspine.training.samples import Point, classifier_sample, locator_sample, refiner_sample, write_sample

if TYPE_CHECKING:
    from cspine.phantoms.blending import MeshLibrary
    from cspine.phantoms.fractures import Fracture
    from cspine.phantoms.scene import Scene

StageName = Literal["locator", "classifier"]
# The locator sees 2 mm voxels: solids sampled more finely would only cost time.
LOCATOR_SHAPE_MM = 1.1
CLASSIFIER_SHAPE_MM = 0.7
# Of the classifier's vertebrae: unbroken ones with an old fracture, and any with one confounder more than by nature.
OLD_FRACTURE_RATE = 0.15
CONFOUNDED_RATE = 0.35
# Share of broken vertebrae with a second fracture.
SECOND_FRACTURE_RATE = 0.25
# Seeds of different uses never meet.
SEED_BASE = {"locator": 10_000_000, "classifier": 20_000_000}


def phantom_with_thorax(
    seed: int,
    preset: str,
    shape_spacing: float,
    multiplier: float = 1.0,
    *,
    fracture_rate: float | None = None,
    meshes: MeshLibrary | None = None,
) -> tuple[Case, dict[int, Point]]:
    """A phantom case, and the body centres of T1 and below, which a ``Case`` does not hold.

    Args:
        seed: of patient, scanner and noise.
        preset: kind of scan, see ``phantoms.scanner.sample_scanner``.
        shape_spacing: mm between lattice points of the solids.
        multiplier: factor on the odds of fractures, as patients have them.
        fracture_rate: when given, every vertebra is broken with this chance instead.
        meshes: draw vertebrae from these as well as from parameters.
    """
    from cspine.phantoms.acquisition import acquire
    from cspine.phantoms.case import case_of
    from cspine.phantoms.scanner import PRESETS, sample_scanner
    from cspine.phantoms.scene import make_scene
    from cspine.phantoms.spine import sample_anatomy

    known = {name: name for name in PRESETS}
    if preset not in known:
        raise UsageError(f"no phantom preset {preset!r}, expected one of {', '.join(PRESETS)}")
    scene_seed, scanner_seed, noise_seed, plan_seed = np.random.SeedSequence(seed).spawn(4)
    scanner = sample_scanner(np.random.default_rng(scanner_seed), preset=known[preset])
    number = int(scene_seed.generate_state(1)[0])
    anatomy = sample_anatomy(np.random.default_rng([number, 1]))
    if fracture_rate is None:
        scene = make_scene(number, multiplier=multiplier, anatomy=anatomy, shape_spacing=shape_spacing, meshes=meshes)
    else:
        whole = make_scene(number, fractures="none", anatomy=anatomy, shape_spacing=shape_spacing, meshes=meshes)
        scene = eventful(whole, np.random.default_rng(plan_seed), fracture_rate)
    acquired = acquire(scene, scanner, np.random.default_rng(noise_seed))
    thoracic: dict[int, Point] = {}
    for label, pose in scene.spine.poses.items():
        if label > 7:
            x, y, z = pose[:3, 3]
            thoracic[label] = (float(x), float(y), float(z))
    return case_of(scene, acquired, name=f"phantom-{seed:08d}"), thoracic


def eventful(scene: Scene, rng: np.random.Generator, rate: float) -> Scene:
    """A scene in which much has happened, so that few phantoms teach much.

    Each cervical vertebra is broken with chance ``rate``, sometimes twice; some of the others were broken long ago.
    Broken or not, many have something that is only taken for a fracture.
    """
    from cspine.phantoms.fractures import plan_fracture
    from cspine.phantoms.lookalikes import any_confounder, old_fracture

    planned: list[Fracture] = []
    landmarks, odd = scene.spine.landmarks, dict(scene.confounders)
    for level in range(1, 8):
        marks = landmarks[level]
        if rng.random() < rate:
            count = 2 if rng.random() < SECOND_FRACTURE_RATE else 1
            planned += [plan_fracture(rng, level, marks) for _ in range(count)]
        elif rng.random() < OLD_FRACTURE_RATE:
            planned.append(old_fracture(rng, level, marks))
        if rng.random() < CONFOUNDED_RATE:
            odd[level] = (*odd.get(level, ()), any_confounder(rng, level, marks))
    return replace(scene, fractures=tuple(planned), confounders=odd)


def generate(
    stage: StageName,
    folder: Path,
    *,
    count: int,
    first: int = 0,
    step: int = 1,
    data: PhantomData | None = None,
    meshes: MeshLibrary | None = None,
) -> Iterator[Path]:
    """Write samples number ``first``, ``first + step``, … below ``count``; yields each path when it is complete.

    Args:
        stage: which network the samples are for.
        folder: where they go; finished ones are skipped.
        count: numbers run from 0 to ``count - 1``.
        first: the first number that this process makes.
        step: it makes every ``step``-th from there.
        data: presets and prevalence of the recipe.
        meshes: draw vertebrae from these as well as from parameters.
    """
    data = data or PhantomData()
    presets = data.locator_presets if stage == "locator" else data.classifier_presets
    for number in range(first, count, step):
        name = f"phantom-{number:06d}"
        if (folder / name / "meta.json").exists():
            continue
        preset = presets[number % len(presets)]
        seed = SEED_BASE[stage] + number
        if stage == "locator":
            # Half of the locator's patients are as they come, half have many fractures.
            multiplier = data.fracture_multiplier if number % 2 else 1.0
            case, thoracic = phantom_with_thorax(seed, preset, LOCATOR_SHAPE_MM, multiplier, meshes=meshes)
            yield write_sample(locator_sample(case, thoracic), folder, name)
        else:
            case, thoracic = phantom_with_thorax(
                seed, preset, CLASSIFIER_SHAPE_MM, fracture_rate=data.fracture_rate, meshes=meshes
            )
            # One scan at full resolution serves both stages; the classifier's sample says that both are complete.
            write_sample(refiner_sample(case), folder.parent / "refiner", name)
            yield write_sample(classifier_sample(case, thoracic), folder, name)


def main(arguments: list[str] | None = None) -> int:
    """Entry of ``python -m cspine.training.generate``; one line a sample on standard output."""
    parser = argparse.ArgumentParser(description="Draw phantoms into a folder of training samples.")
    parser.add_argument("--stage", choices=["locator", "classifier"], required=True)
    parser.add_argument("--out", type=Path, required=True, help="samples go to OUT/STAGE")
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--step", type=int, default=1)
    parser.add_argument("--meshes", type=Path, action="append", help="folder of C1..C7 meshes; may be given again")
    parser.add_argument("--recipe", default="base")
    parser.add_argument("--parent", type=int, default=0, help="stop when this process has gone")
    options = parser.parse_args(arguments)
    try:
        data = load_recipe(options.recipe).phantoms
        folder = options.out / options.stage
        meshes = None
        if options.meshes:
            from cspine.phantoms.blending import MeshLibrary

            meshes = MeshLibrary.load(options.meshes, share=data.mesh_share)
        for path in generate(
            options.stage, folder, count=options.count, first=options.first, step=options.step, data=data, meshes=meshes
        ):
            sys.stdout.write(f"{path.name}\n")
            sys.stdout.flush()
            if options.parent and os.getppid() != options.parent:
                return 0
    except CspineError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
