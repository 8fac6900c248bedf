"""Denoising, blur, sharpening and noise: always within a slice, always within the image's range."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from numpy.typing import NDArray

from cspine.errors import IntensityError, UsageError
from cspine.imaging import filters
from imaging_factory import images

Image = NDArray[np.float32]
FILTERS: dict[str, Callable[[Image], Image]] = {
    "gaussian": filters.gaussian,
    "median": filters.median,
    "motion-blur": lambda image: filters.motion_blur(image, 5, 30),
    "sharpen": filters.sharpen,
    "noise": lambda image: filters.noise(image, 10, np.random.default_rng(0)),
}
SMOOTHERS = ("gaussian", "median", "motion-blur")


@pytest.mark.parametrize("name", FILTERS)
@given(image=images)
@settings(max_examples=20)
def test_range_and_shape_stay_and_the_input_too(name: str, image: Image) -> None:
    before = image.copy()
    out = FILTERS[name](image)
    assert out.dtype == np.float32 and out.shape == image.shape
    assert image.min() <= out.min() and out.max() <= image.max()
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("name", FILTERS)
def test_a_constant_stays(name: str) -> None:
    np.testing.assert_array_equal(FILTERS[name](np.full((3, 4), 7, np.float32)), np.full((3, 4), 7))


@pytest.mark.parametrize("name", FILTERS)
def test_nan_is_refused(name: str) -> None:
    with pytest.raises(IntensityError, match="NaN"):
        FILTERS[name](np.full((3, 3), np.nan, np.float32))


@pytest.mark.parametrize("name", SMOOTHERS)
def test_slices_do_not_mix(name: str) -> None:
    stack = np.zeros((3, 9, 9), np.float32)
    stack[1] = 1
    np.testing.assert_allclose(FILTERS[name](stack), stack, atol=1e-6)


@pytest.mark.parametrize("name", SMOOTHERS)
def test_noise_shrinks(name: str) -> None:
    grain = np.random.default_rng(1).normal(0, 1, (32, 32)).astype(np.float32)
    assert FILTERS[name](grain).std() < 0.6 * grain.std()


def test_median_takes_out_a_pixel_and_keeps_an_edge() -> None:
    image = np.zeros((9, 9), np.float32)
    image[:, 5:] = 1
    wild = image.copy()
    wild[4, 1] = 100
    np.testing.assert_array_equal(filters.median(wild), image)


def test_motion_runs_along_its_angle() -> None:
    point = np.zeros((15, 15), np.float32)
    point[7, 7] = 1
    along_x = filters.motion_blur(point, 7, 0)
    assert (along_x.sum(1) > 0).sum() == 1 and (along_x.sum(0) > 0).sum() == 7
    np.testing.assert_allclose(filters.motion_blur(point, 7, 90), along_x.T, atol=1e-6)
    assert along_x.sum() == pytest.approx(1)
    np.testing.assert_allclose(along_x, along_x[:, ::-1], atol=1e-6)


def test_sharpening_makes_an_edge_steeper() -> None:
    edge = filters.gaussian(np.repeat([[0.0] * 8 + [1.0] * 8], 4, 0), 2)
    assert np.diff(filters.sharpen(edge, 2, 1.0), axis=1).max() > np.diff(edge, axis=1).max()


def test_noise_has_its_deviation_and_comes_back_with_its_seed() -> None:
    image = np.full((64, 64), 0.5, np.float32)
    image[0, 0], image[0, 1] = 0, 1
    one, again = (filters.noise(image, 0.05, np.random.default_rng(3)) for _ in range(2))
    assert (one - image).std() == pytest.approx(0.05, rel=0.1)
    np.testing.assert_array_equal(one, again)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda image: filters.gaussian(image, -1),
        lambda image: filters.median(image, 4),
        lambda image: filters.motion_blur(image, 0),
        lambda image: filters.noise(image, -1, np.random.default_rng(0)),
    ],
)
def test_impossible_parameters_are_refused(wrong: Callable[[Image], Image]) -> None:
    with pytest.raises(UsageError, match="expected"):
        wrong(np.eye(3, dtype=np.float32))
