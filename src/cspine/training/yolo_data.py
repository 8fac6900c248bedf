"""Planar samples as the data set that Ultralytics' library reads: pictures, and beside each a text file of boxes.

``images/train`` and ``images/val`` hold PNG files, ``labels/…`` their boxes: class from 0, then the middle, width and
height as shares of the picture. Names are numbers, so nothing says whose they are.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cspine.anatomy import LEVELS
from cspine.errors import OutputError, RecipeError, StudyError
from cspine.inference.planar import PlanarView
from cspine.reports.atomic import write_file
from cspine.training.planar_data import GROUPS, Entry, Group, Indices, PlanarPool, judges
from cspine.training.planar_draw import Example, Scan, draw_image
from cspine.training.planar_samples import read_planar
from cspine.training.recipe_stages import PlanarStage

# For ``train`` and ``val`` the samples, each with its number of images.
Plan = dict[str, list[tuple[str, int]]]
DATA_FILE, PLAN_FILE = "data.yaml", "plan.json"
FORMAT = 1
COLOURS = 3
# About as many pictures as the document that trained these networks on necks had; more would fill the disk.
MOST_PICTURES = 10_000
# Shorter sides are no vertebra to find, as for the other detectors.
MIN_SIDE = 3.0


@dataclass(frozen=True, slots=True)
class YoloData:
    """A data set that is complete on disk.

    Attributes:
        file: its description, for the library.
        train: number of pictures to learn from.
        held_back: number of pictures to validate on.
    """

    file: Path
    train: int
    held_back: int


def channels_of(view: PlanarView) -> slice:
    """Which channels of an image a picture shows: all when there are three, else the first of the middle image."""
    middle = view.neighbours * len(view.windows)
    return slice(None) if view.channels == COLOURS else slice(middle, middle + 1)


def class_names(stage: PlanarStage) -> list[str]:
    """Of the classes in their order: C1..C7, then fractured ones when the detector tells."""
    intact = [level.name for level in LEVELS]
    return [*intact, *(f"{name} fractured" for name in intact)] if stage.network.fractured_boxes else intact


def write_yolo_data(stage: PlanarStage, samples: Path, folder: Path, *, seed: int, held_back: int = 96) -> YoloData:
    """Write the data set of a stage, or go on with one that was begun with the same settings.

    Images are cut as for every other planar network, without augmentation, which the library has its own of.

    Args:
        stage: view, shares, fold and schedule; at most as many pictures as its schedule has use for are written.
        samples: folder of planar samples; those that are there now.
        folder: of the data set; another one found there is replaced.
        seed: of the choice of images.
        held_back: at most so many pictures of held-back samples; without such samples some of the others are taken.

    Raises:
        RecipeError: the stage sees other than axial images.
        StudyError: no samples.
        OutputError: the folder cannot be written.
    """
    if stage.view.planes != ("axial",):
        raise RecipeError("a yolo network sees axial images alone", where="view.planes", fix='Write ["axial"]')
    wanted = min(stage.schedule.steps * stage.schedule.batch_size, MOST_PICTURES)
    limits = {"train": (False, wanted), "val": (True, held_back)}
    pools = {part: PlanarPool(samples, stage, held_back=held, seed=seed) for part, (held, _) in limits.items()}
    for pool in pools.values():
        pool.refresh()
    if not pools["train"].entries:
        raise StudyError("no planar samples to draw from", where=str(samples), fix="Prepare data first")
    if not pools["val"].entries:
        pools["val"] = pools["train"]
    settings = {
        "format": FORMAT,
        "seed": seed,
        "view": stage.view.model_dump(mode="json"),
        "fractured": stage.network.fractured_boxes,
        "shares": [stage.positive_share, stage.bone_share],
        "fold": stage.fold,
        "limits": [wanted, held_back],
    }
    try:
        plan = _known_plan(folder / PLAN_FILE, settings)
        if plan is None:
            shutil.rmtree(folder, ignore_errors=True)
            plan = {part: _shared_out(pools[part], limit) for part, (_, limit) in limits.items()}
            write_file(folder / PLAN_FILE, json.dumps({"settings": settings, "parts": plan}, indent=1).encode())
        for part, pool in pools.items():
            known = {entry.path.name: entry for entry in pool.entries}
            for number, (name, quota) in enumerate(plan[part]):
                images, labels = (folder / kind / part / f"{number:05d}" for kind in ("images", "labels"))
                if name in known and not images.exists():
                    _write_sample(stage, known[name], images, labels, quota, np.random.default_rng([seed, number]))
        return _described(stage, folder)
    except OSError as error:
        raise OutputError(f"cannot write the pictures: {error}", where=str(folder)) from error


def _known_plan(path: Path, settings: dict[str, Any]) -> Plan | None:
    """The plan on disk, when it follows these settings."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        parts = {part: [(str(name), int(quota)) for name, quota in rows] for part, rows in content["parts"].items()}
        return parts if content["settings"] == settings else None
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _shared_out(pool: PlanarPool, limit: int) -> list[tuple[str, int]]:
    """How many images of which sample; a limit below their number takes one each of some, evenly spread."""
    count = min(len(pool.entries), limit)
    chosen = np.linspace(0, len(pool.entries) - 1, count).round().astype(int)
    quotas = np.diff(np.linspace(0, limit, count + 1).round().astype(int))
    return [(pool.entries[k].path.name, int(quota)) for k, quota in zip(chosen, quotas, strict=True)]


