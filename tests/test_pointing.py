"""The pointing game and the overlap of boxes: heat on the fracture, beside it, and no heat at all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cspine.anatomy import Level
from cspine.errors import UsageError
from cspine.evaluation.pointing import HeatItem, box_overlap, heat_figures, heat_hit
from cspine.inference.evidence import EvidenceMap

# Cells of 2 mm, slices of 3 mm, away from the origin.
AFFINE = np.array([[2.0, 0, 0, -10], [0, 2.0, 0, 5], [0, 0, 3.0, 100], [0, 0, 0, 1]])
SHAPE = (6, 20, 24)


def cells_mm(cells: list[tuple[int, int, int]]) -> NDArray[np.float64]:
    """LPS mm of the centres of cells (x, y, z)."""
    return np.asarray(cells, dtype=np.float64) @ AFFINE[:3, :3].T + AFFINE[:3, 3]


def block(z: int, y: range, x: range) -> EvidenceMap:
    """A map that is 1 in a block of one slice and 0 elsewhere."""
    values = np.zeros(SHAPE, np.float32)
    values[z, y.start : y.stop, x.start : x.stop] = 1
    return EvidenceMap(values, AFFINE)


FRACTURE = cells_mm([(x, y, 3) for y in range(4, 8) for x in range(10, 14)])


def test_heat_on_the_fracture_is_a_hit_with_a_perfect_box() -> None:
    hit = heat_hit(HeatItem("a", Level.C4, block(3, range(4, 8), range(10, 14)), FRACTURE))
    assert hit.distance_mm == 0
    assert hit.box_iou == 1


def test_a_box_that_covers_half_has_half_the_overlap() -> None:
    assert box_overlap(block(3, range(4, 8), range(10, 12)), FRACTURE) == pytest.approx(0.5)
    assert box_overlap(block(3, range(14, 18), range(10, 14)), FRACTURE) == 0


def test_boxes_are_compared_in_the_slice_with_most_of_the_fracture() -> None:
    spread = np.concatenate([FRACTURE, cells_mm([(20, 15, 1)])])
    assert box_overlap(block(3, range(4, 8), range(10, 14)), spread) == 1
    # Heat in another slice alone does not overlap.
    assert box_overlap(block(1, range(4, 8), range(10, 14)), FRACTURE) == 0


def test_only_the_piece_with_the_strongest_cell_makes_the_box() -> None:
    heat = block(3, range(4, 8), range(10, 14))
    heat.values[3, 4, 10] = 1.2
    heat.values[3, 18, 2] = 0.9
    heat.values[3, 4, 15] = 0.3
    assert box_overlap(heat, FRACTURE) == 1
    assert box_overlap(heat, FRACTURE, share=0.2) == 1


def test_a_map_without_heat_hits_nothing() -> None:
    hit = heat_hit(HeatItem("a", Level.C4, EvidenceMap(np.zeros(SHAPE, np.float32), AFFINE), FRACTURE))
    assert (hit.distance_mm, hit.box_iou) == (float("inf"), 0.0)


def test_a_fracture_outside_the_map_has_no_overlap() -> None:
    heat = block(3, range(4, 8), range(10, 14))
    assert box_overlap(heat, FRACTURE + 500) == 0


def test_figures_count_hits_within_the_tolerance_and_know_the_middle_as_baseline() -> None:
    near, far = block(3, range(4, 8), range(10, 14)), block(3, range(18, 19), range(1))
    items = [HeatItem(f"case {k}", Level.C5, near if k < 3 else far, FRACTURE) for k in range(4)]
    figures = heat_figures(items)
    assert figures.count == 4
    assert figures.pointing.value == 0.75
    assert 0 <= figures.pointing.low < 0.75 < figures.pointing.high <= 1
    assert figures.box_iou.value == 0.75
    assert figures.distance_mm.value == 0
    # The middle of these maps, cell (12, 10, 3), lies 6 mm from the fracture.
    assert figures.centre.value == 1
    assert heat_figures(items, tolerance_mm=5).centre.value == 0
    assert heat_figures(items) == figures


def test_groups_are_drawn_whole() -> None:
    near, far = block(3, range(4, 8), range(10, 14)), block(3, range(18, 19), range(1))
    items = [HeatItem("one patient", Level.C5, heat, FRACTURE) for heat in (near, far)]
    pointing = heat_figures(items).pointing
    assert (pointing.low, pointing.value, pointing.high) == (0.5, 0.5, 0.5)


def test_nothing_to_score_is_said() -> None:
    with pytest.raises(UsageError, match="at least one fractured vertebra"):
        heat_figures([])
    empty = HeatItem("a", Level.C1, block(0, range(1), range(1)), np.zeros((0, 3)))
    with pytest.raises(UsageError, match="fracture voxels"):
        heat_figures([empty])


@given(st.integers(0, 5), st.integers(0, 19), st.integers(0, 23), st.floats(0.1, 1e3))
def test_the_scale_of_the_heat_does_not_matter(z: int, y: int, x: int, factor: float) -> None:
    heat = block(3, range(4, 8), range(11, 15))
    heat.values[z, y, x] = 2.0
    scaled = EvidenceMap((heat.values * np.float32(factor)).astype(np.float32), AFFINE)
    assert heat_hit(HeatItem("a", Level.C4, scaled, FRACTURE)) == heat_hit(HeatItem("a", Level.C4, heat, FRACTURE))
