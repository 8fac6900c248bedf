"""Running the planar stages of a bundle over one volume: detector, locator and classifier, each network once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cspine.anatomy import LEVELS, Level
from cspine.inference.answers import Opinion
from cspine.inference.bundle import Manifest, StageName
from cspine.inference.levels import LevelMap, LevelSettings
from cspine.inference.planar import Head, PlanarUse, PlanarView
from cspine.inference.planar_answers import ImageAnswers, PlaneAnswers, ask
from cspine.inference.planar_boxes import suppressed
from cspine.inference.planar_fractures import opinions
from cspine.inference.planar_grid import Classes, common_grid, lines, weights
from cspine.inference.planar_images import PlaneGrid, planar_volume, plane_grid
from cspine.inference.planar_levels import find_planar_levels
from cspine.inference.runtime import Network
from cspine.volume import Volume

Float = NDArray[np.float64]
Image = NDArray[np.float32]
Box = tuple[Float, Float]

# Boxes that a detector is less sure of do not say where the neck is, nor do fewer than this many.
MIN_DETECTION, MIN_DETECTIONS = 0.25, 3
# A box whose middle is further than this from the others', in the plane, is a mistake; of what is left this share is
# cut off at each end, and a margin is added.
STRAY_MM, TAIL, MARGIN_MM = 60.0, 0.02, 15.0
# An image shows a level as likely as not when this much of its mask lies in it; as in training.
SHOWN_MM2 = 30.0


@dataclass(slots=True)
class PlanarRun:
    """The planar stages of a bundle at work on one volume.

    Attributes:
        manifest: of the bundle.
        load: gives a stage's network.
        volume: HU, canonical axes.
        progress: called with the share done of what is being done, 0..1.
    """

    manifest: Manifest
    load: Callable[[StageName], Network]
    volume: Volume
    progress: Callable[[float], None] | None = None
    _said: dict[StageName, tuple[PlaneAnswers, ...]] = field(default_factory=dict)
    _small: Volume | None = None
    _box: Box | None = None

    def use(self, stage: StageName) -> PlanarUse | None:
        """How a stage is to be run, when it is a planar one."""
        found = self.manifest.stages.get(stage)
        return None if found is None else found.planar

    def levels(self, settings: LevelSettings) -> LevelMap:
        """What the locator found; it must be planar.

        Raises:
            BundleError: a network answered something else than its heads say.
        """
        grid = common_grid(self.volume)
        use = self.use("locator")
        classes = Classes(grid) if use is not None and "levels" in use.heads else None
        said = self._ask("locator", classes)
        shared = None if classes is None else classes.probabilities()
        return find_planar_levels(said, shared, grid, self.volume, settings)

    def opinions(self, levels: LevelMap, wanted: Sequence[Level]) -> dict[Level, Opinion]:
        """What the classifier says of the wanted levels; it must be planar.

        Raises:
            BundleError: a network answered something else than its heads say.
        """
        use = self.use("classifier")
        return {} if use is None else opinions(self._ask("classifier"), use.pooling, levels, wanted)

    def images(self, levels: LevelMap) -> ImageAnswers | None:
        """What was said of each axial image; None when no stage that was run is planar.

        Images are the locator's, or the classifier's when that one alone sees axial images.
        """
        said = [item for stage in ("locator", "classifier") for item in self._said.get(stage, ())]
        if not said:
            return None
        axial = [item for item in said if item.grid.plane == "axial"]
        use = self.use("locator") or self.use("classifier")
        view = PlanarView() if use is None else use.view
        grid = axial[0].grid if axial else plane_grid(self._planar_volume(), view, "axial")
        visible = [_moved(item.visible, item.grid, grid) for item in axial if item.visible is not None]
        boxes = next((item.boxes for item in axial if item.boxes is not None and item.grid is grid), None)
        judging = [item for item in self._said.get("classifier", ()) if item.grid.plane == "axial"]
        broken, fracture = _broken(judging[0]) if judging else (None, None)
        return ImageAnswers(
            grid=grid,
            visible=visible[0] if visible else _shown(levels, grid),
            broken=None if broken is None else _moved(broken, judging[0].grid, grid),
            fracture=None if fracture is None else _moved(fracture, judging[0].grid, grid),
            boxes=None if boxes is None else tuple(_intact(rows) for rows in boxes),
        )

    def _ask(self, stage: StageName, classes: Classes | None = None) -> tuple[PlaneAnswers, ...]:
        """The answers of a stage; those of a network that two stages share are asked for once."""
        if stage not in self._said:
            twin = self._twin(stage)
            self._said[stage] = self._run(stage, classes) if twin is None else self._said[twin]
        return self._said[stage]

    def _twin(self, stage: StageName) -> StageName | None:
        """A stage that was run with the same network on the same images."""
        mine = self.manifest.stages[stage]
        for other in self._said:
            its = self.manifest.stages[other]
            if its.file == mine.file and its.planar and mine.planar and its.planar.view == mine.planar.view:
                return other
        return None

    def _run(self, stage: StageName, classes: Classes | None) -> tuple[PlaneAnswers, ...]:
        """Ask a stage's network about all planes that it sees, and about all that stages which share it need."""
        use = self.use(stage)
        if use is None:
            return ()
        use = use.model_copy(update={"heads": self._heads(stage, use)})
        small = self._planar_volume()
        box = self._found_box() if use.view.field == "detected" else None
        network = self.load(stage)
        take = None if classes is None else classes.add
        count = len(use.view.planes)
        out = []
        for number, plane in enumerate(use.view.planes):
            grid = plane_grid(small, use.view, plane, box)
            out.append(ask(network, use, small, grid, take=take, progress=self._part(number, count)))
        return tuple(out)

    def _heads(self, stage: StageName, use: PlanarUse) -> tuple[Head, ...]:
        """Heads of all stages that a stage's network serves on the same images."""
        heads = dict.fromkeys(use.heads)
        for name in self.manifest.sharing(stage):
            other = self.use(name)
            if other is not None and other.view == use.view:
                heads |= dict.fromkeys(other.heads)
        return tuple(heads)

    def _part(self, number: int, count: int) -> Callable[[float], None] | None:
        progress = self.progress
        return None if progress is None else lambda share: progress((number + share) / count)

    def _planar_volume(self) -> Volume:
        if self._small is None:
            self._small = planar_volume(self.volume)
        return self._small

    def _found_box(self) -> Box | None:
        """The box around what the detector found; None, which is the whole field, when that is nothing."""
        if self._box is None and "detector" in self.manifest.stages and "detector" not in self._said:
            self._box = box_around(self._ask("detector"))
        return self._box


