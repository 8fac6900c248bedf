"""Slices that the server draws show the patient the way radiologists expect, and the right place."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from cspine.reports import colours
from cspine.web.viewing_facts import PLANES, Plane, ViewFacts
from cspine.web.viewing_page import index_of
from cspine.web.viewing_slices import (
    NOT_JUDGED,
    WINDOWS,
    PictureCache,
    draw_overlay,
    draw_slice,
    draw_source,
    level_colours,
    picture_size,
)
from report_factory import center_of, make_findings, make_volume, with_marker
from viewing_factory import prepared

BONE = WINDOWS["bone"]
# To the patient's left, to the back, and up.
OFF = np.array([14.0, 10.0, 6.0])
MARKER = tuple((np.array(center_of(3)) + OFF).tolist())


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ViewFacts]:
    """A study with a dense ball to the left, behind and above C4's body."""
    folder = tmp_path_factory.mktemp("view")
    return folder, prepared(folder, with_marker(make_volume(), MARKER, 5.0))[0]


def slices_at(facts: ViewFacts, point: tuple[float, float, float]) -> dict[Plane, int]:
    x, y, z = index_of(facts.grid, point)
    return {"axial": z, "sagittal": x, "coronal": y}


def gray(data: bytes) -> NDArray[np.float64]:
    image = Image.open(BytesIO(data))
    assert image.mode == "L"
    return np.asarray(image, dtype=np.float64)


def brightest(picture: NDArray[np.float64]) -> tuple[float, float]:
    """Centre (column, row) of the bright pixels, as a share of width and height."""
    rows, columns = np.nonzero(picture > 220)
    assert len(rows), "the marker is not in the picture"
    return float((columns.mean() + 0.5) / picture.shape[1]), float((rows.mean() + 0.5) / picture.shape[0])


@pytest.mark.parametrize(
    ("plane", "across", "down"),
    [("axial", (0, 1), (1, 1)), ("sagittal", (1, 1), (2, -1)), ("coronal", (0, 1), (2, -1))],
)
def test_left_is_right_front_is_left_and_head_is_up(
    view: tuple[Path, ViewFacts], plane: Plane, across: tuple[int, int], down: tuple[int, int]
) -> None:
    folder, facts = view
    picture = gray(draw_slice(folder, facts.grid, plane, slices_at(facts, MARKER)[plane], BONE))
    origin, spacing = np.array(facts.grid.affine)[:3, 3], facts.grid.spacing
    size = np.array(facts.grid.shape[::-1])
    share = (np.array(MARKER) - origin + np.array(spacing) / 2) / (size * spacing)
    expected = [share[axis] if sign > 0 else 1 - share[axis] for axis, sign in (across, down)]
    assert brightest(picture) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("plane", PLANES)
def test_pictures_have_the_proportions_of_the_patient(view: tuple[Path, ViewFacts], plane: Plane) -> None:
    folder, facts = view
    rows, columns = gray(draw_slice(folder, facts.grid, plane, 3, BONE)).shape
    width, height = picture_size(facts.grid, plane)
    assert columns / rows == pytest.approx(width / height, rel=0.02)


@pytest.mark.parametrize("plane", PLANES)
def test_overlays_lie_over_their_bones_in_the_colour_of_the_probability(
    view: tuple[Path, ViewFacts], plane: Plane
) -> None:
    folder, facts = view
    wanted = level_colours(make_findings())
    index = slices_at(facts, center_of(1))[plane]
    overlay = np.asarray(Image.open(BytesIO(draw_overlay(folder, facts.grid, plane, index, wanted))))
    picture = gray(draw_slice(folder, facts.grid, plane, index, BONE))
    assert overlay.shape == (2 * picture.shape[0], 2 * picture.shape[1], 4)
    edge = (np.abs(overlay[..., :3].astype(int) - wanted[2]).max(axis=-1) < 3) & (overlay[..., 3] > 150)
    rows, columns = np.nonzero(edge)
    x, y, z = index_of(facts.grid, center_of(1))
    nz, ny, nx = facts.grid.shape
    middle = {"axial": (x / nx, y / ny), "sagittal": (y / ny, 1 - z / nz), "coronal": (x / nx, 1 - z / nz)}[plane]
    assert (columns.mean() / edge.shape[1], rows.mean() / edge.shape[0]) == pytest.approx(middle, abs=0.02)


def test_colours_are_those_of_the_report() -> None:
    found = level_colours(make_findings())
    assert found[2] == colours.ramp("dark")[9]
    assert found[7] == NOT_JUDGED


def test_windows_turn_hounsfield_units_into_greys() -> None:
    assert BONE.gray(np.array([-2000, -550, 450, 1450, 3000])).tolist() == [0, 0, 128, 255, 255]
    assert next(iter(WINDOWS)) == "bone"
    assert all(window.low < 40 < window.high for name, window in WINDOWS.items() if name != "air")


def test_the_slice_as_scanned_has_every_pixel(view: tuple[Path, ViewFacts]) -> None:
    folder, facts = view
    volume = with_marker(make_volume(), MARKER, 5.0)
    at = round(float(volume.to_index(MARKER)[2]))
    picture = gray(draw_source(folder, facts, at, BONE))
    assert (picture == BONE.gray(volume.hu[at])).all()


def test_slices_that_are_not_there_are_refused(view: tuple[Path, ViewFacts]) -> None:
    folder, facts = view
    for index in (-1, facts.grid.count("axial")):
        with pytest.raises(IndexError):
            draw_slice(folder, facts.grid, "axial", index, BONE)
        with pytest.raises(IndexError):
            draw_overlay(folder, facts.grid, "axial", index, {})
    with pytest.raises(IndexError):
        draw_source(folder, facts, facts.source_shape[0], BONE)


def test_the_cache_forgets_the_oldest_first_and_whole_studies() -> None:
    cache = PictureCache(most_bytes=10)
    cache.put(("one", 1), b"12345")
    cache.put(("two", 1), b"1234")
    assert cache.get(("one", 1)) == b"12345"
    cache.put(("two", 2), b"123")
    assert cache.get(("two", 1)) is None
    assert cache.get(("one", 1)) is not None
    cache.forget("one")
    assert cache.get(("one", 1)) is None
    assert cache.get(("two", 2)) == b"123"
