"""Endless streams of random training examples from a folder that may still be growing, and fixed validation sets."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate, get_worker_info

from cspine.errors import StudyError
from cspine.training.locator_windows import Window, draw_window
from cspine.training.recipe import ClassifierStage, LocatorStage, RefinerStage, StackWindow
from cspine.training.refiner_windows import RefinerWindow, draw_refiner_window
from cspine.training.samples import (
    read_classifier_sample,
    read_locator_sample,
    read_meta,
    read_refiner_sample,
    sample_paths,
)
from cspine.training.stacks import WHOLE, Stack, draw_stack

Example = dict[str, torch.Tensor]
Stage = LocatorStage | RefinerStage | ClassifierStage

# Batches drawn between two looks at the folder.
RESCAN_EVERY = 50
WAIT_SECONDS = 2.0
# Copies of real scans are named so.
SCAN = "scan-"
# Phantoms are named so; anything else is real.
PHANTOM = "phantom-"


def type_names() -> tuple[str, ...]:
    """Order of the type logits."""
    from cspine.phantoms.fracture_types import FractureType

    return tuple(str(item) for item in FractureType)


class Pool:
    """What may be drawn from a folder; grows as the folder does."""

    def __init__(self, folder: Path, stage: Stage, *, held_back: bool) -> None:
        self.folder, self.stage, self.held_back = folder, stage, held_back
        self.paths: list[Path] = []
        self.scans: list[Path] = []
        self.positives: list[tuple[Path, int]] = []
        # Those of the positives of which a part may be shown, since it is known where the fracture is.
        self.placed: list[tuple[Path, int]] = []
        self.negatives: list[tuple[Path, int]] = []
        self._known: set[Path] = set()

    def refresh(self) -> None:
        """Take in samples that were finished since the last look."""
        for path in sample_paths(self.folder, held_back=self.held_back, fold=self.stage.fold):
            if path in self._known:
                continue
            self._known.add(path)
            (self.paths if path.name.startswith(PHANTOM) else self.scans).append(path)
            if isinstance(self.stage, ClassifierStage):
                for index, item in enumerate(read_meta(path)["vertebrae"]):
                    (self.positives if item["fractured"] else self.negatives).append((path, index))
                    if item["fractured"] and item.get("evidence_known", True):
                        self.placed.append((path, index))

    @property
    def ready(self) -> bool:
        """Is there anything to draw?"""
        if isinstance(self.stage, ClassifierStage):
            return bool(self.positives and self.negatives)
        return bool(self.paths or self.scans)

    def draw(self, rng: np.random.Generator, window: StackWindow = WHOLE) -> Example:
        """One random example; a classifier's stack shows ``window`` (slices, rows, columns)."""
        if isinstance(self.stage, LocatorStage):
            real = bool(self.scans) and (not self.paths or rng.random() < self.stage.scan_share)
            table = self.scans if real else self.paths
            path = table[rng.integers(len(table))]
            return window_tensors(draw_window(read_locator_sample(path), self.stage, rng))
        if isinstance(self.stage, RefinerStage):
            chosen = int(rng.integers(len(self.paths) + len(self.scans)))
            path = self.paths[chosen] if chosen < len(self.paths) else self.scans[chosen - len(self.paths)]
            return refiner_tensors(draw_refiner_window(read_refiner_sample(path), self.stage, rng))
        positives = self.positives if window == WHOLE else self.placed
        broken = positives if rng.random() < self.stage.positive_share else self.negatives
        path, index = broken[rng.integers(len(broken))]
        sample = read_classifier_sample(path)
        vertebra = sample.vertebrae[index]
        return stack_tensors(draw_stack(sample, vertebra, self.stage, type_names(), rng, window=window))

    def draw_batch(self, rng: np.random.Generator) -> Example:
        """A batch of random examples, each tensor with a first axis more."""
        count, window = self.stage.schedule.batch_size, WHOLE
        if isinstance(self.stage, ClassifierStage):
            # Without a fracture to lay them over, parts would all be intact.
            window = self.stage.windows[rng.integers(len(self.stage.windows))] if self.placed else WHOLE
            count = max(1, round(count * math.prod(WHOLE) / math.prod(window)))
        batch: Example = default_collate([self.draw(rng, window) for _ in range(count)])
        return batch