def box_around(said: Sequence[PlaneAnswers]) -> Box | None:
    """Smallest and largest LPS corner, mm, around the vertebrae that a detector found; None when it found too few.

    Lone boxes far from the rest are left out, and so is the outermost of what remains, before a margin is added.
    """
    corners = [_corners(item.grid, number, rows) for item in said for number, rows in enumerate(item.boxes or ())]
    boxes = np.concatenate([np.empty((0, 2, 3)), *corners])
    if len(boxes) < MIN_DETECTIONS:
        return None
    middle = boxes.mean(axis=1)[:, :2]
    boxes = boxes[np.linalg.norm(middle - np.median(middle, axis=0), axis=1) <= STRAY_MM]
    if len(boxes) < MIN_DETECTIONS:
        return None
    return np.quantile(boxes[:, 0], TAIL, axis=0) - MARGIN_MM, np.quantile(boxes[:, 1], 1 - TAIL, axis=0) + MARGIN_MM


def _corners(grid: PlaneGrid, number: int, rows: Image) -> Float:
    """``(n, 2, 3)``: smallest and largest LPS corner of each box of one image that is sure enough."""
    sure = rows[rows[:, 1] >= MIN_DETECTION]
    # Pixel k spans k to k + 1 in edges, and k - 0.5 to k + 0.5 as an index.
    x0, y0, x1, y1 = (sure[:, 2:] - 0.5).T.astype(np.float64)
    ends = np.stack([np.stack([x, y, np.full(len(sure), number)], axis=1) for x in (x0, x1) for y in (y0, y1)], axis=1)
    world = ends @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    return np.stack([world.min(axis=1), world.max(axis=1)], axis=1)


def _moved(values: Image, have: PlaneGrid, wanted: PlaneGrid) -> Image:
    """Values ``[n, …]`` of axial images as those of another set of axial images of the same volume."""
    if have is wanted:
        return values
    line = lines(have, wanted.affine)[2]
    return np.asarray(weights(line, wanted.count, have.count) @ values, dtype=np.float32)


def _broken(said: PlaneAnswers) -> tuple[Image | None, Image | None]:
    """Whether each image shows a fracture of each level, and of any; None where nothing is said of it."""
    broken = said.broken
    if broken is None and said.slice is None and said.boxes is not None:
        found = np.zeros((len(said.boxes), len(LEVELS)), np.float32)
        for number, rows in enumerate(said.boxes):
            for label, score in rows[rows[:, 0] > len(LEVELS), :2]:
                level = int(label) - len(LEVELS) - 1
                found[number, level] = max(found[number, level], score)
        broken = found
    if said.slice is not None:
        return broken, said.slice
    if broken is not None:
        return broken, broken.max(axis=1)
    if said.fracture is not None:
        return None, said.fracture.max(axis=(1, 2)).astype(np.float32)
    return None, None


def _shown(levels: LevelMap, grid: PlaneGrid) -> Image:
    """``[n, 7]``: how likely each image shows each level, from how much of its mask lies there."""
    pixel = float(np.prod(np.linalg.norm(levels.affine[:3, :2], axis=0)))
    area = np.stack([(levels.labels == level).sum(axis=(1, 2)) for level in LEVELS], axis=1) * pixel
    a, b = lines(grid, levels.affine)[2]
    area = weights((1 / a, -b / a), grid.count, len(area)) @ area
    return np.asarray(area / (area + SHOWN_MM2), dtype=np.float32)


def _intact(rows: Image) -> Image:
    """Boxes of vertebrae whether fractured or not: label 8..14 becomes 1..7, and of two on one vertebra one stays."""
    scores = np.zeros((len(rows), len(LEVELS)), np.float32)
    scores[np.arange(len(rows)), (rows[:, 0].astype(int) - 1) % len(LEVELS)] = rows[:, 1]
    return suppressed(rows[:, 2:], scores)
