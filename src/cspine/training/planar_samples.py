"""Planar samples on disk: a whole scan, small enough to keep, with what every image of it shows.

Unlike the others these are compressed, since they hold the whole field: about a tenth of the published files. An
index in ``meta.json`` says which axial images show what, so that images can be chosen without reading the scan.
"""

from __future__ import annotations

import json
import shutil
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cspine.anatomy import LEVELS, Level
from cspine.cases import Case, Pictures
from cspine.errors import GeometryError, OutputError, StudyError
from cspine.inference.planar import Head
from cspine.inference.planar_images import picture_volume, planar_labels, planar_volume
from cspine.training.samples import FORMAT, fracture_owners, read_meta, stored_hu
from cspine.volume import Volume

# An image shows a vertebra when at least this much of it lies in it, and a fracture likewise.
MIN_SHOWN_MM2, MIN_BROKEN_MM2 = 30.0, 4.0

Flags = tuple[bool | None, ...]


@dataclass(frozen=True, slots=True)
class PlanarSample:
    """A scan as planar networks are taught on it.

    Attributes:
        volume: int16, what ``inference.planar_images.planar_volume`` gives; grey levels 0..255 when ``grey``.
        labels: uint8 mask on its grid, values of ``cspine.anatomy``; None when nobody outlined anything.
        fracture: uint8 on its grid, 1..7 where an acute fracture of C1..C7 is, else 0; None when no place is known.
        fractured: whether C1..C7 are fractured; None where unknown.
        placed: whether it is known where in C1..C7 the fracture is (True for intact ones).
        types: names of the fractures of C1..C7.
        image_fractured: for pictures that were labelled one by one, whether each shows a fracture; else None. Nothing
            lies between two such pictures.
        image_levels: for such pictures without a mask, the levels 1..7 that each shows, None where unknown; else None.
        grey: the values are grey levels of pictures, not HU, and millimetres mean nothing.
    """

    volume: Volume
    labels: NDArray[np.uint8] | None
    fracture: NDArray[np.uint8] | None
    fractured: Flags
    placed: tuple[bool, ...]
    types: tuple[tuple[str, ...], ...]
    image_fractured: Flags | None = None
    image_levels: tuple[tuple[int, ...] | None, ...] | None = None
    grey: bool = False


def planar_sample(case: Case) -> PlanarSample:
    """A case at the resolution that planar networks are taught with."""
    if case.pictures is not None:
        return _of_pictures(case, case.pictures)
    volume = planar_volume(Volume(case.volume.hu, case.volume.affine))
    labels = None
    fracture = None
    if case.labels is not None:
        labels = planar_labels(Volume(case.labels, case.volume.affine).reoriented(), volume).hu
        if case.fracture is not None:
            fracture = _owned_fracture(case, case.labels, volume)
    truth = [case.levels.get(level) for level in LEVELS]
    return PlanarSample(
        volume=Volume(stored_hu(volume.hu), volume.affine),
        labels=labels,
        fracture=fracture,
        fractured=tuple(None if item is None else item.fractured for item in truth),
        placed=tuple(
            item is not None and (not item.fractured or (item.place_known and fracture is not None)) for item in truth
        ),
        types=tuple(() if item is None else item.types for item in truth),
    )


def _of_pictures(case: Case, pictures: Pictures) -> PlanarSample:
    """Pictures that were labelled one by one: made smaller when they are large, never mixed with each other."""
    small = picture_volume(Volume(case.volume.hu, case.volume.affine))
    labels = None if case.labels is None else planar_labels(Volume(case.labels, case.volume.affine), small).hu
    owned = _owned_pictures(case, pictures)
    fracture = None if owned is None else planar_labels(Volume(owned, case.volume.affine), small).hu
    shown = tuple(None if levels is None else tuple(int(level) for level in levels) for levels in pictures.levels)
    # Of grey pictures a pixel is a millimetre, so that sizes count pixels.
    return PlanarSample(
        volume=Volume(stored_hu(small.hu), np.eye(4) if pictures.grey else small.affine),
        labels=labels,
        fracture=fracture,
        fractured=(None,) * len(LEVELS),
        placed=(fracture is not None,) * len(LEVELS),
        types=((),) * len(LEVELS),
        image_fractured=pictures.fractured,
        image_levels=shown if labels is None and any(levels is not None for levels in shown) else None,
        grey=pictures.grey,
    )


