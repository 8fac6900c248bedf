"""Endless streams of random images for planar networks, and fixed validation images, from ``SAMPLES/planar``.

Reading a compressed scan costs as much as cutting several images, so each read serves a handful of them, which a
buffer then spreads over batches. Which images exist is known from the samples' index; which are drawn is decided by
``positive_share`` and ``bone_share``, or by the pipeline's ``balance`` steps where it has any: rows are then axial
images, and their class is whether they show a fracture (a vertebra, for a network that does not judge).
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from cspine.errors import StudyError
from cspine.imaging.balance import Table
from cspine.imaging.mixing import Batch
from cspine.inference.planar import Plane
from cspine.training.planar_draw import FRACTURE_UNIT, Example, Scan, check_steps, draw_image, is_alone
from cspine.training.planar_samples import read_planar
from cspine.training.recipe_stages import PlanarStage
from cspine.training.samples import read_meta, sample_paths

Tensors = dict[str, torch.Tensor]
Indices = NDArray[np.int64]
Group = Literal["positive", "bone", "rest"]
GROUPS: tuple[Group, ...] = ("positive", "bone", "rest")

# Images cut from a scan each time it is read, in training and for validation.
IMAGES_A_READ, HELD_BACK_A_READ = 8, 4
# Scans kept in memory.
KEPT_SCANS = 4
# Batches drawn between two looks at the folder.
RESCAN_EVERY = 50
WAIT_SECONDS = 2.0
# Of a mixed example is known what is known of both; shares may miss 1 by rounding.
KNOWN = 0.999


def judges(stage: PlanarStage) -> bool:
    """Whether the stage's network says anything about fractures."""
    return bool({"slice", "broken", "fracture"} & set(stage.network.heads)) or stage.network.fractured_boxes


def _locates(stage: PlanarStage, meta: dict[str, Any]) -> bool:
    """Whether a sample teaches the stage where vertebrae are: pixels and boxes need masks, ``visible`` names."""
    heads = set(stage.network.heads)
    named = any(row["visible"] for row in meta["images"])
    return ("visible" in heads and named) or (bool({"levels", "boxes"} & heads) and bool(meta.get("masks", True)))


@dataclass(frozen=True, slots=True)
class Entry:
    """Axial images of a sample, by what they show; a balanced data set may name an image more than once."""

    path: Path
    images: dict[Group, Indices]


