"""Unlabelled scans teach only where the network agrees with itself, or a reader said where levels are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from cspine.errors import StudyError
from cspine.training.self_training import pseudo_label, read_marks, scanned_slices
from cspine.volume import Volume
from oracle import Patient, make_patient

# Bone of label k has this HU, so a network can read labels off the picture, wherever it lies and however it is turned.
FIRST_HU, STEP_HU = 300, 100


@pytest.fixture(scope="module")
def patient() -> Patient:
    made = make_patient(z_mm=(-160.0, 10.0), spacing=(2.0, 2.0, 2.0), count=9)
    labels = made.labels.hu
    hu = np.where(labels > 0, FIRST_HU + STEP_HU * labels.astype(int), 40).astype(np.int16)
    return replace(made, volume=Volume(hu, made.volume.affine))


def read_labels(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits ``[1, 11, Z, Y, X]`` of a network that never errs."""
    return answer(np.clip(np.rint((image[0, 0] * 1000 - FIRST_HU) / STEP_HU), 0, 8).astype(int))


def count_from_the_top(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """One that takes the highest bone for C1, whatever it is."""
    labels = np.clip(np.rint((image[0, 0] * 1000 - FIRST_HU) / STEP_HU), 0, 8).astype(int)
    first = labels[labels > 0].min(initial=9)
    return answer(np.where(labels > 0, labels - first + 1, 0))


def answer(labels: NDArray[np.int_]) -> NDArray[np.float32]:
    logits = np.full((11, *labels.shape), -6.0, np.float32)
    np.put_along_axis(logits[:10], labels[None], 6.0, axis=0)
    z, y, x = np.indices(labels.shape)
    heat = np.full(labels.shape, 0.001)
    for label in range(1, 9):
        # Thoracic vertebrae share a label: each piece in a slab of its own.
        slabs, count = ndimage.label((labels == label).any(axis=(1, 2)))
        for piece in range(1, count + 1):
            own = (labels == label) & (slabs == piece)[:, None, None]
            if own.sum() > 40:
                centre = np.median(np.argwhere(own), axis=0)
                heat = np.maximum(heat, np.exp(-(((z, y, x) - centre[:, None, None, None]) ** 2).sum(0) / 8))
    logits[10] = np.log(np.clip(heat, 1e-3, 0.99) / (1 - np.clip(heat, 1e-3, 0.99)))
    return logits[None]


def test_a_scan_that_the_network_agrees_on_is_kept(patient: Patient) -> None:
    verdict = pseudo_label(patient.volume, read_labels)
    assert verdict.sample is not None, verdict.reason
    assert verdict.sample.hu.shape == verdict.sample.labels.shape
    assert set(range(1, 8)) <= set(np.unique(verdict.sample.labels))
    assert not verdict.sample.thoracic_known


def test_a_network_that_counts_from_the_top_disagrees_with_itself(patient: Patient) -> None:
    verdict = pseudo_label(patient.volume, count_from_the_top)
    assert verdict.sample is None
    assert "levels move" in verdict.reason


def test_a_readers_marks_replace_the_networks_names(patient: Patient) -> None:
    marks = {label + 1: tuple(float(v) for v in at) for label, at in patient.centers.items() if label < 8}
    verdict = pseudo_label(patient.volume, read_labels, marks)  # type: ignore[arg-type]
    assert verdict.sample is not None
    true = pseudo_label(patient.volume, read_labels).sample
    assert true is not None
    body = true.labels == 4
    assert np.bincount(verdict.sample.labels[body]).argmax() == 5
    assert list(verdict.sample.centers[:, 0]) == sorted(marks)


def test_blanked_slices_hold_no_labels(patient: Patient) -> None:
    hu = patient.volume.hu.copy()
    cut = 40
    strip = hu[:cut, 20:30, 28:36].copy()
    hu[:cut] = -1000
    hu[:cut, 20:30, 28:36] = strip
    blanked = Volume(hu, patient.volume.affine)
    assert scanned_slices(blanked) == slice(cut, len(hu))
    verdict = pseudo_label(blanked, read_labels)
    assert verdict.sample is not None, verdict.reason
    assert verdict.sample.labels.any(axis=(1, 2)).sum() <= len(hu) - cut


def test_marks_are_read_or_refused(tmp_path: Path) -> None:
    good = tmp_path / "marks.json"
    good.write_text(json.dumps({"neck": {"levels": {"C7": [1, 2, 3], "T1": [1, 2, -15]}}}))
    assert read_marks(good) == {"neck": {7: (1.0, 2.0, 3.0), 8: (1.0, 2.0, -15.0)}}
    bad = tmp_path / "bad.json"
    bad.write_text('{"neck": {"levels": {"C7": "here"}}}')
    with pytest.raises(StudyError, match="marks of levels"):
        read_marks(bad)


def test_marks_must_be_of_consecutive_levels(patient: Patient) -> None:
    with pytest.raises(StudyError, match="consecutive"):
        pseudo_label(patient.volume, read_labels, {3: (0.0, 0.0, 0.0), 5: (0.0, 0.0, -34.0)})
