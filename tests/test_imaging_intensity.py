"""Windows, ranges, contrast and histogram equalisation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from numpy.typing import NDArray

from cspine.errors import IntensityError, UsageError
from cspine.imaging import intensity
from imaging_factory import blob, images

Image = NDArray[np.float32]
# Name → the function with its defaults.
TO_UNIT: dict[str, Callable[[Image], Image]] = {
    "rescale": intensity.rescale,
    "percentiles": intensity.percentiles,
    "window": intensity.window,
    "equalise": intensity.equalise,
}
WITHIN: dict[str, Callable[[Image], Image]] = {
    "contrast": intensity.contrast,
    "gamma": lambda image: intensity.gamma(image, 0.7),
}


@pytest.mark.parametrize("name", TO_UNIT)
@given(image=images)
@settings(max_examples=30)
def test_values_end_between_0_and_1(name: str, image: Image) -> None:
    before = image.copy()
    out = TO_UNIT[name](image)
    assert out.dtype == np.float32 and out.shape == image.shape
    assert out.min() >= 0 and out.max() <= 1
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("name", WITHIN)
@given(image=images)
@settings(max_examples=30)
def test_the_range_stays(name: str, image: Image) -> None:
    out = WITHIN[name](image)
    assert out.dtype == np.float32
    assert image.min() <= out.min() and out.max() <= image.max()


@pytest.mark.parametrize("name", [*TO_UNIT, *WITHIN, "standardise"])
def test_order_of_brightness_stays(name: str) -> None:
    ramp = np.linspace(-900, 2000, 64, dtype=np.float32).reshape(8, 8)
    out = {**TO_UNIT, **WITHIN, "standardise": intensity.standardise}[name](ramp).ravel()
    assert (np.diff(out) >= -1e-6).all() and out[-1] > out[0]


@pytest.mark.parametrize("name", [*TO_UNIT, *WITHIN, "standardise"])
def test_nan_is_refused(name: str) -> None:
    with pytest.raises(IntensityError, match="NaN"):
        {**TO_UNIT, **WITHIN, "standardise": intensity.standardise}[name](np.full((3, 3), np.nan, np.float32))


@pytest.mark.parametrize("shape", [(1, 1), (5, 5), (2, 3, 4)])
def test_a_constant_has_nothing_to_stretch(shape: tuple[int, ...]) -> None:
    image = np.full(shape, 40.1, np.float32)
    for function in (intensity.rescale, intensity.percentiles, intensity.equalise, intensity.standardise):
        assert (function(image) == 0).all()
    np.testing.assert_allclose(intensity.contrast(image), image)
    np.testing.assert_allclose(intensity.gamma(image, 2.0), image)


def test_rescale_reaches_both_ends() -> None:
    out = intensity.rescale(np.array([[-1000, 0], [500, 3000]]), -1, 1)
    assert out.min() == -1 and out.max() == 1
    assert out[0, 1] == pytest.approx(-0.5)


def test_window_of_the_documents() -> None:
    """Level 500, width 2000: -500 HU is black, 500 grey, 1500 white."""
    out = intensity.window(np.array([[-1000, -500, 500, 1500, 3000]]), level=500, width=2000)
    assert out.tolist() == [[0, 0, 0.5, 1, 1]]


def test_a_picture_keeps_what_its_window_shows_in_256_steps() -> None:
    hu = np.array([[-1000.0, -300.0, 600.0, 1500.0, 3000.0]], np.float32)
    np.testing.assert_allclose(intensity.as_picture(hu, 600, 1800), [[-300, -300, 603.5, 1500, 1500]], atol=0.1)
    # Made with another window than it is read with, bone looks like something else.
    seen = intensity.as_picture(hu, 200, 400, shown_level=500, shown_width=2000)
    np.testing.assert_allclose(seen, [[-500, -500, 1500, 1500, 1500]], atol=0.1)
    assert len(np.unique(intensity.as_picture(np.linspace(-500, 2000, 5000, dtype=np.float32)[None], 600, 1800))) == 256


def test_percentiles_leave_out_a_wild_pixel() -> None:
    image = np.tile(np.linspace(0, 100, 100, dtype=np.float32), (100, 1))
    image[0, 0] = 30_000
    assert intensity.percentiles(image)[50, 50] == pytest.approx(0.5, abs=0.02)
    assert intensity.rescale(image)[50, 50] < 0.01


def test_standardise_has_mean_0_and_deviation_1_or_what_is_given() -> None:
    out = intensity.standardise(blob())
    assert out.mean() == pytest.approx(0, abs=1e-4) and out.std() == pytest.approx(1, abs=1e-4)
    assert intensity.standardise(np.array([[100.0, 300.0]]), mean=100, deviation=50).tolist() == [[0, 4]]


def test_contrast_stretches_about_the_mean_and_shifts() -> None:
    image = np.array([[0, 4, 6, 10]], np.float32)
    np.testing.assert_allclose(intensity.contrast(image, 2), [[0, 3, 7, 10]])
    np.testing.assert_allclose(intensity.contrast(image, 1, 1), [[1, 5, 7, 10]])


def test_gamma_below_1_brightens() -> None:
    image = np.linspace(0, 1, 11, dtype=np.float32)[None]
    assert (intensity.gamma(image, 0.5)[0, 1:-1] > image[0, 1:-1]).all()


def test_equalise_makes_all_values_equally_frequent() -> None:
    image = np.random.default_rng(0).exponential(100, (64, 64)).astype(np.float32)
    counts, _ = np.histogram(intensity.equalise(image, 1024), 4, (0, 1))
    assert counts.min() > 0.9 * image.size / 4


def test_clahe_raises_contrast_where_there_is_little() -> None:
    pytest.importorskip("skimage")
    faint = np.tile(np.linspace(0.4, 0.45, 64, dtype=np.float32), (64, 1))
    faint[0, 0], faint[0, 1] = 0, 1
    out = intensity.clahe(np.stack([faint, np.zeros_like(faint)]), clip=0.05)
    assert out.min() >= 0 and out.max() <= 1
    assert np.ptp(out[0, 32]) > 2 * np.ptp(faint[32])
    assert (out[1] == 0).all()
    assert intensity.clahe(np.ones((1, 1))).tolist() == [[0]]
    assert intensity.clahe(np.eye(3)).shape == (3, 3)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda image: intensity.window(image, width=0),
        lambda image: intensity.as_picture(image, 500, 0),
        lambda image: intensity.as_picture(image, 500, 2000, shown_width=0),
        lambda image: intensity.rescale(image, 1, 0),
        lambda image: intensity.percentiles(image, 60, 40),
        lambda image: intensity.gamma(image, 0),
        lambda image: intensity.standardise(image, deviation=0),
    ],
)
def test_impossible_parameters_are_refused(wrong: Callable[[Image], Image]) -> None:
    with pytest.raises(UsageError, match="expected"):
        wrong(np.eye(3, dtype=np.float32))