class PlanarPool:
    """What may be drawn from a folder; grows as the folder does.

    Raises:
        RecipeError: the stage's pipeline does not suit images.
    """

    def __init__(self, folder: Path, stage: PlanarStage, *, held_back: bool, seed: int = 0) -> None:
        check_steps(stage)
        self.folder, self.stage, self.held_back, self.seed = folder, stage, held_back, seed
        self.entries: list[Entry] = []
        self.drawable: dict[Group, list[Entry]] = {name: [] for name in GROUPS}
        self._known: set[Path] = set()
        self._scans: OrderedDict[Path, Scan] = OrderedDict()

    def refresh(self) -> None:
        """Take in samples that were finished since the last look."""
        before = len(self.entries)
        for path in sample_paths(self.folder, held_back=self.held_back, fold=self.stage.fold):
            if path not in self._known:
                self._known.add(path)
                entry = Entry(path, self._grouped(read_meta(path)))
                if any(len(own) for own in entry.images.values()):
                    self.entries.append(entry)
        if len(self.entries) > before:
            drawable = self._balanced()
            self.drawable = {name: [entry for entry in drawable if len(entry.images[name])] for name in GROUPS}

    def _grouped(self, meta: dict[str, Any]) -> dict[Group, Indices]:
        """Axial images by group; those that would teach these heads nothing are left out."""
        judging, locating = judges(self.stage), _locates(self.stage, meta)
        rows: dict[Group, list[int]] = {name: [] for name in GROUPS}
        if "boxes" in self.stage.network.heads and not meta.get("masks", True):
            # Without masks every image would teach that there is nothing to find.
            return {name: np.zeros(0, np.int64) for name in GROUPS}
        # Where nobody says what images show, all may show bone.
        told = any(row["visible"] for row in meta["images"])
        for index, row in enumerate(meta["images"]):
            fractured, bone = row["slice"], bool(row["visible"]) or not told
            if not locating and (fractured is None or not judging):
                continue
            if judging and fractured:
                rows["positive"].append(index)
            else:
                rows["bone" if bone else "rest"].append(index)
        return {name: np.asarray(own, np.int64) for name, own in rows.items()}

    def _balanced(self) -> list[Entry]:
        """The entries after the pipeline's balance steps."""
        rows = [(number, index) for number, entry in enumerate(self.entries) for index in _all(entry)]
        if not self.stage.augment.balance or not rows:
            return list(self.entries)
        names = {(k, i): g for k, entry in enumerate(self.entries) for g, own in entry.images.items() for i in own}
        few: Group = "positive" if judges(self.stage) else "bone"
        classes = np.array([names[row] == few for row in rows], dtype=np.int64)
        if len(np.unique(classes)) < 2:
            return list(self.entries)
        table = self.stage.augment.balanced(Table(np.asarray(rows), classes), np.random.default_rng(self.seed))
        kept: dict[int, dict[Group, list[int]]] = {}
        for number, index in table.rows:
            own = kept.setdefault(int(number), {name: [] for name in GROUPS})
            own[names[int(number), int(index)]].append(int(index))
        return [
            Entry(self.entries[number].path, {name: np.asarray(found, np.int64) for name, found in own.items()})
            for number, own in sorted(kept.items())
        ]

    @property
    def ready(self) -> bool:
        """Is there anything to draw? A network that judges needs images with and without a fracture."""
        found = {name for name in GROUPS if self.drawable[name]}
        return bool(found) and (not judges(self.stage) or ("positive" in found and len(found) > 1))

    def draw(self, rng: np.random.Generator, count: int, *, plain: bool = False) -> list[Example]:
        """``count`` random images of one random scan, all of one group."""
        group = self._group(rng)
        entries = self.drawable[group]
        weights: NDArray[np.float64] | None = None
        if self.stage.augment.balance:
            counts = np.array([len(entry.images[group]) for entry in entries], dtype=np.float64)
            weights = counts / counts.sum()
        entry = entries[rng.choice(len(entries), p=weights)]
        scan = self.scan(entry.path)
        planes = self.stage.view.planes
        # Pictures that were labelled one by one are no volume to cut another way.
        plane: Plane = "axial" if is_alone(scan.sample) else planes[rng.integers(len(planes))]
        choice = entry.images[group] if plane == "axial" else _columns(scan, group)
        chosen = rng.choice(choice, count, replace=len(choice) < count)
        return [draw_image(scan, self.stage, plane, int(index), rng, plain=plain) for index in chosen]

    def _group(self, rng: np.random.Generator) -> Group:
        there = np.array([bool(self.drawable[name]) for name in GROUPS], dtype=np.float64)
        if self.stage.augment.balance:
            counts = [sum(len(entry.images[name]) for entry in self.drawable[name]) for name in GROUPS]
            share = np.array(counts, dtype=np.float64)
        else:
            positive = self.stage.positive_share if judges(self.stage) else 0.0
            bone = (1 - positive) * self.stage.bone_share
            share = np.array([positive, bone, 1 - positive - bone]).clip(min=0) * there
        if share.sum() == 0:
            share = there
        return GROUPS[rng.choice(len(GROUPS), p=share / share.sum())]

    def scan(self, path: Path) -> Scan:
        """A sample, read or still in memory."""
        if path not in self._scans:
            self._scans[path] = Scan(read_planar(path))
            while len(self._scans) > KEPT_SCANS:
                self._scans.popitem(last=False)
        self._scans.move_to_end(path)
        return self._scans[path]


def _all(entry: Entry) -> list[int]:
    return [int(index) for own in entry.images.values() for index in own]


def _columns(scan: Scan, group: Group) -> Indices:
    """Sagittal images of a group; all when it has none."""
    shown = {"positive": scan.broken, "bone": scan.bone & ~scan.broken, "rest": ~scan.bone}[group]
    return np.flatnonzero(shown) if shown.any() else np.arange(len(shown))


def collated(examples: list[Example], stage: PlanarStage, rng: np.random.Generator | None = None) -> Tensors:
    """A batch: every array with a first axis more; with ``rng`` mixed by the pipeline's ``batch`` steps."""
    arrays = {name: np.stack([example[name] for example in examples]) for name in examples[0]}
    if rng is not None and stage.augment.batch:
        arrays = _mixed(arrays, stage, rng)
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in arrays.items()}


