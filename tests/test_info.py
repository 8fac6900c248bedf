"""``cspine info``: what is in there and what would be judged, from headers alone."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
from typer.testing import CliRunner, Result

from cspine.cli.app import app
from dicom_factory import Grid, write_localizer, write_series
from labelled_factory import picture, write_picture


def info(path: Path) -> Result:
    return CliRunner(env={"COLUMNS": "300"}).invoke(app, ["info", str(path)])


def test_the_series_that_would_be_judged_is_marked_and_the_others_say_why_not(tmp_path: Path) -> None:
    write_series(tmp_path, Grid(), series="1")
    write_localizer(tmp_path, series="9")
    result = info(tmp_path)
    assert result.exit_code == 0
    rows = [line for line in result.stdout.splitlines() if "axial" in line or "localizer" in line]
    assert "judged" in rows[0]
    assert "12 axial slices" in rows[0]
    assert "localizers" in rows[1]
    assert "judged" not in rows[1]


def test_pixels_are_not_needed(tmp_path: Path) -> None:
    for path in write_series(tmp_path, Grid()):
        data = path.read_bytes()
        path.write_bytes(data[: -40 * 48])
    assert info(tmp_path).exit_code == 0


def test_a_nifti_file_is_one_image(tmp_path: Path) -> None:
    path = tmp_path / "neck.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros((5, 6, 7), np.int16), np.diag([1.0, 1.0, 2.5, 1.0])), path)
    result = info(path)
    assert (result.exit_code, result.stdout) == (0, "NIfTI: one image of 5 x 6 x 7 voxels, 1.00 x 1.00 x 2.50 mm\n")


def test_nothing_to_open_is_an_error(tmp_path: Path) -> None:
    assert info(tmp_path).exit_code == 3
    assert info(tmp_path / "gone").exit_code == 2


def test_pictures_are_counted(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        write_picture(tmp_path / "set" / name, picture(0))
    assert "2 pictures, each judged on its own" in info(tmp_path / "set").output
    assert "one picture judged on its own" in info(tmp_path / "set" / "a.png").output
