"""Single pictures without geometry (PNG, JPEG, one DICOM slice), judged by the planar stages of a bundle.

Each picture is shown as training shows pictures that were labelled one by one, see ``planar_images.picture_input``. It
has no neighbours and no place in a spine: what is said of it is said of this one image, and is not calibrated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cspine.anatomy import LEVELS
from cspine.errors import UsageError
from cspine.inference.bundle import Bundle, Manifest, Precision, Stage, StageName
from cspine.inference.networks import Networks
from cspine.inference.planar import Head, PlanarUse
from cspine.inference.planar_answers import BATCH, check, kept
from cspine.inference.planar_images import PlaneGrid, picture_input, picture_volume
from cspine.inference.planar_run import SHOWN_MM2
from cspine.inference.runtime import Network, Runtime, Tensors, make_runtime
from cspine.studies.images import SliceImage
from cspine.volume import Volume

Float = NDArray[np.float64]
Image = NDArray[np.float32]
COUNT = len(LEVELS)
# The stage that judges is heard first.
_ORDER: tuple[StageName, ...] = ("classifier", "locator")


@dataclass(frozen=True, slots=True)
class PictureHeat:
    """Where in a picture the evidence for a fracture lies.

    Attributes:
        values: float32 ``[h, w]``, 0 to 1.
        affine: ``(3, 3)``, index ``(column, row, 1)`` of a cell → pixel ``(column, row, 1)`` of the picture.
    """

    values: Image
    affine: Float

    def over(self, shape: tuple[int, int]) -> Image:
        """Heat of every pixel of the picture, float32 ``shape`` (rows, columns), linear between cells."""
        back = np.linalg.inv(self.affine)
        rows, columns = (back[k, k] * np.arange(shape[1 - k]) + back[k, 2] for k in (1, 0))
        places = np.meshgrid(rows, columns, indexing="ij")
        return np.asarray(ndimage.map_coordinates(self.values, places, order=1, mode="nearest"), dtype=np.float32)


@dataclass(frozen=True, slots=True)
class PictureAnswer:
    """What a bundle says of one picture; None what it does not say.

    Attributes:
        name: of the picture.
        fracture: probability that it shows a fracture.
        visible: float32 ``(7,)``, that it shows C1..C7.
        broken: float32 ``(7,)``, that it shows a fracture of C1..C7.
        boxes: rows label, score, x_min, y_min, x_max, y_max in pixels of the picture, edges, ``(k, 6)``; label 1..7,
            and 8..14 fractured C1..C7 of a network that tells them apart.
        heat: where the evidence lies; as strong as the picture's own probability where it is a map of one verdict.
    """

    name: str
    fracture: float | None = None
    visible: Image | None = None
    broken: Image | None = None
    boxes: Image | None = None
    heat: PictureHeat | None = None


def picture_stages(manifest: Manifest) -> tuple[StageName, ...]:
    """The stages of a bundle that can be asked about a single picture, the one that judges first; perhaps none.

    Left out are those that never saw a whole axial image: they see sagittal ones, or what a detector cut out.
    """

    def sees(stage: Stage | None) -> bool:
        view = None if stage is None or stage.planar is None else stage.planar.view
        return view is not None and "axial" in view.planes and view.field == "whole"

    return tuple(name for name in _ORDER if sees(manifest.stages.get(name)))


class PicturePredictor:
    """Judges single pictures with one bundle. Networks are loaded at the first use and kept.

    Args:
        bundle: None for the one that comes with cspine.
        runtime: ``openvino`` or ``onnxruntime``, or any object that is a ``Runtime``.
        threads: processor threads; None for all.
        precision: ``auto`` takes the fastest that the bundle's gate allows and the processor has.

    Raises:
        BundleError: the bundle is not usable.
        UsageError: the bundle judges volumes alone; unknown runtime or number of threads.
    """

    def __init__(
        self,
        bundle: Bundle | None = None,
        runtime: str | Runtime = "openvino",
        threads: int | None = None,
        *,
        precision: Precision | str = "auto",
    ) -> None:
        self.bundle = Bundle.default() if bundle is None else bundle
        self.stages = picture_stages(self.bundle.manifest)
        if not self.stages:
            raise UsageError(
                f"the bundle {self.bundle.manifest.name} judges volumes and cannot judge single pictures",
                where=f"stages {', '.join(self.bundle.manifest.stages)}",
                fix="Train one that can: cspine train slice-densenet121 --stage classifier --data DIR --out RUN, then "
                "cspine export RUN --only classifier --out DIR, and give that folder with --bundle",
            )
        chosen = make_runtime(runtime, threads) if isinstance(runtime, str) else runtime
        self.networks = Networks(self.bundle, chosen, precision)

    def judge(self, images: Sequence[SliceImage]) -> tuple[PictureAnswer, ...]:
        """What the bundle says of each picture, in order; the same for a picture whatever lies beside it.

        Raises:
            BundleError: a network answered something else than its heads say.
        """
        out: list[PictureAnswer] = []
        for start in range(0, len(images), BATCH):
            out += self._batch(images[start : start + BATCH])
        return tuple(out)

    def _batch(self, images: Sequence[SliceImage]) -> list[PictureAnswer]:
        shown = [_Shown.of(image) for image in images]
        said: list[list[_Said]] = [[] for _ in images]
        for stage, use in self._runs():
            network = self.networks(stage)
            for number, answer in enumerate(_asked(network, use, shown)):
                said[number].append(answer)
        return [_joined(item.name, answers) for item, answers in zip(shown, said, strict=True)]

    def _runs(self) -> list[tuple[StageName, PlanarUse]]:
        """What is asked: stages that share a network and its view are asked once, for the heads of both."""
        runs: list[tuple[StageName, PlanarUse]] = []
        manifest = self.bundle.manifest
        for stage in self.stages:
            use = manifest.stages[stage].planar
            if use is None:
                continue
            twins = [
                k for k, (name, own) in enumerate(runs) if stage in manifest.sharing(name) and own.view == use.view
            ]
            if twins:
                name, own = runs[twins[0]]
                heads: tuple[Head, ...] = tuple(dict.fromkeys((*own.heads, *use.heads)))
                runs[twins[0]] = name, own.model_copy(update={"heads": heads})
            else:
                runs.append((stage, use))
        return runs


def judge_pictures(bundle: Bundle | PicturePredictor, images: Sequence[SliceImage]) -> tuple[PictureAnswer, ...]:
    """What a bundle says of pictures; for several calls make a ``PicturePredictor`` once.

    Raises:
        UsageError: the bundle judges volumes alone.
        BundleError: it is not usable.
    """
    predictor = bundle if isinstance(bundle, PicturePredictor) else PicturePredictor(bundle)
    return predictor.judge(images)


@dataclass(frozen=True, slots=True)
class _Shown:
    """A picture on its way to networks: made small, with the way back to its own pixels.

    Attributes:
        name: of the picture.
        small: what ``picture_volume`` gives.
        grey: grey levels 0..255 instead of HU.
        whole: index ``(x, y, z)`` of the picture → units of ``small``'s affine.
        shape: rows and columns of the picture.
    """

    name: str
    small: Volume
    grey: bool
    whole: Float
    shape: tuple[int, int]

    @classmethod
    def of(cls, image: SliceImage) -> _Shown:
        grey = image.unit == "grey"
        # Training keeps whole numbers: a picture of 16 bits is one of 8 there as well.
        values = np.rint(np.asarray(image.pixels, np.float32) * np.float32(255 if grey else 1))
        affine = np.diag([*(image.spacing_mm or (1.0, 1.0)), 1.0, 1.0])
        small = picture_volume(Volume(values[None], affine))
        small = Volume(np.rint(small.hu), small.affine)
        rows, columns = image.pixels.shape
        return cls(image.source.name, small, grey, affine, (rows, columns))

    def pixel_area(self, grid: PlaneGrid) -> float:
        """Square mm of a network's pixel; of grey pictures, whose millimetres mean nothing, pixels of ``small``."""
        step = float(np.linalg.norm(grid.affine[:3, 0]))
        unit = float(max(self.small.spacing[:2])) if self.grey else 1.0
        return (step / unit) ** 2

    def to_pixels(self, grid: PlaneGrid) -> Float:
        """``(3, 3)``, index ``(column, row, 1)`` of a network's pixel → pixel of the picture."""
        moved = np.linalg.solve(self.whole, grid.affine)
        return np.asarray(moved[np.ix_([0, 1, 3], [0, 1, 3])])