def _owned_pictures(case: Case, pictures: Pictures) -> NDArray[np.uint8] | None:
    """Fracture pixels with their level: that of the mask, or the one that the picture shows; None without either."""
    if case.fracture is None:
        return None
    if case.labels is None:
        alone = [levels[0] if levels is not None and len(levels) == 1 else 0 for levels in pictures.levels]
        known = all(level or not part.any() for level, part in zip(alone, case.fracture, strict=True))
        return case.fracture * np.asarray(alone, np.uint8)[:, None, None] if known else None
    out = np.zeros(case.fracture.shape, np.uint8)
    for z, part in enumerate(case.fracture):
        present = [int(label) for label in np.unique(case.labels[z]) if 1 <= label <= Level.C7]
        index = np.argwhere(part[None])
        if len(index) and present:
            owner = fracture_owners(index, case.labels[z : z + 1], case.volume.spacing, present)
            out[z][part] = np.where(owner <= Level.C7, owner, 0)
    return out


def _owned_fracture(case: Case, labels: NDArray[np.uint8], volume: Volume) -> NDArray[np.uint8]:
    """Fracture voxels on the planar grid with the level they belong to; a voxel that holds any of it counts."""
    out = np.zeros(volume.shape, np.uint8)
    if case.fracture is None or not case.fracture.any():
        return out
    index = np.argwhere(case.fracture)
    broken = [int(level) for level, truth in case.levels.items() if truth.fractured]
    owner = fracture_owners(index, labels, case.volume.spacing, broken)
    at = np.rint(volume.to_index(case.volume.to_world(index[:, ::-1]))).astype(int)[:, ::-1]
    inside = ((at >= 0) & (at < volume.shape)).all(axis=1) & (owner >= 1) & (owner <= Level.C7)
    out[tuple(at[inside].T)] = owner[inside]
    return out


def image_index(sample: PlanarSample) -> list[dict[str, Any]]:
    """For each axial image what it shows: ``visible`` and ``broken`` levels 1..7, and ``slice`` 0, 1 or None."""
    x, y, _ = sample.volume.spacing
    pixel = x * y
    rows: list[dict[str, Any]] = []
    for z in range(sample.volume.shape[0]):
        said = None if sample.image_levels is None else sample.image_levels[z]
        visible = list(said or ()) if sample.labels is None else _shown(sample.labels[z], MIN_SHOWN_MM2 / pixel)
        broken = [] if sample.fracture is None else _shown(sample.fracture[z], MIN_BROKEN_MM2 / pixel)
        if sample.image_fractured is not None and sample.image_fractured[z] and len(visible) == 1:
            broken = visible
        rows.append({"visible": visible, "broken": broken, "slice": _says(sample, z, visible, broken)})
    return rows


def _shown(image: NDArray[np.uint8], least: float) -> list[int]:
    counts = np.bincount(image.ravel(), minlength=8)[1:8]
    return [label for label, count in enumerate(counts, start=1) if count >= max(1.0, least)]


def _says(sample: PlanarSample, z: int, visible: Sequence[int], broken: Sequence[int]) -> int | None:
    """Whether an image shows a fracture; None when that is not known."""
    if sample.image_fractured is not None:
        known = sample.image_fractured[z]
        return None if known is None else int(known)
    if broken:
        return 1
    unplaced = any(sample.fractured[label - 1] is not False and not sample.placed[label - 1] for label in visible)
    return None if unplaced or sample.labels is None else 0


