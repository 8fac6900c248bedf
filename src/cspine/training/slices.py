"""The slice recipe: is there a fracture in one axial picture of 8 bits, whatever window it was shown with?

It is the method base's network on stacks of one slice without a mask, trained on axial slices of phantoms that are
shown as pictures are: one bone window among many, 8 bits, no millimetres. ``training.slice_scores`` scores a trained
one on labelled pictures.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from cspine.errors import StudyError
from cspine.studies.images import SliceImage
from cspine.training.data import Example, type_names
from cspine.training.recipe import SliceStage
from cspine.training.samples import ClassifierSample, read_classifier_sample, sample_paths
from cspine.training.stacks import EVIDENCE_STRIDE
from cspine.volume import AIR_HU

# A slice shows a fracture when at least this much of it lies in it, and none when no voxel does within this distance.
MIN_SHOWN_MM2, CLEAR_MM = 4.0, 2.0
# The middle of a vertebra seen from above lies this far behind its body centre, mm.
BACK_MM = 14.0
TRIES = 40

Image = NDArray[np.float32]
Float = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Picture:
    """One training example.

    Attributes:
        image: ``[size, size]``, -1 black to 1 white.
        evidence: ``[size / 4, size / 4]``, 1 where a fracture is.
    """

    image: Image
    evidence: Image

    @property
    def example(self) -> Example:
        """As the classifier's module takes it: a stack of one slice, three times the same and no mask."""
        stack = np.stack([self.image, self.image, self.image, np.zeros_like(self.image)])[None]
        shown = float(self.evidence.max())
        return {
            "stack": torch.from_numpy(stack),
            "vertebra": torch.tensor(shown),
            "slices": torch.tensor([shown]),
            "types": torch.zeros(len(type_names())),
            "types_known": torch.tensor(0.0),
            "evidence": torch.from_numpy(self.evidence)[None],
        }


def draw_picture(
    sample: ClassifierSample, stage: SliceStage, rng: np.random.Generator, *, broken: bool
) -> Picture | None:
    """A random axial slice of a sample as a picture; None when it has none that is wanted.

    Args:
        sample: a scan with its fractures.
        stage: sizes and windows of the recipe.
        rng: source of chance.
        broken: whether it must show a fracture, or must not.
    """
    points = np.asarray(sample.points[:, 1:], dtype=np.float64)
    if broken and not len(points):
        return None
    index = sample.volume.to_index(points) if len(points) else np.zeros((0, 3))
    slice_mm = sample.volume.spacing[2]
    origins = sample.volume.to_index(np.array([item.frame.origin for item in sample.vertebrae]))
    for _ in range(TRIES):
        near = index[rng.integers(len(index))] if broken else origins[rng.integers(len(origins))]
        z = round(float(near[2] + (0 if broken else rng.normal(0, 6.0 / slice_mm))))
        if not 0 <= z < sample.volume.shape[0]:
            continue
        away = np.abs(index[:, 2] - z) * slice_mm
        if not broken and len(away) and away.min() < CLEAR_MM:
            continue
        # Fractured or not, the picture is laid around a vertebra in the same way.
        vertebra = origins[np.abs(origins[:, 2] - z).argmin()]
        picture = _cut(sample, z, vertebra, index[away <= slice_mm / 2], stage, rng)
        if broken == bool(picture.evidence.any()):
            return picture
    return None


def _cut(
    sample: ClassifierSample, z: int, vertebra: Float, broken: Float, stage: SliceStage, rng: np.random.Generator
) -> Picture:
    """Turn, scale, shift and mirror one slice, and show it with a window."""
    dx, dy, _ = sample.volume.spacing
    size, pixel = stage.size, float(rng.uniform(*stage.pixel_mm))
    angle = np.deg2rad(rng.normal(0, stage.rotate_degrees))
    mirror = -1.0 if rng.random() < 0.5 else 1.0
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ np.diag([mirror, 1.0])
    middle = np.array([vertebra[0] * dx, vertebra[1] * dy + BACK_MM]) + rng.normal(0, stage.shift_mm, 2)
    # Picture (column, row) → voxel (x, y).
    matrix = np.diag([1 / dx, 1 / dy]) @ turn * pixel
    start = middle / (dx, dy) - matrix @ np.full(2, (size - 1) / 2)
    fill = AIR_HU if rng.random() < 0.5 else float(rng.uniform(-100, 60))
    plane = np.asarray(sample.volume.hu[z], dtype=np.float32)
    # ndimage counts rows first.
    hu = ndimage.affine_transform(
        plane, matrix[::-1, ::-1], start[::-1], output_shape=(size, size), order=1, cval=fill, prefilter=False
    )
    cells = size // EVIDENCE_STRIDE
    evidence = np.zeros((cells, cells), np.float32)
    if len(broken) * dx * dy >= MIN_SHOWN_MM2:
        at = np.linalg.solve(matrix, (broken[:, :2] - start).T).T
        cell = np.floor((at + 0.5) / EVIDENCE_STRIDE).astype(int)
        cell = cell[((cell >= 0) & (cell < cells)).all(1)]
        evidence[cell[:, 1], cell[:, 0]] = 1
    return Picture(_shown(hu, stage, rng), evidence)


