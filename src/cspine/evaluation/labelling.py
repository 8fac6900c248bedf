"""Real scans with masks: labelled once by a bundle, kept, and seen anew for every case that is made of them."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

import numpy as np

from cspine.errors import OutputError, StudyError, UsageError
from cspine.inference.predictor import Predictor
from cspine.volume import AIR_HU, Affine, Volume

Scale = tuple[float, float]
# How a scan is changed from case to case: turn about the z axis (degrees), size in the axial plane, added noise (HU).
TURN_DEG, SIZE, NOISE_HU = 6.0, 0.04, 10.0


def label_scan(path: Path, folder: Path, predictor: Predictor, scale: Scale | None = None) -> tuple[Path, str]:
    """Label a scan, unless its mask is there already.

    Args:
        path: of the study.
        folder: the mask goes there, named after the study; put another there to use that.
        predictor: whose masks are taken.
        scale: slope and intercept when the study is not HU.

    Returns:
        The file of the mask and its SHA-256.

    Raises:
        StudyError: the study cannot be read, or no cervical vertebra was found.
        OutputError: the mask cannot be written.
    """
    from cspine.studies.study import study_name

    file = folder / f"{study_name(path)}.npz"
    if not file.exists():
        prediction = predictor.predict_full(_opened(path, scale))
        if not ((prediction.labels >= 1) & (prediction.labels <= 7)).any():
            raise StudyError("no cervical vertebra was found", where=path.name, fix="Give another scan")
        part = folder / f".{file.name}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as stream:
                np.savez_compressed(stream, labels=prediction.labels, affine=prediction.labels_affine)
            part.replace(file)
        except OSError as error:
            raise OutputError(f"cannot write a mask: {error}", where=str(file)) from error
    return file, hashlib.sha256(file.read_bytes()).hexdigest()


@lru_cache(maxsize=2)
def labelled_scan(path: Path, labels: Path, scale: Scale | None = None) -> tuple[Volume, Volume]:
    """A scan and its mask (uint8, on a grid of its own); kept, since many cases are made of it.

    Raises:
        StudyError: either cannot be read.
    """
    try:
        with np.load(labels, allow_pickle=False) as stored:
            mask = Volume(stored["labels"], stored["affine"])
    except (OSError, ValueError, KeyError) as error:
        raise StudyError("the mask cannot be read", where=str(labels), fix="Remove it and run again") from error
    return _opened(path, scale), mask


def _opened(path: Path, scale: Scale | None) -> Volume:
    from cspine.studies import open_study

    return open_study(path, scale=scale)


def seen_anew(volume: Volume, labels: Volume, rng: np.random.Generator) -> tuple[Volume, Volume]:
    """The same neck as another scan: turned, scaled and perhaps mirrored in the axial plane, with more noise.

    Slices stay as they are, so that a thick-sliced scan is not blurred along z.

    Args:
        volume: HU, axes near left, back, head.
        labels: mask on any grid.
        rng: source of all chance.

    Returns:
        HU as int16 on the grid of ``volume``, and the mask on its moved grid.
    """
    move = _plane_move(volume, rng)
    seen = volume.resampled_to(np.asarray(move @ volume.affine), volume.shape, fill=AIR_HU).hu
    noise = rng.normal(0.0, rng.uniform(0.0, NOISE_HU), seen.shape).astype(np.float32)
    hu = np.clip(np.rint(seen + noise), AIR_HU, np.iinfo(np.int16).max).astype(np.int16)
    # What was at move @ p is seen at p; a mirrored grid is put back in order.
    moved = Volume(labels.hu, np.asarray(np.linalg.solve(move, labels.affine))).reoriented()
    return Volume(hu, volume.affine, volume.source), moved


def _plane_move(volume: Volume, rng: np.random.Generator) -> Affine:
    """4x4 in LPS mm: similarity in the axial plane about the middle of the volume."""
    angle = np.radians(rng.uniform(-TURN_DEG, TURN_DEG))
    size = float(np.exp(rng.uniform(-SIZE, SIZE)))
    mirrored = -1.0 if rng.random() < 0.5 else 1.0
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    middle = volume.to_world((np.asarray(volume.shape[::-1]) - 1) / 2)
    move = np.eye(4)
    move[:2, :2] = size * turn @ np.diag([mirrored, 1.0])
    move[:3, 3] = middle - move[:3, :3] @ middle
    return move


def parse_scan(text: str) -> tuple[Path, Scale | None]:
    """``PATH``, or ``PATH=SLOPE,INTERCEPT`` for a scan whose values are not HU.

    Raises:
        UsageError: no such path.
    """
    from cspine.studies.intensity import parse_scale

    path, scale = Path(text), None
    if not path.exists() and "=" in text:
        name, _, numbers = text.rpartition("=")
        path, scale = Path(name), parse_scale(numbers)
    if not path.exists():
        raise UsageError("there is no such file or folder", where=str(path))
    return path, scale