@dataclass(frozen=True, slots=True)
class _Said:
    """What one network said of one picture; fields as in ``PictureAnswer``."""

    fracture: float | None
    visible: Image | None
    broken: Image | None
    boxes: Image | None
    heat: PictureHeat | None


def _asked(network: Network, use: PlanarUse, shown: Sequence[_Shown]) -> list[_Said]:
    """Show a network at most ``BATCH`` pictures; the batch is filled up with black."""
    view = use.view
    inputs = np.full((BATCH, view.channels, view.size, view.size), -1, np.float32)
    grids = []
    for number, item in enumerate(shown):
        inputs[number], grid = picture_input(item.small, view, grey=item.grey)
        grids.append(grid)
    answer = network({"image": inputs})
    check(answer, use)
    fields = kept(answer, use.heads, len(shown))
    tells = "boxes" in use.heads and answer["scores"].shape[2] > COUNT
    pairs = zip(shown, grids, strict=True)
    return [_read(k, item, grid, use, fields, answer, tells) for k, (item, grid) in enumerate(pairs)]


def _read(
    k: int, item: _Shown, grid: PlaneGrid, use: PlanarUse, fields: Mapping[str, Any], answer: Tensors, tells: bool
) -> _Said:
    """What was said of picture ``k`` of a batch; ``tells`` when its boxes say whether vertebrae are fractured."""
    boxes = fields["boxes"][k] if "boxes" in fields else None
    visible, broken = (fields[name][k] if name in fields else None for name in ("visible", "broken"))
    if visible is None and "levels" in use.heads:
        visible = _outlined(answer["levels"][k], item.pixel_area(grid))
    if visible is None and boxes is not None:
        visible = _best(boxes, (boxes[:, 0].astype(int) - 1) % COUNT)
    if broken is None and boxes is not None and tells:
        fractured = boxes[boxes[:, 0] > COUNT]
        broken = _best(fractured, fractured[:, 0].astype(int) - COUNT - 1)
    fracture = _fracture(k, use, fields, visible, broken)
    return _Said(
        fracture=fracture,
        visible=visible,
        broken=broken,
        boxes=None if boxes is None else _moved(boxes, item.to_pixels(grid), item.shape),
        heat=_heat(k, fields, fracture, grid.size, item.to_pixels(grid)),
    )


