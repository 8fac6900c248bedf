"""Edges, histograms and gradients."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from cspine.errors import IntensityError, UsageError
from cspine.imaging.features import canny, histogram, hog, sobel
from imaging_factory import images


def test_sobel_is_the_slope() -> None:
    ramp = np.tile(np.arange(10.0) * 3, (10, 1))
    np.testing.assert_allclose(sobel(ramp)[1:-1, 1:-1], 3)
    np.testing.assert_allclose(sobel(ramp.T), sobel(ramp).T, atol=1e-6)


def test_sobel_does_not_look_at_other_slices() -> None:
    stack = np.zeros((3, 6, 6))
    stack[1] = 5
    assert (sobel(stack) == 0).all()


def test_canny_draws_the_outline_of_a_square_once() -> None:
    pytest.importorskip("skimage")
    square = np.zeros((32, 32))
    square[7:25, 7:25] = 350  # the scanner blurs an edge
    square[8:24, 8:24] = 700
    edges = canny(square)
    assert set(np.unique(edges)) == {0, 1}
    assert edges[16].sum() == 2 and edges[:, 16].sum() == 2
    np.testing.assert_array_equal(canny(np.stack([square, square * 0]))[1], np.zeros((32, 32)))
    with pytest.raises(UsageError, match="low <= high"):
        canny(square, low=0.3, high=0.1)


@given(image=images)
@settings(max_examples=30)
def test_histograms_are_shares(image: np.ndarray) -> None:
    out = histogram(image, bins=8)
    assert out.shape == (8,) and out.sum() == pytest.approx(1, abs=1e-5)


def test_histogram_counts_what_lies_beyond_at_its_ends() -> None:
    out = histogram(np.array([[-1000, 5, 15, 3000]]), bins=2, low=0, high=20)
    assert out.tolist() == [0.5, 0.5]
    with pytest.raises(UsageError, match="low <= high"):
        histogram(np.zeros((2, 2)), low=1, high=0)


def test_hog_tells_stripes_apart_by_their_direction() -> None:
    pytest.importorskip("skimage")
    stripes = np.tile(np.sin(np.arange(64) / 2), (64, 1))
    along, across = hog(stripes), hog(stripes.T)
    assert along.shape == across.shape == (3 * 3 * 4 * 9,)
    assert along @ across < 0.5 * (along @ along)
    np.testing.assert_allclose(hog(np.stack([stripes, stripes])), along, atol=1e-6)
    assert (hog(np.ones((64, 64))) == 0).all()


def test_hog_needs_a_block() -> None:
    with pytest.raises(UsageError, match="at least 32 pixels"):
        hog(np.zeros((16, 64)))


def test_nan_is_refused() -> None:
    for function in (sobel, histogram):
        with pytest.raises(IntensityError, match="NaN"):
            function(np.full((4, 4), np.nan))
