"""Draw phantoms into a folder of training samples, while training reads what is already there.

``python -m cspine.training.generate --stage locator --out DIR --count 400`` may be run several times at once with
different ``--first``; it skips what exists, so the same command resumes. Phantoms of ``--stage classifier`` teach
refiner and planar networks as well, those of ``--stage planar`` these alone, those of ``--stage all`` every stage.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from cspine.cases import Case
from cspine.errors import CspineError, UsageError
from cspine.training.planar_samples import planar_sample, write_planar
from cspine.training.recipe import PhantomData, PlanarStage, load_recipe
from cspine.training.samples import Point, classifier_sample, locator_sample, refiner_sample, write_sample

if TYPE_CHECKING:
    from cspine.phantoms.blending import MeshLibrary
    from cspine.phantoms.fractures import Fracture
    from cspine.phantoms.scene import Scene

# What phantoms are drawn for; a planar sample serves every planar stage.
Drawn = Literal["locator", "classifier", "planar", "all"]
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
# Samples of one phantom that each choice writes, in this order.
WRITTEN: dict[Drawn, tuple[str, ...]] = {
    "locator": ("locator",),
    "planar": ("planar",),
    "classifier": ("refiner", "planar", "classifier"),
    "all": ("locator", "refiner", "planar", "classifier"),
}


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
    stage: Drawn,
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
        stage: which networks the samples are for; ``all`` writes those of every stage from the same phantom.
        folder: where they go, each kind to a sub-folder of its own; finished ones are skipped.
        count: numbers run from 0 to ``count - 1``.
        first: the first number that this process makes.
        step: it makes every ``step``-th from there.
        data: presets and prevalence of the recipe.
        meshes: draw vertebrae from these as well as from parameters.
    """
    data = data or PhantomData()
    presets = data.locator_presets if stage == "locator" else data.classifier_presets
    last = WRITTEN[stage][-1]
    # Samples for the classifier that were drawn before planar ones were are complete without them.
    needed = WRITTEN[stage] if stage == "all" else (last,)
    for number in range(first, count, step):
        name = f"phantom-{number:06d}"
        if all((folder / kind / name / "meta.json").exists() for kind in needed):
            continue
        preset = presets[number % len(presets)]
        if stage == "locator":
            # Half of the locator's patients are as they come, half have many fractures.
            multiplier = data.fracture_multiplier if number % 2 else 1.0
            seed = SEED_BASE["locator"] + number
            case, thoracic = phantom_with_thorax(seed, preset, LOCATOR_SHAPE_MM, multiplier, meshes=meshes)
        else:
            seed = SEED_BASE["classifier"] + number
            case, thoracic = phantom_with_thorax(
                seed, preset, CLASSIFIER_SHAPE_MM, fracture_rate=data.fracture_rate, meshes=meshes
            )
        for kind in WRITTEN[stage]:
            write_kind(kind, case, thoracic, folder, name)
        yield folder / last / name


def write_kind(kind: str, case: Case, thoracic: dict[int, Point], folder: Path, name: str) -> Path:
    """Write the sample of one kind (locator, refiner, planar, classifier) of a case as ``folder/kind/name``.

    Raises:
        OutputError: the folder cannot be written.
        StudyError: the case has no labels.
    """
    if kind == "planar":
        return write_planar(planar_sample(case), folder / kind, name)
    if kind == "refiner":
        return write_sample(refiner_sample(case), folder / kind, name)
    made = locator_sample if kind == "locator" else classifier_sample
    return write_sample(made(case, thoracic), folder / kind, name)


@contextmanager
def generating(
    recipe: str, stage: str, out: Path, count: int, processes: int, meshes: tuple[Path, ...] = ()
) -> Iterator[None]:
    """Draw phantoms in the background within the block; children end with it, finished samples stay.

    Args:
        recipe: name or TOML file; says what is drawn.
        stage: which of its networks they are for, or ``all``.
        out: folder of the samples.
        count: phantoms.
        processes: that draw.
        meshes: folders of C1..C7 meshes.
    """
    children = []
    for first in range(processes):
        command = [sys.executable, "-m", "cspine.training.generate", "--stage", drawn_for(recipe, stage)]
        command += ["--out", str(out), "--count", str(count), "--first", str(first), "--step", str(processes)]
        command += ["--recipe", recipe, "--parent", str(os.getpid())]
        command += [part for folder in meshes for part in ("--meshes", str(folder))]
        log = out / f"generate-{stage}-{first}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as stream:
            children.append(subprocess.Popen(command, stdout=stream, stderr=stream))
    try:
        yield
    finally:
        for child in children:
            child.terminate()
        for child in children:
            child.wait()


def drawn_for(recipe: str, stage: str) -> Drawn:
    """What has to be drawn for a stage of a recipe, so that nothing has to be drawn again for its other stages."""
    if stage == "all":
        return "all"
    stages = dict(load_recipe(recipe).stages())
    solid = {name for name, own in stages.items() if not isinstance(own, PlanarStage)}
    if stage in stages.keys() - solid:
        # One scan at full resolution serves refiner and classifier too.
        return "all" if solid & {"refiner", "classifier"} else "planar"
    return "locator" if stage == "locator" else "classifier"


def main(arguments: list[str] | None = None) -> int:
    """Entry of ``python -m cspine.training.generate``; one line a sample on standard output."""
    parser = argparse.ArgumentParser(description="Draw phantoms into a folder of training samples.")
    parser.add_argument("--stage", choices=sorted(WRITTEN), required=True)
    parser.add_argument("--out", type=Path, required=True, help="samples go to OUT/KIND")
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--step", type=int, default=1)
    parser.add_argument("--meshes", type=Path, action="append", help="folder of C1..C7 meshes; may be given again")
    parser.add_argument("--recipe", default="base")
    parser.add_argument("--parent", type=int, default=0, help="stop when this process has gone")
    options = parser.parse_args(arguments)
    try:
        data = load_recipe(options.recipe).phantoms
        meshes = None
        if options.meshes:
            from cspine.phantoms.blending import MeshLibrary

            meshes = MeshLibrary.load(options.meshes, share=data.mesh_share)
        made = generate(
            options.stage,
            options.out,
            count=options.count,
            first=options.first,
            step=options.step,
            data=data,
            meshes=meshes,
        )
        for path in made:
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
