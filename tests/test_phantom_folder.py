"""Phantoms read back as they were made: volume, masks, truth of every level, boxes, centres."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cspine.anatomy import Level
from cspine.errors import CspineError, DamagedFileError, NoImagesError, StudyError
from cspine.phantoms.acquisition import acquire
from cspine.phantoms.case import case_of
from cspine.phantoms.cohort import Cohort
from cspine.phantoms.planting_set import PlantedSet
from cspine.phantoms.scanner import Scanner
from cspine.studies.labelled import LabelledStudies, open_labelled
from cspine.studies.phantom_folder import PhantomFolder
from fake_scene import FakeFracture, FakeScene
from labelled_factory import T1, neck, write_phantoms

SMALL = Scanner(
    pixel=2.5, matrix=(40, 36), spacing=3.0, thickness=3.0, above_c1=10, below_c7=10, sample=2.5, circle=1.05
)  # fmt: skip


@pytest.mark.parametrize("layout", ["nifti", "dicom"])
def test_a_phantom_is_read_as_it_was_made(tmp_path: Path, layout: str) -> None:
    made = write_phantoms(tmp_path, 2, layout)
    folder = open_labelled(tmp_path)
    assert isinstance(folder, PhantomFolder)
    assert isinstance(folder, LabelledStudies)
    assert (folder.kind, folder.studies) == ("phantoms", tuple(case.name for case in made))
    for case in made:
        read = folder.case(case.name)
        np.testing.assert_allclose(read.volume.affine, case.volume.affine, atol=1e-3)
        np.testing.assert_array_equal(read.volume.hu, np.maximum(case.volume.hu, -1024))
        np.testing.assert_array_equal(read.labels, case.labels)
        np.testing.assert_array_equal(read.fracture, case.fracture)
        assert read.levels == case.levels
        assert read.thoracic_mm == {8: T1}
        flags = tuple(truth.fractured for _, truth in sorted(case.levels.items()))
        assert folder.labels()[case.name] == (*flags, any(flags))


@pytest.mark.parametrize("tilt", [0.0, 12.0])
def test_boxes_lie_on_the_fracture_also_when_the_gantry_was_tilted(tmp_path: Path, tilt: float) -> None:
    scanner = replace(SMALL, tilt=tilt)
    scene = FakeScene((FakeFracture(5),))
    case = case_of(scene, acquire(scene, scanner, np.random.default_rng(0)), name="phantom-clinical-000000")
    cohort = Cohort(tmp_path, layout="dicom")
    cohort.begin()
    cohort.write(case, 0)
    read = PhantomFolder.open(tmp_path).case(case.name)
    assert read.boxes
    assert read.thoracic_mm is not None
    assert sorted(read.thoracic_mm) == [8, 9, 10, 11, 12]
    for box in read.boxes:
        assert box.level is Level.C5
        inside = read.fracture[box.slice_index, box.y_min : box.y_max, box.x_min : box.x_max]
        # Masks are moved by the nearest voxel, boxes by their edges.
        assert inside.sum() >= 0.6 * read.fracture[box.slice_index].sum() > 0


def test_what_is_wrong_with_one_phantom_stops_no_other(tmp_path: Path) -> None:
    made = write_phantoms(tmp_path, 4)
    truth = tmp_path / "truth"
    (truth / f"{made[1].name}.json").write_text("{")
    (truth / f"{made[2].name}.json").unlink()
    (tmp_path / "studies" / f"{made[3].name}.nii.gz").unlink()
    folder = PhantomFolder.open(tmp_path)
    assert folder.studies == (made[0].name,)
    kinds = {name: type(fault) for name, fault in folder.faults.items()}
    assert kinds == {made[1].name: DamagedFileError, made[2].name: StudyError, made[3].name: NoImagesError}
    with pytest.raises(CspineError, match="truth of a phantom cannot be read"):
        folder.case(made[1].name)


def test_truth_with_a_level_that_makes_no_sense_is_damaged(tmp_path: Path) -> None:
    made = write_phantoms(tmp_path, 1)
    path = tmp_path / "truth" / f"{made[0].name}.json"
    truth = json.loads(path.read_text())
    del truth["levels"]["C3"]["fractured"]
    path.write_text(json.dumps(truth))
    with pytest.raises(DamagedFileError, match="fractured"):
        PhantomFolder.open(tmp_path).case(made[0].name)


def test_phantoms_from_before_thoracic_centres_still_open(tmp_path: Path) -> None:
    made = write_phantoms(tmp_path, 1)
    path = tmp_path / "truth" / f"{made[0].name}.json"
    truth = json.loads(path.read_text())
    del truth["thoracic_mm"]
    path.write_text(json.dumps(truth))
    assert PhantomFolder.open(tmp_path).case(made[0].name).thoracic_mm is None


def test_an_unfinished_folder_says_so(tmp_path: Path) -> None:
    Cohort(tmp_path, layout="nifti").begin()
    (tmp_path / "studies").mkdir()
    (tmp_path / "truth").mkdir()
    with pytest.raises(NoImagesError, match=r"no phantom is finished.*cspine phantom"):
        open_labelled(tmp_path)


def test_what_was_planted_in_one_scan_is_one_patient(tmp_path: Path) -> None:
    planted = PlantedSet(tmp_path, "scan")
    planted.begin()
    for number in range(2):
        Cohort(tmp_path, layout="nifti").write(replace(neck(number), name=planted.name_of(number)), number)
    folder = open_labelled(tmp_path)
    assert len(folder.studies) == 2
    assert len(set(folder.patients.values())) == 1
