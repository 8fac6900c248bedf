"""Table, text, markers and metal."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from cspine.errors import IntensityError, UsageError
from cspine.imaging import Sample
from cspine.imaging.artefacts import KeepBody, body_mask, clip_metal, keep_body

ROWS, COLUMNS = np.indices((64, 64))


@pytest.fixture
def neck() -> NDArray[np.float32]:
    """A disc of tissue with an airway and a vertebra; below it a table, in a corner a letter."""
    away = np.hypot(ROWS - 28, COLUMNS - 32)
    image = np.where(away < 20, 40.0, -1000.0)
    image[np.hypot(ROWS - 20, COLUMNS - 32) < 4] = -950
    image[np.hypot(ROWS - 34, COLUMNS - 32) < 5] = 700
    image[56:59] = 200
    image[4:12, 4:6] = 3000
    image[10:12, 4:9] = 3000
    return image.astype(np.float32)


def test_body_is_the_patient_with_the_air_inside(neck: NDArray[np.float32]) -> None:
    np.testing.assert_array_equal(body_mask(neck), np.hypot(ROWS - 28, COLUMNS - 32) < 20)


def test_table_and_letter_go(neck: NDArray[np.float32]) -> None:
    sample = Sample(neck, (neck > 0).astype(np.uint8))
    out = keep_body(sample)
    assert (out.image[50:] == -1000).all() and (out.image[:8] == -1000).all()
    assert out.mask is not None and not out.mask[50:].any()
    np.testing.assert_array_equal(out.image[10:46, 20:44], neck[10:46, 20:44])
    assert keep_body(sample, fill=-2000).image.min() == -2000


def test_a_cable_on_the_skin_is_cut_off(neck: NDArray[np.float32]) -> None:
    neck[28:30, 50:64] = 100
    assert not body_mask(neck)[28, 56:].any()
    assert body_mask(neck, opening=0)[28, 56:].any()


def test_a_body_that_the_frame_cuts_reaches_the_frame() -> None:
    image = np.full((20, 20), -1000, np.float32)
    image[:, 5:] = 40
    np.testing.assert_array_equal(body_mask(image), image > 0)


def test_in_a_stack_the_body_is_one(neck: NDArray[np.float32]) -> None:
    """Where a slice shows more table than patient, the patient is still the one that goes on."""
    thin = np.where(np.hypot(ROWS - 28, COLUMNS - 32) < 6, 40, np.where(ROWS > 50, 40, -1000))
    above = np.full((64, 64), -1000)
    body = body_mask(np.stack([neck, neck, neck, thin, above]).astype(np.float32))
    assert body[3, 28, 32] and not body[3, 60].any() and not body[4].any()


@pytest.mark.parametrize("image", [np.full((5, 5), -1000.0), np.zeros((1, 1))])
def test_nothing_above_the_threshold_is_said(image: NDArray[np.float64]) -> None:
    with pytest.raises(IntensityError, match="brightest pixel"):
        body_mask(image, threshold=0.5)


def test_one_pixel_of_body_is_a_body() -> None:
    assert body_mask(np.zeros((1, 1))).tolist() == [[True]]


def test_pictures_of_8_bits_have_a_threshold_of_their_own(neck: NDArray[np.float32]) -> None:
    picture = Sample(np.clip((neck + 500) / 2000, 0, 1))
    out = KeepBody(threshold=0.1).apply(picture, np.random.default_rng(0))
    assert (out.image[50:] == 0).all() and out.image[34, 32] > 0.5


def test_metal_is_cut_and_dark_streaks_beside_it_are_lifted() -> None:
    image = np.full((2, 21, 21), 40, np.float32)
    image[0, 10, 10] = 20_000
    image[0, 10, 11:15] = -900
    image[0, 10, 20] = -900
    image[1, 0, 0] = -3024
    out = clip_metal(image, reach=4)
    assert out.max() == 3000 and out.min() == -1024
    assert (out[0, 10, 11:15] == -200).all()
    assert out[0, 10, 20] == -900
    assert (out[1, 5:] == 40).all()
    assert image.max() == 20_000


def test_without_metal_only_the_ends_are_cut() -> None:
    np.testing.assert_array_equal(clip_metal(np.array([[-3000, -900, 2000]])), [[-1024, -900, 2000]])
    with pytest.raises(UsageError, match="air <= dark < metal"):
        clip_metal(np.zeros((2, 2)), metal=-500)
