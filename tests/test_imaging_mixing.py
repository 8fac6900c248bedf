"""Mixup and CutMix: labels follow what the images show."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cspine.errors import IntensityError, UsageError
from cspine.imaging import Batch
from cspine.imaging.mixing import BatchStep, CutMix, Mixup, cutmix, mixup

SWAP = np.array([1, 0])


def black_and_white(n: int = 2) -> Batch:
    """Images of value 0 and 1 in turn, each labelled by its value."""
    values = np.arange(n) % 2
    images = np.broadcast_to(values[:, None, None], (n, 8, 10)).astype(np.float32)
    return Batch(images, values[:, None], images.astype(np.uint8))


def test_mixup_is_a_weighted_mean_of_images_and_labels() -> None:
    out = mixup(black_and_white(), SWAP, np.array([0.75, 0.6]))
    np.testing.assert_allclose(out.images[:, 0, 0], [0.25, 0.6])
    np.testing.assert_allclose(out.labels[:, 0], [0.25, 0.6])
    assert out.masks is not None and out.masks[:, 0, 0].tolist() == [0, 1]


def test_cutmix_pastes_a_rectangle_and_counts_its_area() -> None:
    batch = black_and_white()
    out = cutmix(batch, SWAP, np.array([[0, 0, 5, 4], [8, 6, 99, 99]]))
    assert out.images[0, :4, :5].min() == 1 and out.images[0].sum() == 20
    np.testing.assert_allclose(out.labels[:, 0], [20 / 80, 1 - 4 / 80])
    np.testing.assert_array_equal(out.masks, out.images)
    assert batch.images[0].sum() == 0


@pytest.mark.parametrize("step", [Mixup(), CutMix()], ids=["mixup", "cutmix"])
@given(seed=st.integers(0, 500), n=st.integers(1, 5))
@settings(max_examples=25)
def test_labels_are_what_the_mean_pixel_says(step: BatchStep, seed: int, n: int) -> None:
    batch = black_and_white(n)
    out, again = (step.apply(batch, np.random.default_rng(seed)) for _ in range(2))
    np.testing.assert_allclose(out.images.mean((1, 2)), out.labels[:, 0], atol=1e-5)
    np.testing.assert_array_equal(out.images, again.images)
    np.testing.assert_array_equal(batch.images, black_and_white(n).images)


def test_with_probability_0_nothing_happens() -> None:
    batch = black_and_white()
    assert Mixup(probability=0).apply(batch, np.random.default_rng(0)) is batch


def test_what_does_not_belong_together_is_refused() -> None:
    batch = black_and_white()
    with pytest.raises(UsageError, match="as many labels"):
        Batch(batch.images, np.zeros(3))
    with pytest.raises(UsageError, match="from 0 to 1"):
        Batch(batch.images, np.array([0, 2]))
    with pytest.raises(UsageError, match="masks like the images"):
        Batch(batch.images, batch.labels, np.zeros((2, 4, 4), np.uint8))
    with pytest.raises(IntensityError, match="NaN"):
        Batch(np.full((1, 2, 2), np.nan), np.zeros(1))
    with pytest.raises(UsageError, match="share from 0 to 1"):
        mixup(batch, SWAP, np.array([0.5, 1.5]))
    with pytest.raises(UsageError, match="one rectangle"):
        cutmix(batch, SWAP, np.array([[5, 5, 1, 1], [0, 0, 1, 1]]))
