"""Draw the gallery of phantoms: ``python docs/images/make_gallery.py [levels|fractures|scanner …]``.

The pictures are 8-bit with 64 greys, so that each stays below 400 kB. All are bone window (centre 400, width 1800).
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from cspine.anatomy import LEVELS
from cspine.phantoms.acquisition import acquire
from cspine.phantoms.artefacts import motion_of
from cspine.phantoms.fracture_types import FractureType
from cspine.phantoms.fractures import plan_fracture
from cspine.phantoms.grid import Grid
from cspine.phantoms.scanner import Scanner
from cspine.phantoms.scene import Scene, make_scene

HERE = Path(__file__).parent
CENTER, WIDTH = 400.0, 1800.0
SCANNER = Scanner(kernel="bone", dose=1.4, thickness=0.8, beam_hardening=0.3)
Picture = NDArray[np.uint8]

# Level, type, severity and the plane that shows it best.
FRACTURES = (
    (1, FractureType.JEFFERSON, 0.6, "axial"),
    (2, FractureType.DENS_I, 0.6, "coronal"),
    (2, FractureType.DENS_II, 0.5, "sagittal"),
    (2, FractureType.DENS_III, 0.6, "coronal"),
    (2, FractureType.HANGMAN, 0.5, "axial"),
    (5, FractureType.TEARDROP, 0.6, "sagittal"),
    (6, FractureType.BURST, 0.7, "axial"),
    (5, FractureType.WEDGE, 0.6, "sagittal"),
    (6, FractureType.FACET, 0.6, "sagittal"),
    (4, FractureType.PILLAR, 0.5, "axial"),
    (5, FractureType.LAMINA, 0.5, "axial"),
    (7, FractureType.TRANSVERSE_PROCESS, 0.5, "axial"),
    (7, FractureType.SPINOUS_PROCESS, 0.6, "sagittal"),
    (5, FractureType.LAMINA, 0.05, "axial"),
)
AXES = {"axial": 0, "coronal": 1, "sagittal": 2}


def shown(hu: NDArray[np.int16]) -> Picture:
    """HU ``[rows, columns]`` as grey."""
    grey = np.clip((hu - CENTER + WIDTH / 2) / WIDTH * 255, 0, 255)
    return (grey // 4 * 4).astype(np.uint8)


def scan(
    scene: Scene, scanner: Scanner, center: NDArray[np.float64], size: tuple[float, float, float], seed: int = 7
) -> NDArray[np.int16]:
    """HU of a box of ``size`` (x, y, z mm) around ``center``."""
    grid = Grid.axis_aligned(center, size, (scanner.pixel, scanner.pixel, scanner.spacing))
    return acquire(scene, scanner, np.random.default_rng(seed), field=grid).volume.hu


def tile(hu: NDArray[np.int16], aspect: float, side: int, text: str) -> Picture:
    """One picture, ``side`` pixels square, with a caption."""
    image = Image.fromarray(shown(hu))
    rows = round(image.height * aspect)
    image = image.resize((image.width, rows), Image.Resampling.BICUBIC)
    image = image.resize((side, side), Image.Resampling.LANCZOS)
    ImageDraw.Draw(image).text((5, 4), text, fill=255)
    return np.asarray(image) // 4 * 4


def save(name: str, tiles: list[Picture], columns: int) -> None:
    """Tiles in rows of ``columns``."""
    tiles = tiles + [np.zeros_like(tiles[0])] * (-len(tiles) % columns)
    rows = [np.hstack(tiles[k : k + columns]) for k in range(0, len(tiles), columns)]
    Image.fromarray(np.vstack(rows)).save(HERE / f"gallery-{name}.png", optimize=True)


def levels() -> None:
    """Axial cuts of C1 to C7 of one phantom, and the column from the side and the front."""
    scene = make_scene(21, fractures="none")
    tiles = []
    for level in LEVELS:
        center = scene.spine.poses[level][:3, 3] + (0, 18, 0)
        hu = scan(scene, SCANNER, center, (110, 110, 2.4))
        tiles.append(tile(hu[len(hu) // 2], 1.0, 230, level.name))
    middle = (scene.spine.poses[1][:3, 3] + scene.spine.poses[7][:3, 3]) / 2
    for text, offset, thin in (("midline", 0.0, 2), ("pillars", 20.0, 2), ("front", 0.0, 1)):
        size = (6.0, 150.0, 150.0) if thin == 2 else (150.0, 6.0, 150.0)
        center = middle + (offset, 20.0 if thin == 2 else 2.0, 0.0)
        hu = np.take(scan(scene, SCANNER, center, size), 8, axis=thin)[::-1]
        tiles.append(tile(hu, SCANNER.spacing / SCANNER.pixel, 230, text))
    save("levels", tiles, 5)


def fractures() -> None:
    """One of each type, in the plane that shows it."""
    tiles = []
    for level, kind, severity, plane in FRACTURES:
        intact = make_scene(40 + level, fractures="none")
        planned = plan_fracture(
            np.random.default_rng(level), level, intact.spine.landmarks[level], type=kind, severity=severity
        )
        scene = replace(intact, fractures=(planned,))
        place = scene.spine.poses[level][:3, 3] + (0.0, 18.0 if level > 1 else 12.0, 4.0 if level == 2 else -2.0)
        box = Grid.axis_aligned(place, (84, 84, 84), 1.0)
        broken = np.argwhere(scene.render(box).fracture)
        axis = AXES[plane]
        counts = np.bincount(broken[:, axis], minlength=box.shape[axis])
        best = int(np.argmax(np.convolve(counts, (1, 2, 1), "same")))
        center = place.copy()
        center[2 - axis] = box.affine[2 - axis, 3] + best
        size = np.array([84.0, 84.0, 84.0])
        size[2 - axis] = 5.0
        hu = scan(scene, SCANNER, center, tuple(size))
        cut = np.take(hu, hu.shape[axis] // 2, axis=axis)
        aspect = 1.0 if axis == 0 else SCANNER.spacing / SCANNER.pixel
        name = f"C{level} {kind.value}" + (" (hairline)" if severity < 0.1 else "")
        tiles.append(tile(cut if axis == 0 else cut[::-1], aspect, 210, name))
    save("fractures", tiles, 7)


def _visible_motion(scanner: Scanner) -> int:
    """A seed whose movement shows in the middle of eight slices."""
    moves = [motion_of(scanner, 8, np.random.default_rng(seed).spawn(2)[0]) for seed in range(40)]
    ghosts = [0.0 if m is None else float(np.hypot(m.ghost_x[4], m.ghost_y[4]) * m.share[4]) for m in moves]
    return int(np.argmax(ghosts))


def scanner() -> None:
    """The same patient under different scanners."""
    scene = next(s for s in (make_scene(k, fractures="none") for k in range(60, 90)) if s.spine.anatomy.dental_metal)
    poses = scene.spine.poses
    views = (
        ("bone kernel", 5, {}),
        ("soft kernel", 5, {"kernel": "soft"}),
        ("quarter dose", 5, {"dose": 0.25}),
        ("5 mm slices", 5, {"thickness": 5.0, "kernel": "soft"}),
        ("shoulders, C7", 7, {"modulation": 0.25}),
        ("dental metal", 3, {"metal": 1.0}),
        ("motion", 6, {"motion": 1.0}),
        ("field with disc", 4, {"circle": 1.0}),
    )
    tiles = []
    for text, level, change in views:
        used = replace(SCANNER, **change)  # type: ignore[arg-type]
        center = poses[level][:3, 3] + (0, 10, 0)
        if used.metal > SCANNER.metal:
            mouth = Grid.axis_aligned(poses[2][:3, 3] + (0, -40, -5), (110, 60, 70), 2.0)
            filled = scene.render(mouth).metal.sum(axis=(1, 2))
            center = poses[2][:3, 3] + (0, -30, 0)
            center[2] = mouth.affine[2, 3] + 2.0 * float(np.argmax(filled))
        hu = scan(scene, used, center, (130, 130, 6.0), seed=_visible_motion(used) if used.motion else 7)
        tiles.append(tile(hu[len(hu) // 2], 1.0, 280, text))
    save("scanner", tiles, 4)


if __name__ == "__main__":
    for wanted in sys.argv[1:] or ("levels", "fractures", "scanner"):
        {"levels": levels, "fractures": fractures, "scanner": scanner}[wanted]()
