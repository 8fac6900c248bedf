"""The part of ``cspine evaluate`` that scores a bundle on a user's own labelled pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from cspine.errors import BatchError, CspineError, NoImagesError

if TYPE_CHECKING:
    from cspine.inference.bundle import Bundle
    from cspine.studies.picture_folder import PictureFolder

Counter = Callable[[str, int], AbstractContextManager[Callable[[int, int], None]]]


def measure_pictures(
    data: PictureFolder,
    names: Sequence[str],
    bundle: Bundle,
    runtime: str,
    files: tuple[Path, Path],
    counting: Counter,
    *,
    held: str = "",
) -> str:
    """Judge and score pictures, write the figures, and return one line.

    Args:
        data: the labelled pictures.
        names: studies of it that are scored.
        bundle: what is scored.
        runtime: that runs it.
        files: where JSON and page go.
        counting: makes the bar.
        held: what the page says of the choice of studies.

    Raises:
        UsageError: the bundle judges volumes alone.
        NoImagesError: no picture could be scored.
        BatchError: some studies could not be scored; the others are.
        OutputError: the files cannot be written.
    """
    from cspine.evaluation.comparison import shown
    from cspine.evaluation.network_size import bundle_sizes
    from cspine.evaluation.pages import pictures_page
    from cspine.evaluation.picture_scores import judge_folder, picture_figures
    from cspine.inference.pictures import PicturePredictor
    from cspine.reports.atomic import write_file

    predictor = PicturePredictor(bundle, runtime)
    # Of a part of the data, what is wrong elsewhere is no matter.
    faults: dict[str, CspineError] = {} if held else dict(data.faults)
    with counting("studies judged", len(names)) as progress:
        records, seconds = judge_folder(data, names, predictor, faults=faults, progress=progress)
    if not records:
        reason = next(iter(faults.values())).message if faults else "The folder has no pictures of that fold"
        raise NoImagesError("no picture could be scored", where=str(data.path), fix=reason)
    figures = picture_figures(
        records,
        method=f"{bundle.manifest.name} {bundle.manifest.version}",
        data=f"{data.path.resolve().name}{held}",
        bundle=bundle.sha256,
        sizes=[size for size in bundle_sizes(bundle) if set(size.stages) & set(predictor.stages)],
        seconds=seconds,
        faults={name: error.message for name, error in faults.items()},
    )
    json_file, page_file = files
    write_file(json_file, (figures.model_dump_json(indent=1) + "\n").encode())
    write_file(page_file, pictures_page(figures))
    if faults:
        raise BatchError(
            f"{len(faults)} pictures or studies could not be scored; the others are",
            where=str(page_file),
            fix="The page says why; the same command tries them again",
        )
    return f"{len(records)} pictures scored, AUC {shown(figures.fracture.auc)}: {page_file}"