def _mixed(arrays: dict[str, NDArray[Any]], stage: PlanarStage, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
    """Mixup and CutMix of images, masks and flags, all with the same partner and share."""
    count = len(arrays["image"])
    pixels = [name for name in ("levels", "fracture") if name in arrays]
    flags = [name for name in arrays if name not in ("image", *pixels)]
    columns = [arrays[name].reshape(count, -1) for name in flags]
    masks: NDArray[Any] | None = None
    for kind in pixels:
        part = arrays[kind] * np.uint8(FRACTURE_UNIT if kind == "fracture" else 1)
        masks = part if masks is None else masks + part
    mixed = stage.augment.apply_batch(Batch(arrays["image"], np.concatenate(columns, 1), masks), rng)
    out: dict[str, NDArray[Any]] = {"image": mixed.images}
    if mixed.masks is not None:
        both = {"levels": mixed.masks % FRACTURE_UNIT, "fracture": mixed.masks // FRACTURE_UNIT}
        out |= {name: both[name] for name in pixels}
    start = 0
    for name, column in zip(flags, columns, strict=True):
        values = mixed.labels[:, start : start + column.shape[1]].reshape(arrays[name].shape)
        out[name] = (values > KNOWN).astype(np.float32) if name.endswith("_known") else values
        start += column.shape[1]
    return out


class PlanarStream(IterableDataset[Tensors]):
    """Batches of random images without end.

    Args:
        folder: of planar samples; may be empty at first when a generator is writing to it.
        stage: the recipe's stage.
        seed: of the draws, with the rank of this process; workers get their own.
        patience: seconds to wait for the first sample.
    """

    def __init__(self, folder: Path, stage: PlanarStage, seed: tuple[int, ...], patience: float = 60.0) -> None:
        super().__init__()
        self.folder, self.stage, self.seed, self.patience = folder, stage, seed, patience

    def __iter__(self) -> Iterator[Tensors]:
        info = get_worker_info()
        rng = np.random.default_rng([*self.seed, 0 if info is None else info.id])
        if info is not None:
            torch.set_num_threads(1)
        pool = PlanarPool(self.folder, self.stage, held_back=False, seed=self.seed[0])
        self._wait(pool)
        size = self.stage.schedule.batch_size
        held: list[Example] = []
        drawn = 0
        while True:
            if drawn % RESCAN_EVERY == RESCAN_EVERY - 1:
                pool.refresh()
            while len(held) < max(2 * size, 4 * IMAGES_A_READ):
                held += pool.draw(rng, IMAGES_A_READ)
            order = rng.permutation(len(held))
            held = [held[k] for k in order]
            batch, held = held[:size], held[size:]
            yield collated(batch, self.stage, rng)
            drawn += 1

    def _wait(self, pool: PlanarPool) -> None:
        deadline = time.monotonic() + self.patience
        pool.refresh()
        while not pool.ready:
            if time.monotonic() > deadline:
                raise StudyError(
                    "no planar samples to draw from (a network that judges needs images with and without a fracture)",
                    where=str(self.folder),
                    fix="Prepare data or generate phantoms first, or give --phantoms",
                )
            time.sleep(WAIT_SECONDS)
            pool.refresh()


class PlanarHeldBack(Dataset[Tensors]):
    """Validation images, without augmentation; the same ones each time for a folder that no longer grows.

    Every fourth is of another scan, drawn as training draws, but for balancing.
    """

    def __init__(self, folder: Path, stage: PlanarStage, limit: int) -> None:
        plain = stage.augment.model_copy(update={"balance": (), "batch": ()})
        self.stage = stage.model_copy(update={"augment": plain})
        self.pool = PlanarPool(folder, self.stage, held_back=True)
        self.pool.refresh()
        self.count = limit if self.pool.entries else 0
        self._read: tuple[int, list[Example]] = (-1, [])

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensors:
        if not 0 <= index < self.count:
            raise IndexError(index)
        number, place = divmod(index, HELD_BACK_A_READ)
        if self._read[0] != number:
            rng = np.random.default_rng([number, 1])
            self._read = (number, self.pool.draw(rng, HELD_BACK_A_READ, plain=True))
        example = self._read[1][place]
        return {name: torch.from_numpy(value.copy()) for name, value in example.items()}


def planar_loaders(
    folder: Path, stage: PlanarStage, *, seed: tuple[int, ...], workers: int, limit: int, patience: float = 60.0
) -> tuple[DataLoader[Tensors], DataLoader[Tensors] | None]:
    """Training batches without end, and the held-back images if there are any; ``folder`` holds planar samples."""
    stream = PlanarStream(folder, stage, seed, patience)
    train = DataLoader(
        stream,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=3 if workers else None,
        persistent_workers=workers > 0,
    )
    held = PlanarHeldBack(folder, stage, limit)
    return train, DataLoader(held, batch_size=stage.schedule.batch_size) if len(held) else None