class Stream(IterableDataset[Example]):
    """Batches of random examples without end.

    Args:
        folder: of samples; may be empty at first when a generator is writing to it.
        stage: the recipe's stage.
        seed: of the draws; workers get their own.
        patience: seconds to wait for the first sample.
        rank: of this process among those that train together; each draws other examples.
    """

    def __init__(self, folder: Path, stage: Stage, seed: int, patience: float = 60.0, rank: int = 0) -> None:
        super().__init__()
        self.folder, self.stage, self.seed, self.patience, self.rank = folder, stage, seed, patience, rank

    def __iter__(self) -> Iterator[Example]:
        info = get_worker_info()
        rng = np.random.default_rng([self.seed, 0 if info is None else info.id, self.rank])
        torch.set_num_threads(1)
        pool = Pool(self.folder, self.stage, held_back=False)
        self._wait(pool)
        drawn = 0
        while True:
            if drawn % RESCAN_EVERY == RESCAN_EVERY - 1:
                pool.refresh()
            yield pool.draw_batch(rng)
            drawn += 1

    def _wait(self, pool: Pool) -> None:
        deadline = time.monotonic() + self.patience
        pool.refresh()
        while not pool.ready:
            if time.monotonic() > deadline:
                raise StudyError(
                    "no training samples to draw from (the classifier needs fractured and intact vertebrae)",
                    where=str(self.folder),
                    fix="Generate phantoms first, or give --phantoms",
                )
            time.sleep(WAIT_SECONDS)
            pool.refresh()


class HeldBack(Dataset[Example]):
    """Validation examples, without augmentation; fixed for a folder that no longer grows."""

    def __init__(self, folder: Path, stage: Stage, limit: int) -> None:
        self.stage = stage
        pool = Pool(folder, stage, held_back=True)
        pool.refresh()
        self.items: list[tuple[Path, int]] = [(path, 0) for path in pool.paths + pool.scans]
        if isinstance(stage, ClassifierStage):
            self.items = sorted(pool.positives + pool.negatives)
        self.items = self.items[:limit]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Example:
        path, position = self.items[index]
        rng = np.random.default_rng(index)
        if isinstance(self.stage, LocatorStage):
            return window_tensors(draw_window(read_locator_sample(path), self.stage, rng, plain=True))
        if isinstance(self.stage, RefinerStage):
            return refiner_tensors(draw_refiner_window(read_refiner_sample(path), self.stage, rng, plain=True))
        sample = read_classifier_sample(path)
        stack = draw_stack(sample, sample.vertebrae[position], self.stage, type_names(), rng, plain=True)
        return stack_tensors(stack)


def window_tensors(window: Window) -> Example:
    """A window as the locator's module takes it (without the batch axis)."""
    return {
        "image": torch.from_numpy(window.image)[None],
        "labels": torch.from_numpy(window.labels),
        "heat": torch.from_numpy(window.heat),
        "known": torch.from_numpy(window.known),
    }


def refiner_tensors(window: RefinerWindow) -> Example:
    """A window as the refiner's module takes it (without the batch axis)."""
    return {"image": torch.from_numpy(window.image), "labels": torch.from_numpy(window.labels)}


def stack_tensors(stack: Stack) -> Example:
    """A stack as the classifier's module takes it (without the batch axis)."""
    return {
        "stack": torch.from_numpy(stack.stack),
        "vertebra": torch.tensor(stack.vertebra, dtype=torch.float32),
        "slices": torch.from_numpy(stack.slices),
        "types": torch.from_numpy(stack.types),
        "types_known": torch.tensor(stack.types_known),
        "evidence": torch.from_numpy(stack.evidence),
        "evidence_known": torch.tensor(stack.evidence_known),
    }


def train_loader(
    folder: Path, stage: Stage, *, seed: int, workers: int, patience: float = 60.0, rank: int = 0
) -> DataLoader[Any]:
    """Batches of random examples without end; with ``workers`` they are made in other processes."""
    stream = Stream(folder, stage, seed, patience, rank)
    return DataLoader(
        stream,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=3 if workers else None,
        persistent_workers=workers > 0,
    )


def validation_loader(folder: Path, stage: Stage, limit: int) -> DataLoader[Any] | None:
    """Batches of the held-back examples, or None when there are none yet."""
    held = HeldBack(folder, stage, limit)
    if not len(held):
        return None
    return DataLoader(held, batch_size=stage.schedule.batch_size, num_workers=0)