def _write_sample(
    stage: PlanarStage, entry: Entry, images: Path, labels: Path, quota: int, rng: np.random.Generator
) -> None:
    """The pictures of one sample; they appear together, after their boxes."""
    staged = images.with_name(f".{images.name}.part")
    for place in (staged, labels):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
    scan = Scan(read_planar(entry.path))
    for index in chosen_images(entry, stage, quota, rng):
        example = draw_image(scan, stage, "axial", int(index), rng, plain=True)
        (labels / f"{images.name}-{index:04d}.txt").write_text(_rows(example, stage.view.size))
        _picture(example["image"], stage.view).save(staged / f"{images.name}-{index:04d}.png")
    staged.replace(images)


def chosen_images(entry: Entry, stage: PlanarStage, quota: int, rng: np.random.Generator) -> Indices:
    """At most ``quota`` axial images of a sample, in order, in the shares that the stage asks for."""
    positive = stage.positive_share if judges(stage) else 0.0
    bone = (1 - positive) * stage.bone_share
    shares: dict[Group, float] = {"positive": positive, "bone": bone, "rest": 1 - positive - bone}
    found = []
    for group in GROUPS:
        own = entry.images[group]
        found.append(rng.choice(own, min(len(own), round(shares[group] * quota)), replace=False))
    if not any(len(own) for own in found):
        every = np.concatenate([entry.images[group] for group in GROUPS])
        found.append(rng.choice(every, min(len(every), quota), replace=False))
    every = np.concatenate(found).astype(np.int64)
    return np.sort(rng.permutation(every)[:quota])


def _picture(image: NDArray[Any], view: PlanarView) -> Image.Image:
    values = np.rint((image[channels_of(view)] + 1) * 127.5).astype(np.uint8)
    return Image.fromarray(values[0] if len(values) == 1 else np.ascontiguousarray(values.transpose(1, 2, 0)))


def _rows(example: Example, size: int) -> str:
    """Boxes as the library reads them: class, then middle x and y, width and height, shares of the picture."""
    rows = []
    for label, box in zip(example["box_labels"], np.asarray(example["boxes"], np.float64), strict=True):
        extent = box[2:] - box[:2]
        if label and extent.min() >= MIN_SIDE:
            middle = (box[:2] + box[2:]) / 2
            rows.append(f"{int(label) - 1} " + " ".join(f"{value:.6f}" for value in (*middle / size, *extent / size)))
    return "".join(f"{row}\n" for row in rows)


def _described(stage: PlanarStage, folder: Path) -> YoloData:
    """Write the description, which is YAML as much as JSON, and count."""
    content = {
        "path": str(folder.resolve()),
        "train": "images/train",
        "val": "images/val",
        "names": dict(enumerate(class_names(stage))),
    }
    file = folder / DATA_FILE
    write_file(file, json.dumps(content, indent=1).encode())
    train, held = (len(list((folder / "images" / part).glob("*/*.png"))) for part in ("train", "val"))
    return YoloData(file, train, held)
