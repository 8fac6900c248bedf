"""``cspine info``: what an input holds, without decoding it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cspine.cli.console import stdout

if TYPE_CHECKING:
    from rich.table import Table


def info(
    study: Annotated[
        Path,
        typer.Argument(
            metavar="STUDY", help="Folder or zip of DICOM files, one DICOM or NIfTI file.", show_default=False
        ),
    ],
) -> None:
    """List the series of an input, and say which one would be judged and why the others would not.

    Only headers are read. Of pictures it says how many there are.
    """
    from cspine.studies.files import StoredFile
    from cspine.studies.pictures import pictures_in
    from cspine.studies.study import is_nifti

    if study.is_file() and is_nifti(StoredFile(study.name, study.stat().st_size, study)):
        stdout().print(describe_nifti(study), markup=False, soft_wrap=True)
        return
    if count := len(pictures_in(study)):
        what = "one picture" if count == 1 else f"{count} pictures, each"
        stdout().print(f"{what} judged on its own by a bundle that was trained for pictures", soft_wrap=True)
        return
    stdout().print(table_of_series(study), markup=False)


def table_of_series(study: Path) -> Table:
    """One row a DICOM series, the one that would be judged first.

    Raises:
        StudyError: nothing in it is a DICOM image.
        UsageError: there is no such path.
    """
    from rich.table import Table

    from cspine.studies import list_series

    found = list_series(study)
    best = next((series for series in found if series.readable), None)
    table = Table()
    for column in ("", "modality", "what", "why not", "series UID (for --series)"):
        table.add_column(column, overflow="fold")
    for series in found:
        mark = "judged" if series is best else ""
        why_not = "" if series is best else series.reason or "another fits better"
        table.add_row(mark, series.modality, series.description, why_not, series.series_uid)
    return table


def describe_nifti(file: Path) -> str:
    """The size of a NIfTI image in words.

    Raises:
        DamagedFileError: its header cannot be read.
    """
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError, SpatialImage

    from cspine.errors import DamagedFileError

    try:
        image = nibabel.load(file)
        if not isinstance(image, SpatialImage):
            raise ImageFileError("not an image")
        shape, spacing = image.shape, image.header.get_zooms()
    except (ImageFileError, HeaderDataError, OSError, ValueError, EOFError) as error:
        raise DamagedFileError("the NIfTI header cannot be read", where=file.name) from error
    voxels = " x ".join(str(count) for count in shape)
    return f"NIfTI: one image of {voxels} voxels, {' x '.join(f'{size:.2f}' for size in spacing)} mm"
