"""Vertebrae from a folder of meshes C1..C7 (PLY, STL or OBJ), made ready for the phantoms.

Convention of a set: millimetres, x to the patient's left, y to the back, z to the head (LPS), all seven vertebrae in
one frame, each a closed surface whose faces turn anticlockwise seen from outside. The level is read from the file's
name (``C3.ply``, ``c5_anything.stl``); other files, and discs (``c2c3disc.ply``), are left alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cspine.anatomy import LEVELS, Level
from cspine.errors import ShapeError
from cspine.phantoms.fitting import Fit, fit_vertebra
from cspine.phantoms.shapes import Shape
from cspine.phantoms.template import Points, Pose, inverse
from cspine.phantoms.vertebra import Landmarks
from cspine.phantoms.voxelise import shape_of_mesh

if TYPE_CHECKING:
    import trimesh

SUFFIXES = (".ply", ".stl", ".obj")
# Lattice of the finished solids, and of the first look at them (mm).
SET_SPACING_MM, _LOOK_SPACING_MM = 0.6, 1.2
# A cervical vertebra is between these wide, whoever it belongs to (mm).
_NARROWEST_MM, _WIDEST_MM = 30.0, 120.0
# "C3" at the start of the name or after a separator, with no digit after it and no further level in the name.
_LEVEL = re.compile(r"(?:^|[^a-z0-9])c([1-7])(?![0-9])", re.IGNORECASE)
_ANY_LEVEL = re.compile(r"c[1-7]", re.IGNORECASE)
# Meshes are whole bones: they fit closer than masks do (mm).
_WORST_FIT_MM = 1.6


@dataclass(frozen=True)
class MeshSet:
    """One person's C1..C7, ready to be posed.

    Attributes:
        name: of the folder.
        shapes: the solids by label 1..7, each in the local frame of the phantoms (mm; x left, y back, z head; origin
            at the centre of the body; C1: midline point between anterior arch and dens; C2: body below the dens).
        landmarks: named points in the same frames, as ``Spine.landmarks``.
        surfaces: ``(n, 3)`` points on each solid that correspond between sets, local mm.
        poses: local frame → frame of the set (4x4): the neutral posture.
        sizes: of each vertebra against the mean man's.
    """

    name: str
    shapes: dict[int, Shape]
    landmarks: dict[int, Landmarks]
    surfaces: dict[int, Points]
    poses: dict[int, Pose]
    sizes: dict[int, float]


def mesh_files(folder: Path) -> dict[int, Path]:
    """The file of each level in ``folder``.

    Raises:
        ShapeError: no such folder, a level without a file, or with several.
    """
    if not folder.is_dir():
        raise ShapeError("no such folder of meshes", where=str(folder), fix="Name a folder with C1.ply to C7.ply.")
    found: dict[int, list[Path]] = {int(level): [] for level in LEVELS}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in SUFFIXES or len(_ANY_LEVEL.findall(path.stem)) > 1:
            continue
        match = _LEVEL.search(path.stem)
        if match:
            found[int(match.group(1))].append(path)
    missing = [Level(k).name for k, paths in found.items() if not paths]
    if missing:
        raise ShapeError(
            f"no mesh of {', '.join(missing)}",
            where=str(folder),
            fix="A set needs C1 to C7, named so, as .ply, .stl or .obj.",
        )
    for level, paths in found.items():
        if len(paths) > 1:
            names = ", ".join(p.name for p in paths)
            raise ShapeError(f"{Level(level).name} has {len(paths)} files: {names}", where=str(folder), fix="Keep one.")
    return {level: paths[0] for level, paths in found.items()}


def load_mesh_set(folder: Path) -> MeshSet:
    """Read and prepare a set; some ten seconds.

    Raises:
        ShapeError: a file is missing, unreadable or open; units, order or orientation are wrong; a solid does not
            look like its level.
    """
    files = mesh_files(Path(folder))
    meshes = {level: _read(path) for level, path in files.items()}
    _check_units(meshes, files)
    _check_order(meshes, folder)
    _check_faces(meshes, folder)
    _check_facing(meshes, folder)
    fits: dict[int, Fit] = {}
    for level, mesh in meshes.items():
        look = shape_of_mesh(mesh, _LOOK_SPACING_MM, where=str(files[level]), exact=False)
        fits[level] = _fitted(level, look, files[level])
    out = MeshSet(Path(folder).name, {}, {}, {}, {}, {})
    for level, mesh in meshes.items():
        own = mesh.copy()
        own.apply_transform(inverse(fits[level].frame))
        solid = shape_of_mesh(own, SET_SPACING_MM, where=str(files[level]))
        # A second, finer look in the vertebra's own frame; its frame is kept, so that nothing is resampled.
        fit = _fitted(level, solid, files[level])
        out.shapes[level] = solid
        out.landmarks[level] = fit.marks
        out.surfaces[level] = fit.surface
        out.poses[level] = fits[level].frame
        out.sizes[level] = fit.size
    return out


def _read(path: Path) -> trimesh.Trimesh:
    """One file as triangles with shared corners."""
    import trimesh

    try:
        mesh = trimesh.load(path, force="mesh", process=True)
    except (ValueError, OSError, IndexError, KeyError, TypeError, AttributeError, NotImplementedError) as error:
        raise ShapeError(
            f"the mesh cannot be read: {error}", where=str(path), fix="Export it again as PLY, STL or OBJ."
        ) from error
    if not isinstance(mesh, trimesh.Trimesh) or not len(mesh.faces):
        raise ShapeError("the file holds no triangles", where=str(path), fix="Export it as a triangle surface.")
    mesh.merge_vertices(merge_tex=True, merge_norm=True)
    # A face that occurs twice is the wall between two parts that were modelled apart: both copies go.
    _, kind, count = np.unique(np.sort(mesh.faces, axis=1), axis=0, return_inverse=True, return_counts=True)
    first = np.zeros(len(mesh.faces), dtype=bool)
    first[np.unique(kind, return_index=True)[1]] = True
    mesh.update_faces(first & (count[kind] % 2 == 1) & mesh.nondegenerate_faces())
    return mesh


def _check_units(meshes: dict[int, trimesh.Trimesh], files: dict[int, Path]) -> None:
    for level, mesh in meshes.items():
        width = float(max(mesh.extents))
        if not np.isfinite(width) or not _NARROWEST_MM < width < _WIDEST_MM:
            unit = "metres" if 0.03 < width < 0.12 else "centimetres" if 3 < width < 12 else "another unit"
            raise ShapeError(
                f"{Level(level).name} is {width:.3g} across, expected {_NARROWEST_MM:.0f} to {_WIDEST_MM:.0f} mm",
                where=str(files[level]),
                fix=f"The unit must be millimetres; this looks like {unit}.",
            )


def _check_order(meshes: dict[int, trimesh.Trimesh], folder: Path) -> None:
    heights = {level: float(mesh.bounds[:, 2].mean()) for level, mesh in meshes.items()}
    for level in range(1, 7):
        step = heights[level] - heights[level + 1]
        if step < 4.0:
            raise ShapeError(
                f"{Level(level).name} lies {step:.0f} mm above {Level(level + 1).name}, expected 8 to 30 mm",
                where=str(folder),
                fix="z must point to the head, with all vertebrae in one frame, in place.",
            )


def _check_faces(meshes: dict[int, trimesh.Trimesh], folder: Path) -> None:
    """Mirroring the corners of a mesh without turning its faces leaves them pointing inwards."""
    inwards = [Level(level).name for level, mesh in meshes.items() if mesh.volume < 0]
    if inwards:
        raise ShapeError(
            f"the faces of {', '.join(inwards)} point inwards, as after mirroring",
            where=str(folder),
            fix="x must point to the patient's left. Mirror the set back; if left is left already, turn its faces.",
        )


def _check_facing(meshes: dict[int, trimesh.Trimesh], folder: Path) -> None:
    """Most of a vertebra's bone lies in its front half, in the body."""
    behind = [
        Level(level).name
        for level, mesh in meshes.items()
        if level > 2 and mesh.center_mass[1] > mesh.bounds[:, 1].mean()
    ]
    if len(behind) > 2:
        raise ShapeError(
            f"the bodies of {', '.join(behind)} lie behind their spinous processes",
            where=str(folder),
            fix="y must point to the back and x to the left (LPS): turn a RAS set by half a turn about z.",
        )


def _fitted(level: int, shape: Shape, path: Path) -> Fit:
    try:
        return fit_vertebra(level, shape, worst_mm=_WORST_FIT_MM)
    except ShapeError as error:
        raise ShapeError(error.message, where=str(path), fix=error.fix) from error