def _shown(hu: Image, stage: SliceStage, rng: np.random.Generator) -> Image:
    """HU as a picture of 8 bits, -1 to 1, with noise and sometimes smoothed."""
    level, width = rng.uniform(*stage.window_level), rng.uniform(*stage.window_width)
    if rng.random() < stage.blur_probability:
        hu = ndimage.gaussian_filter(hu, rng.uniform(0.4, 1.2))
    hu = hu + rng.standard_normal(hu.shape, dtype=np.float32) * np.float32(rng.uniform(0, stage.noise_hu))
    grey = np.clip((hu - (level - width / 2)) / width, 0, 1) ** rng.uniform(*stage.gamma)
    return np.asarray(np.round(grey * 255) / 127.5 - 1, dtype=np.float32)


class Pictures(IterableDataset[Example]):
    """Batches of random pictures without end, from a folder of classifier samples that may be growing."""

    def __init__(self, folder: Path, stage: SliceStage, seed: int) -> None:
        super().__init__()
        self.folder, self.stage, self.seed = folder, stage, seed

    def __iter__(self) -> Iterator[Example]:
        rng = np.random.default_rng(self.seed)
        torch.set_num_threads(1)
        count = self.stage.schedule.batch_size
        while True:
            paths = _paths(self.folder, held_back=False)
            for _ in range(50):
                batch: Example = default_collate([self._draw(paths, rng) for _ in range(count)])
                yield batch

    def _draw(self, paths: list[Path], rng: np.random.Generator) -> Example:
        broken = bool(rng.random() < self.stage.positive_share)
        picture = None
        while picture is None:
            sample = read_classifier_sample(paths[rng.integers(len(paths))])
            picture = draw_picture(sample, self.stage, rng, broken=broken)
        return picture.example


class HeldBackPictures(Dataset[Example]):
    """A fixed set of pictures of samples that are held back, as many fractured as not."""

    def __init__(self, folder: Path, stage: SliceStage, limit: int) -> None:
        paths = _paths(folder, held_back=True)
        self.examples: list[Example] = []
        for number in range(limit):
            rng = np.random.default_rng(number)
            sample = read_classifier_sample(paths[number // 2 % len(paths)])
            picture = draw_picture(sample, stage, rng, broken=number % 2 == 0)
            if picture is not None:
                self.examples.append(picture.example)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]


def _paths(folder: Path, *, held_back: bool) -> list[Path]:
    """Phantoms only, whatever else lies there.

    Raises:
        StudyError: there are none.
    """
    found = [path for path in sample_paths(folder, held_back=held_back) if path.name.startswith("phantom-")]
    if not found:
        raise StudyError("no classifier samples of phantoms", where=str(folder), fix="Generate phantoms first")
    return found


def picture_loaders(
    folder: Path, stage: SliceStage, *, seed: int, workers: int, limit: int
) -> tuple[DataLoader[Example], DataLoader[Example]]:
    """Training batches without end and the held-back pictures; ``folder`` holds classifier samples."""
    train = DataLoader(Pictures(folder, stage, seed), batch_size=None, num_workers=min(workers, 1))
    held = DataLoader(HeldBackPictures(folder, stage, limit), batch_size=stage.schedule.batch_size)
    return train, held


def picture_tensor(picture: SliceImage, stage: SliceStage) -> torch.Tensor:
    """A picture as network input ``[1, 1, 4, size, size]``: its middle, ``stage.crop`` of its side, no millimetres."""
    from PIL import Image as Pillow

    if picture.unit != "grey":
        raise StudyError("expected a picture of grey levels, got HU", where=picture.source.name)
    rows, columns = picture.pixels.shape
    side = stage.crop * min(rows, columns)
    box = ((columns - side) / 2, (rows - side) / 2, (columns + side) / 2, (rows + side) / 2)
    whole = Pillow.fromarray(np.asarray(picture.pixels, dtype=np.float32))
    small = np.asarray(whole.resize((stage.size, stage.size), Pillow.Resampling.BILINEAR, box=box)) * 2 - 1
    return Picture(np.asarray(small, dtype=np.float32), np.zeros((1, 1), np.float32)).example["stack"][None]
