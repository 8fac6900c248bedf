"""Samples for the tests of preprocessing: a bright vertebra-like blob whose mask and box are known."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from cspine.imaging import Boxes, Sample

# Small images of any real values, as numbers that float32 holds well.
images: st.SearchStrategy[NDArray[np.float32]] = hnp.arrays(
    np.float32,
    st.one_of(hnp.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=9)),
    elements=st.floats(-2000, 3000, width=32),
)


def with_box(x0: int, y0: int, x1: int, y1: int, shape: tuple[int, ...] = (40, 48), level: int = 3) -> Sample:
    """A box that is bright in the image, ``level`` in the mask and marked by a box; in all slices of a stack."""
    slices = [[0, shape[0] if len(shape) == 3 else 1]]
    boxes = Boxes.of([[x0, y0, x1, y1]], [level], slices)
    mask = boxes.drawn_on(shape) * np.uint8(level)
    return Sample((mask > 0).astype(np.float32), mask, boxes)


def blob(shape: tuple[int, ...] = (24, 40, 48), seed: int = 0) -> NDArray[np.float32]:
    """A few smooth blobs of different size and brightness on air: something that looks different from each side."""
    rng = np.random.default_rng(seed)
    grid = np.indices(shape)
    out = np.full(shape, -1000.0)
    for _ in range(5):
        middle = [rng.uniform(0.35, 0.65) * n for n in shape]
        width = rng.uniform(0.06, 0.13, len(shape)) * max(shape)
        square = sum(((g - m) / w) ** 2 for g, m, w in zip(grid, middle, width, strict=True))
        out += rng.uniform(500, 1500) * np.exp(-square / 2)
    return out.astype(np.float32)


def same(one: Sample, other: Sample) -> bool:
    """Whether two samples hold the same values."""
    pairs = [
        (one.image, other.image),
        (one.mask, other.mask),
        (one.boxes.corners, other.boxes.corners),
        (one.boxes.slices, other.boxes.slices),
        (one.boxes.levels, other.boxes.levels),
        (one.labels, other.labels),
    ]
    return all((a is None and b is None) or np.array_equal(a, b) for a, b in pairs)  # type: ignore[arg-type]
