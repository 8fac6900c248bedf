"""Samples on disk: they come back as written, know their vertebrae, and are split by number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cspine.anatomy import Level
from cspine.errors import StudyError
from cspine.training.samples import classifier_sample, locator_sample, read_locator_sample, read_meta, sample_paths
from tiny_recipe import write_samples
from training_factory import block_case


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_samples(tmp_path_factory.mktemp("samples"))


def test_samples_come_back_as_written(samples: Path) -> None:
    case = block_case(1)
    whole = locator_sample(case, {8: (0.0, 0.0, -140.0)})
    again = read_locator_sample(samples / "locator" / "phantom-000001")
    assert np.array_equal(whole.hu, again.hu)
    assert np.array_equal(whole.labels, again.labels)
    assert np.array_equal(whole.centers[:-1], again.centers)
    assert again.hu.shape == again.labels.shape


def test_centres_lie_in_their_vertebra(samples: Path) -> None:
    sample = read_locator_sample(samples / "locator" / "phantom-000001")
    for label, x, y, z in sample.centers:
        assert sample.labels[round(z), round(y), round(x)] == label


def test_the_split_is_by_number_and_unfinished_samples_do_not_count(samples: Path) -> None:
    (samples / "locator" / ".phantom-000016.half").mkdir(exist_ok=True)
    assert [path.name for path in sample_paths(samples / "locator", held_back=True)] == ["phantom-000000"]
    names = [path.name for path in sample_paths(samples / "locator", held_back=False)]
    assert names == ["phantom-000001", "phantom-000002"]


def test_a_foreign_folder_is_no_sample(tmp_path: Path) -> None:
    (tmp_path / "meta.json").write_text('{"format": 99}')
    with pytest.raises(StudyError, match="format"):
        read_meta(tmp_path)


def test_fracture_points_know_their_vertebra() -> None:
    sample = classifier_sample(block_case(5, fractured=True))
    assert {int(label) for label in np.unique(sample.points[:, 0])} == {int(level) for level in Level}
    for vertebra in sample.vertebrae:
        own = sample.points[sample.points[:, 0] == vertebra.label, 1:]
        assert np.abs(vertebra.frame.to_local(own)[:, 2]).max() < 14