def write_planar(sample: PlanarSample, folder: Path, name: str) -> Path:
    """Write a sample as ``folder/name``; it appears whole or not at all.

    Raises:
        OutputError: the folder cannot be written.
    """
    target = folder / name
    part = folder / f".{name}.{uuid.uuid4().hex[:8]}"
    arrays = {"hu": sample.volume.hu}
    arrays |= {key: value for key in ("labels", "fracture") if (value := getattr(sample, key)) is not None}
    meta = {
        "format": FORMAT,
        "kind": "planar",
        "affine": sample.volume.affine.tolist(),
        "fractured": sample.fractured,
        "placed": sample.placed,
        "types": sample.types,
        "image_fractured": sample.image_fractured,
        "image_levels": sample.image_levels,
        "masks": sample.labels is not None,
        "grey": sample.grey,
        "images": image_index(sample),
    }
    try:
        part.mkdir(parents=True)
        np.savez_compressed(part / "scan.npz", allow_pickle=False, **arrays)
        (part / "meta.json").write_text(json.dumps(meta))
        if not target.exists():
            part.replace(target)
    except OSError as error:
        raise OutputError(f"cannot write a training sample: {error}", where=str(target)) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


def read_planar(path: Path) -> PlanarSample:
    """A sample written by ``write_planar``.

    Raises:
        StudyError: not a sample, or damaged.
    """
    meta = read_meta(path)
    try:
        with np.load(path / "scan.npz", allow_pickle=False) as arrays:
            hu, labels, fracture = (arrays.get(key) for key in ("hu", "labels", "fracture"))
        return _unpacked(meta, hu, labels, fracture)
    except (OSError, ValueError, EOFError, KeyError, TypeError, BadZipFile, zlib.error, GeometryError) as error:
        raise StudyError(
            f"cannot read a planar training sample: {error}", where=str(path), fix="Delete that folder"
        ) from error


def _unpacked(
    meta: dict[str, Any],
    hu: NDArray[np.int16] | None,
    labels: NDArray[np.uint8] | None,
    fracture: NDArray[np.uint8] | None,
) -> PlanarSample:
    if hu is None or any(mask is not None and mask.shape != hu.shape for mask in (labels, fracture)):
        raise ValueError("arrays are missing or of different shapes")
    alone, levels = meta["image_fractured"], meta.get("image_levels")
    return PlanarSample(
        volume=Volume(hu, np.asarray(meta["affine"])),
        labels=labels,
        fracture=fracture,
        fractured=tuple(meta["fractured"]),
        placed=tuple(meta["placed"]),
        types=tuple(tuple(names) for names in meta["types"]),
        image_fractured=None if alone is None else tuple(alone),
        image_levels=None if levels is None else tuple(None if item is None else tuple(item) for item in levels),
        grey=bool(meta["grey"]),
    )


def heads_taught(folder: Path) -> frozenset[Head]:
    """Heads of a planar network that some sample of a folder teaches; only facts are read, no scan.

    A head that judges is taught by a fracture at least: of nothing but intact bone there is nothing to learn.

    Raises:
        StudyError: a sample is damaged.
    """
    taught: set[Head] = set()
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not path.name.startswith(".") and (path / "meta.json").is_file():
            taught |= _taught_by(read_meta(path))
    return frozenset(taught)


def _taught_by(meta: dict[str, Any]) -> set[Head]:
    shown = any(row["visible"] for row in meta["images"])
    broken = any(row["broken"] for row in meta["images"])
    taught: set[Head] = set()
    if shown:
        taught |= {"levels", "boxes", "visible"} if meta.get("masks", True) else {"visible"}
    if broken and meta.get("masks", True):
        taught |= {"fracture", "types"} if any(meta["types"]) else {"fracture"}
    if broken:
        taught.add("broken")
    if any(row["slice"] for row in meta["images"]):
        taught.add("slice")
    return taught


def boxes_of(labels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Boxes of C1..C7 in one image of labels: rows of label, x_min, y_min, x_max, y_max, pixels, edges; ``(n, 5)``."""
    rows = []
    for label, box in enumerate(ndimage.find_objects(labels, max_label=int(Level.C7)), start=1):
        if box is not None:
            rows.append((label, box[1].start, box[0].start, box[1].stop, box[0].stop))
    return np.asarray(rows, dtype=np.float32).reshape(-1, 5)
