"""Planar samples: the same place and truth as the case, whatever order it was stored in; whole on disk or refused."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cspine.anatomy import LEVELS, Level
from cspine.cases import Case, Pictures
from cspine.errors import OutputError, StudyError
from cspine.inference.planar_images import STORED_SIZE
from cspine.training.planar_samples import (
    PlanarSample,
    boxes_of,
    heads_taught,
    image_index,
    planar_sample,
    read_planar,
    write_planar,
)
from cspine.volume import Volume
from labelled_factory import neck, picture

BROKEN, INTACT = neck(1, fractured=True), neck(2, fractured=False)


def stored_as(case: Case, order: tuple[int, int, int], flips: tuple[int, ...]) -> Case:
    """The same patient with array axes in another order and some of them reversed."""
    affine = case.volume.affine.copy()
    affine[:3, :3] = case.volume.affine[:3, [2 - order[2 - k] for k in range(3)]]
    arrays = [np.transpose(array, order) for array in (case.volume.hu, case.labels, case.fracture)]
    for axis in flips:
        affine[:3, 3] += affine[:3, 2 - axis] * (arrays[0].shape[axis] - 1)
        affine[:3, 2 - axis] *= -1
        arrays = [np.flip(array, axis) for array in arrays]
    hu, labels, fracture = arrays
    return replace(case, volume=Volume(hu, affine), labels=labels, fracture=fracture)


def equal(one: PlanarSample, other: PlanarSample) -> None:
    np.testing.assert_array_equal(one.volume.hu, other.volume.hu)
    np.testing.assert_allclose(one.volume.affine, other.volume.affine, atol=1e-6)
    for first, second in ((one.labels, other.labels), (one.fracture, other.fracture)):
        assert (first is None) is (second is None)
        if first is not None:
            np.testing.assert_array_equal(first, second)
    for name in ("fractured", "placed", "types", "image_fractured", "image_levels", "grey"):
        assert getattr(one, name) == getattr(other, name), name


def test_a_sample_is_read_as_it_was_written(tmp_path: Path) -> None:
    for number, case in enumerate((BROKEN, INTACT, replace(BROKEN, labels=None, fracture=None, levels={}))):
        sample = planar_sample(case)
        path = write_planar(sample, tmp_path, f"s{number}")
        equal(read_planar(path), sample)
        assert json.loads((path / "meta.json").read_text())["images"] == image_index(sample)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("flips", [(), (0,), (2,), (0, 1)])
def test_storage_order_changes_nothing(order: tuple[int, int, int], flips: tuple[int, ...]) -> None:
    # The block necks lean, and their fractures lie to one side: no mirror image of one is itself.
    sample, again = planar_sample(BROKEN), planar_sample(stored_as(BROKEN, order, flips))
    equal(again, sample)


def test_every_voxel_lies_where_it_was() -> None:
    sample = planar_sample(BROKEN)
    assert sample.labels is not None
    assert sample.fracture is not None
    for level in LEVELS:
        true = BROKEN.volume.to_world(np.argwhere(BROKEN.labels == level)[:, ::-1]).mean(axis=0)
        kept = sample.volume.to_world(np.argwhere(sample.labels == level)[:, ::-1]).mean(axis=0)
        np.testing.assert_allclose(kept, true, atol=1.0)
        broken = BROKEN.volume.to_world(np.argwhere(BROKEN.fracture & (BROKEN.labels == level))[:, ::-1])
        kept = sample.volume.to_world(np.argwhere(sample.fracture == level)[:, ::-1])
        np.testing.assert_allclose(kept.mean(axis=0), broken.mean(axis=0), atol=1.5)


def test_large_scans_are_made_smaller_and_none_larger() -> None:
    fine = Volume(np.zeros((6, 700, 500), np.int16), np.diag([0.3, 0.3, 0.8, 1.0]))
    case = Case("x", fine, np.zeros(fine.shape, np.uint8), np.zeros(fine.shape, bool))
    assert max(planar_sample(case).volume.shape[1:]) == STORED_SIZE
    assert planar_sample(case).volume.spacing[2] == pytest.approx(2.0)
    assert planar_sample(BROKEN).volume.shape == BROKEN.volume.shape


def test_the_index_says_what_each_image_shows() -> None:
    sample = planar_sample(BROKEN)
    rows = image_index(sample)
    assert len(rows) == sample.volume.shape[0]
    for z, row in enumerate(rows):
        assert row["visible"] == [level for level in range(1, 8) if (sample.labels[z] == level).sum() * 4 >= 30]
        assert set(row["broken"]) <= set(range(1, 8))
        assert row["slice"] == (1 if row["broken"] else 0)
    assert {level for row in rows for level in row["visible"]} == set(range(1, 8))
    assert {level for row in rows for level in row["broken"]} == set(range(1, 8))
    assert {row["slice"] for row in image_index(planar_sample(INTACT))} == {0}


def test_nothing_is_said_where_nobody_knows() -> None:
    unplaced = {level: replace(truth, place_known=False) for level, truth in BROKEN.levels.items()}
    sample = planar_sample(replace(BROKEN, fracture=np.zeros(BROKEN.volume.shape, bool), levels=unplaced))
    assert sample.placed == (False,) * 7
    for row in image_index(sample):
        assert row["slice"] == (None if row["visible"] else 0)
    nobody = planar_sample(replace(BROKEN, levels={}, fracture=None))
    assert nobody.fractured == (None,) * 7
    assert all(row["slice"] is None for row in image_index(nobody) if row["visible"])
    assert all(row == {"visible": [], "broken": [], "slice": None} for row in image_index(
        planar_sample(replace(BROKEN, labels=None, fracture=None))
    ))  # fmt: skip


def of_pictures(**known: object) -> Case:
    planes = np.stack([picture(k, (64, 48)) for k in range(3)]).astype(np.int16)
    pictures = Pictures((True, False, None), ((Level.C5,), (Level.C4, Level.C5), None), grey=True)
    return Case("p", Volume(planes, np.eye(4)), pictures=pictures, **known)  # type: ignore[arg-type]


def test_pictures_keep_what_is_said_of_each(tmp_path: Path) -> None:
    sample = planar_sample(of_pictures())
    np.testing.assert_array_equal(sample.volume.hu, of_pictures().volume.hu)
    np.testing.assert_array_equal(sample.volume.affine, np.eye(4))
    assert (sample.image_fractured, sample.image_levels) == ((True, False, None), ((5,), (4, 5), None))
    assert image_index(sample) == [
        {"visible": [5], "broken": [5], "slice": 1},
        {"visible": [4, 5], "broken": [], "slice": 0},
        {"visible": [], "broken": [], "slice": None},
    ]
    equal(read_planar(write_planar(sample, tmp_path, "p")), sample)


def test_large_pictures_are_made_smaller_without_being_mixed() -> None:
    planes = np.zeros((3, 640, 480), np.int16)
    planes[1] = 200
    labels = np.zeros(planes.shape, np.uint8)
    labels[1, 100:300, 100:200] = 5
    case = replace(of_pictures(labels=labels), volume=Volume(planes, np.eye(4)))
    sample = planar_sample(case)
    assert sample.volume.shape == (3, 320, 240)
    assert [int(plane.min()) for plane in sample.volume.hu] == [int(plane.max()) for plane in sample.volume.hu]
    assert sample.volume.spacing == (1, 1, 1)
    assert sample.labels is not None
    assert (sample.labels == 5).sum(axis=(1, 2)).tolist() == [0, 100 * 50, 0]
    assert sample.image_levels is None


def test_fractures_of_pictures_belong_to_the_vertebra_they_show() -> None:
    fracture = np.zeros((3, 64, 48), bool)
    fracture[0, 10:14, 10:14] = True
    labels = np.zeros(fracture.shape, np.uint8)
    labels[0, 8:20, 12:20], labels[0, 8:20, 25:30] = 3, 4
    for case, level in ((of_pictures(fracture=fracture), 5), (of_pictures(fracture=fracture, labels=labels), 3)):
        sample = planar_sample(case)
        assert sample.fracture is not None
        np.testing.assert_array_equal(sample.fracture, np.where(fracture, level, 0))
        assert sample.placed == (True,) * 7
    unnamed = fracture | (np.arange(3) == 2)[:, None, None]
    assert planar_sample(of_pictures(fracture=unnamed)).fracture is None


def test_what_samples_teach(tmp_path: Path) -> None:
    write_planar(planar_sample(INTACT), tmp_path / "intact", "a")
    assert heads_taught(tmp_path / "intact") == {"levels", "visible", "boxes"}
    write_planar(planar_sample(BROKEN), tmp_path / "broken", "a")
    assert heads_taught(tmp_path / "broken") == {"levels", "visible", "boxes", "fracture", "broken", "slice", "types"}
    write_planar(planar_sample(of_pictures()), tmp_path / "pictures", "a")
    assert heads_taught(tmp_path / "pictures") == {"visible", "broken", "slice"}
    assert heads_taught(tmp_path / "none") == frozenset()


def torn(path: Path) -> None:
    (path / "scan.npz").write_bytes((path / "scan.npz").read_bytes()[:300])


def bent(path: Path) -> None:
    data = bytearray((path / "scan.npz").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
    (path / "scan.npz").write_bytes(bytes(data))


def emptied(path: Path) -> None:
    np.savez(path / "scan.npz", other=np.zeros(3))


def uneven(path: Path) -> None:
    np.savez(path / "scan.npz", hu=np.zeros((2, 3, 4), np.int16), labels=np.zeros((2, 3, 5), np.uint8))


def short(path: Path) -> None:
    (path / "meta.json").write_text('{"format": 1, "kind": "planar"}')


def gone(path: Path) -> None:
    (path / "scan.npz").unlink()


@pytest.mark.parametrize("spoil", [torn, bent, emptied, uneven, short, gone])
def test_a_damaged_sample_is_named(tmp_path: Path, spoil: object) -> None:
    path = write_planar(planar_sample(BROKEN), tmp_path, "s")
    spoil(path)  # type: ignore[operator]
    with pytest.raises(StudyError, match=r"planar training sample.*Delete that folder") as caught:
        read_planar(path)
    assert caught.value.where == str(path)


def test_a_file_in_the_way_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "planar").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        write_planar(planar_sample(BROKEN), tmp_path / "planar", "s")
    assert [path.name for path in tmp_path.iterdir()] == ["planar"]


def test_a_sample_that_is_there_is_kept(tmp_path: Path) -> None:
    path = write_planar(planar_sample(BROKEN), tmp_path, "s")
    write_planar(planar_sample(INTACT), tmp_path, "s")
    equal(read_planar(path), planar_sample(BROKEN))
    assert [item.name for item in tmp_path.iterdir()] == ["s"]


@given(st.integers(0, 30), st.integers(0, 20), st.integers(1, 9), st.integers(1, 8), st.integers(1, 9))
def test_boxes_hold_their_vertebra_to_the_pixel(x: int, y: int, width: int, height: int, label: int) -> None:
    labels = np.zeros((32, 48), np.uint8)
    labels[y : y + height, x : x + width] = label
    rows = boxes_of(labels).tolist()
    assert rows == ([[label, x, y, x + width, y + height]] if label <= 7 else [])