def _fracture(
    k: int, use: PlanarUse, fields: Mapping[str, Any], visible: Image | None, broken: Image | None
) -> float | None:
    """Probability that the picture shows a fracture, by the first of the heads that says so."""
    if "slice" in fields:
        return float(fields["slice"][k])
    if broken is not None:
        # Boxes of fractured vertebrae are as sure as they say; a level that is not shown is not broken here.
        seen = visible if visible is not None and "broken" in fields else np.ones(COUNT)
        return float((broken * seen).max())
    if "fracture" in fields:
        strongest = np.sort(fields["fracture"][k], axis=None)[::-1][: use.pooling.top]
        return float(strongest.astype(np.float64).mean())
    return None


def _heat(k: int, fields: Mapping[str, Any], fracture: float | None, size: int, to_pixels: Float) -> PictureHeat | None:
    """A map of the verdict, as strong as that is, or else the fracture pixels themselves."""
    if "heat" in fields and fracture is not None:
        values = fields["heat"][k].astype(np.float32) * np.float32(fracture)
    elif "fracture" in fields:
        values = fields["fracture"][k].astype(np.float32)
    else:
        return None
    cells = np.eye(3)
    for axis, count in ((0, values.shape[1]), (1, values.shape[0])):
        cells[axis, axis], cells[axis, 2] = size / count, 0.5 * size / count - 0.5
    return PictureHeat(values, to_pixels @ cells)


def _outlined(levels: Image, pixel_area: float) -> Image:
    """How likely a picture shows each level, from how much of it is that level's; as ``planar_run`` has it."""
    area = np.bincount(levels.argmax(axis=0).ravel(), minlength=COUNT + 1)[1 : COUNT + 1] * pixel_area
    return np.asarray(area / (area + SHOWN_MM2), dtype=np.float32)


def _best(boxes: Image, level: NDArray[np.int_]) -> Image:
    """The surest box of each level, 0 without one."""
    found = np.zeros(COUNT, np.float32)
    np.maximum.at(found, level, boxes[:, 1])
    return found


def _moved(boxes: Image, to_pixels: Float, shape: tuple[int, int]) -> Image:
    """Boxes in pixels of a network's input as boxes in pixels of the picture, cut off at its edges."""
    out = boxes.copy()
    for axis, limit in ((0, shape[1]), (1, shape[0])):
        for column in (2 + axis, 4 + axis):
            # Edges lie half a pixel before the index.
            edge = to_pixels[axis, axis] * (boxes[:, column] - 0.5) + to_pixels[axis, 2] + 0.5
            out[:, column] = np.clip(edge, 0, limit)
    return out


def _joined(name: str, said: Sequence[_Said]) -> PictureAnswer:
    """The answers of several networks about one picture: of each thing, that of the first which speaks of it."""

    def first(field: str) -> Any:
        return next((value for item in said if (value := getattr(item, field)) is not None), None)

    return PictureAnswer(name, first("fracture"), first("visible"), first("broken"), first("boxes"), first("heat"))
