"""What planar networks answer, image by image: run in batches, checked, and reduced to what has to be kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cspine.anatomy import LEVELS
from cspine.errors import BundleError
from cspine.inference.planar import LEVEL_CHANNELS, Head, PlanarUse
from cspine.inference.planar_boxes import suppressed
from cspine.inference.planar_images import PlaneGrid, images
from cspine.inference.runtime import Network, Tensor, Tensors
from cspine.volume import Volume

Image = NDArray[np.float32]
# Images given to a network at once; the last batch is filled up with air, so that every one has the same shape.
BATCH = 8
COUNT = len(LEVELS)
# Heat that varies less than this in an image says nothing of where.
MIN_HEAT_SPAN = 1e-6


@dataclass(frozen=True, slots=True)
class PlaneAnswers:
    """What a network said of all images of one plane, but for its pixel classes; None what it has no head for.

    Attributes:
        grid: of the ``n`` images.
        visible: float32 ``[n, 7]``, the image shows C1..C7.
        broken: float32 ``[n, 7]``, it shows a fracture of C1..C7.
        slice: float32 ``[n]``, it shows a fracture.
        types: float32 ``[n, T]``, of fracture types.
        boxes: rows label, score, x_min, y_min, x_max, y_max (pixels) an image, after suppression; label 1..7, and 8..14
            fractured C1..C7 for a network that tells them apart.
        fracture: float16 ``[n, size, size]``, of each pixel.
        heat: float16 ``[n, h, w]``, 0 to 1 in each image.
    """

    grid: PlaneGrid
    visible: Image | None = None
    broken: Image | None = None
    slice: Image | None = None
    types: Image | None = None
    boxes: tuple[Image, ...] | None = None
    fracture: NDArray[np.float16] | None = None
    heat: NDArray[np.float16] | None = None


@dataclass(frozen=True, slots=True)
class ImageAnswers:
    """What was said of each of ``n`` axial images.

    Attributes:
        grid: of the images.
        visible: float32 ``[n, 7]``, the image shows C1..C7.
        broken: float32 ``[n, 7]``, it shows a fracture of C1..C7; None for a method that does not say.
        fracture: float32 ``[n]``, it shows a fracture; None for a method that does not say.
        boxes: of each image rows label 1..7, score, x_min, y_min, x_max, y_max in pixels, ``(k, 6)``; None for a method
            without boxes.
    """

    grid: PlaneGrid
    visible: Image
    broken: Image | None
    fracture: Image | None
    boxes: tuple[Image, ...] | None


# Takes pixel classes [n, 9, size, size] of the images of a grid from a number on.
TakeClasses = Callable[[PlaneGrid, int, Image], None]


def ask(
    network: Network,
    use: PlanarUse,
    volume: Volume,
    grid: PlaneGrid,
    *,
    take: TakeClasses | None = None,
    progress: Callable[[float], None] | None = None,
) -> PlaneAnswers:
    """Show a network all images of a plane.

    Args:
        network: answers with probabilities, see ``planar.HEADS``.
        use: its view and heads.
        volume: what ``planar_volume`` gives.
        grid: of the images.
        take: is handed the pixel classes batch by batch, which are not kept.
        progress: called with the share done, 0..1.

    Raises:
        BundleError: an output is missing, not finite or of another shape.
    """
    parts: list[dict[str, NDArray[np.generic] | tuple[Image, ...]]] = []
    for start in range(0, grid.count, BATCH):
        answer = network({"image": images(volume, grid, use.view, start, BATCH)})
        check(answer, use)
        count = min(BATCH, grid.count - start)
        if take is not None and "levels" in use.heads:
            take(grid, start, np.clip(answer["levels"][:count], 0, 1))
        parts.append(kept(answer, use.heads, count))
        if progress is not None:
            progress((start + count) / grid.count)
    joined = {name: _joined([part[name] for part in parts]) for name in parts[0]}
    return PlaneAnswers(grid, **joined)  # type: ignore[arg-type]


def kept(answer: Tensors, heads: Sequence[Head], count: int) -> dict[str, NDArray[np.generic] | tuple[Image, ...]]:
    """What is kept of a batch of which the first ``count`` images are real; fields as in ``PlaneAnswers``."""
    out: dict[str, NDArray[np.generic] | tuple[Image, ...]] = {}
    for name in ("visible", "broken", "types"):
        if name in heads:
            out[name] = np.clip(answer[name][:count], 0, 1)
    if "slice" in heads:
        out["slice"] = np.clip(answer["slice"][:count, 0], 0, 1)
    if "fracture" in heads:
        out["fracture"] = np.clip(answer["fracture"][:count, 0], 0, 1).astype(np.float16)
    if "heat" in answer:
        out["heat"] = _form(answer["heat"][:count, 0])
    if "boxes" in heads:
        pairs = zip(answer["boxes"][:count], answer["scores"][:count], strict=True)
        out["boxes"] = tuple(suppressed(boxes, scores) for boxes, scores in pairs)
    return out


def _form(heat: Image) -> NDArray[np.float16]:
    """Heat ``[n, h, w]`` scaled to 0..1 in each image: only its form counts. All 1 where it has none."""
    low = heat.min(axis=(1, 2), keepdims=True)
    span = heat.max(axis=(1, 2), keepdims=True) - low
    flat = np.ones_like(heat)
    np.divide(heat - low, span, out=flat, where=span > MIN_HEAT_SPAN)
    return np.asarray(flat, dtype=np.float16)


def _joined(parts: Sequence[NDArray[np.generic] | tuple[Image, ...]]) -> NDArray[np.generic] | tuple[Image, ...]:
    if isinstance(parts[0], tuple):
        return tuple(image for part in parts for image in part)
    return np.concatenate([np.asarray(part) for part in parts])


def check(answer: Mapping[str, Tensor], use: PlanarUse) -> None:
    """Every head is there, finite, and of the shape that ``planar.HEADS`` says.

    Raises:
        BundleError: one is not.
    """
    size = use.view.size
    shapes: dict[str, tuple[int | None, ...]] = {
        "levels": (LEVEL_CHANNELS, size, size),
        "fracture": (1, size, size),
        "types": (None,),
        "visible": (COUNT,),
        "broken": (COUNT,),
        "slice": (1,),
        "boxes": (None, 4),
        "scores": (None, None),
        "heat": (1, None, None),
    }
    needed = [*use.heads, *(["scores"] if "boxes" in use.heads else []), *(["heat"] if "heat" in answer else [])]
    for name in needed:
        _check_one(name, answer.get(name), (BATCH, *shapes[name]))
    if "boxes" in use.heads:
        boxes, scores = answer["boxes"].shape[1], answer["scores"].shape
        if scores[1] != boxes or scores[2] not in (COUNT, 2 * COUNT):
            raise _unexpected("scores", f"({BATCH}, {boxes}, {COUNT} or {2 * COUNT})", f"shape {scores}")


def _check_one(name: str, value: Tensor | None, expected: tuple[int | None, ...]) -> None:
    wanted = str(tuple("any" if size is None else size for size in expected)).replace("'", "")
    if value is None:
        raise _unexpected(name, wanted, "no such output")
    same = value.ndim == len(expected) and all(b in (None, a) for a, b in zip(value.shape, expected, strict=True))
    if not same:
        raise _unexpected(name, wanted, f"shape {value.shape}")
    if not np.isfinite(value).all():
        raise BundleError(
            f"a planar network answered '{name}' with numbers that are not finite", fix="Try the other runtime"
        )


def _unexpected(name: str, expected: str, got: str) -> BundleError:
    return BundleError(
        f"expected output '{name}' of shape {expected} of a planar network, got {got}", fix="Export the bundle again"
    )
