"""``cspine plant``: named fractures in a scan that has none."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cspine.cli import console

if TYPE_CHECKING:
    from cspine.volume import Volume


class LayoutName(StrEnum):
    """How the files are laid out."""

    NIFTI = "nifti"
    DICOM = "dicom"


def plant(
    scan: Annotated[Path, typer.Argument(metavar="SCAN", help="A CT of a neck without fractures: DICOM or NIfTI.")],
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="DIR", help="Folder for the studies.", show_default=False)
    ],
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="How many studies.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same studies, byte for byte.")] = 0,
    rate: Annotated[float, typer.Option(min=0, max=1, help="Chance of a fracture of every vertebra.")] = 0.4,
    labels: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Mask with 1..7 = C1..C7 on any grid; found by the locator when not given."),
    ] = None,
    layout: Annotated[LayoutName, typer.Option(help="How the files are laid out.")] = LayoutName.NIFTI,
    scale: Annotated[
        str | None, typer.Option(metavar="SLOPE,INTERCEPT", help="Makes stored values HU, for files that do not say.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")] = False,
) -> None:
    """Plant named fractures in a real scan or a phantom.

    Every study comes with its truth, as phantoms do. Vertebrae that are cut off are left alone. The same command goes
    on after an interruption. For training and testing only: what comes out shows no real injury.
    """
    from cspine.phantoms.planting_set import PlantedSet, storable, usable_vertebrae
    from cspine.studies import open_study, study_name

    volume = storable(open_study(scan, scale=scale))
    planted = PlantedSet(out, study_name(scan), layout.value, seed, rate)
    planted.begin()
    missing = planted.missing(count)
    if missing:
        mask = _located(volume) if labels is None else _opened(labels)
        solids = usable_vertebrae(volume, mask)
        try:
            for k in missing:
                case = planted.make(k, volume, mask, solids)
                if not quiet:
                    broken = [f"{level.name} {'+'.join(t.types)}" for level, t in case.levels.items() if t.fractured]
                    console.stderr().print(f"{case.name}: {', '.join(broken) or 'no fracture'}", markup=False)
        finally:
            if any((out / "truth").glob("*.json")):
                planted.finish()
    if not quiet:
        made = f"{len(missing)} made, {count - len(missing)} were there: {out}"
        console.stdout().print(made, soft_wrap=True, markup=False)


def _located(volume: Volume) -> Volume:
    """Labels from the default bundle's locator."""
    from cspine.inference.bundle import Bundle
    from cspine.inference.predictor import Predictor
    from cspine.volume import Volume as Mask

    prediction = Predictor(Bundle.default()).predict_full(volume)
    return Mask(prediction.labels, prediction.labels_affine)


def _opened(path: Path) -> Volume:
    """A label file as a volume."""
    import SimpleITK as sitk

    from cspine.errors import UsageError
    from cspine.volume import Volume as Mask

    try:
        return Mask.from_sitk(sitk.ReadImage(str(path))).reoriented()
    except RuntimeError as error:
        raise UsageError(
            "expected a 3D label mask (NIfTI, NRRD, MHA)", where=str(path), fix="Check the file given with --labels"
        ) from error
