"""The part of ``cspine predict`` that judges single pictures: which inputs they are, and what is written of them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from cspine.cli import console
from cspine.cli.console import Verbosity
from cspine.errors import BatchError, CspineError, UsageError

if TYPE_CHECKING:
    from cspine.cli.predict import Options
    from cspine.inference.bundle import Bundle
    from cspine.inference.pictures import PicturePredictor
    from cspine.reports.picture_findings import PictureFinding, PictureProvenance
    from cspine.reports.pictures import Card
    from cspine.studies.pictures import PictureFile

JSON_FILE, CSV_FILE, PAGE_FILE = "pictures.json", "pictures.csv", "pictures.html"
# JSON comes last: where it is, the result is complete.
FILES = (CSV_FILE, PAGE_FILE, JSON_FILE)


@dataclass(frozen=True, slots=True)
class Pictures:
    """What a command was given, when that is pictures.

    Attributes:
        files: in order, each with a name that no other has.
        bundle: that judges them, as far as it was loaded to see whether it can.
    """

    files: tuple[PictureFile, ...]
    bundle: Bundle | None = None


def given_pictures(inputs: Sequence[Path], bundle: Path | None) -> Pictures | None:
    """The pictures among the inputs of a command; None when these are studies.

    Single DICOM slices are pictures beside pictures, and where the bundle can judge them so.

    Raises:
        UsageError: pictures and studies together.
        BundleError: the bundle is not usable.
    """
    from cspine.studies.pictures import PictureFile, is_single_slice, pictures_in

    found: list[PictureFile] = []
    slices, pictures, studies = 0, 0, []
    for path in inputs:
        own = pictures_in(path)
        if own and path.is_dir() and len(inputs) > 1:
            own = tuple(PictureFile(f"{path.name}/{item.name}", item.path) for item in own)
        elif not own and is_single_slice(path):
            own, slices = (PictureFile(path.name, path),), slices + 1
        else:
            pictures += bool(own)
        found += own
        studies += [] if own else [path]
    if not pictures and (not slices or studies or bundle is None):
        return None
    absent = [str(path) for path in studies if not path.exists()]
    if absent:
        raise UsageError("no such file or folder", where=", ".join(absent), fix="Check the path")
    if studies:
        raise UsageError(
            "pictures and studies are judged apart", where=str(studies[0]), fix="Give the pictures to another command"
        )
    loaded = _judge_of_slices(bundle) if not pictures and bundle is not None else None
    return None if not pictures and loaded is None else Pictures(_named_apart(found), loaded)


def _judge_of_slices(folder: Path) -> Bundle | None:
    """The bundle, when it can judge single images."""
    from cspine.inference.bundle import Bundle
    from cspine.inference.pictures import picture_stages

    bundle = Bundle.load(folder)
    return bundle if picture_stages(bundle.manifest) else None


def _named_apart(files: Sequence[PictureFile]) -> tuple[PictureFile, ...]:
    """The same files; of those with one name the later ones get ``-2``, ``-3``."""
    from cspine.studies.pictures import PictureFile

    taken: set[str] = set()
    out = []
    for file in files:
        name, number = file.name, 1
        while name in taken:
            number += 1
            name = f"{file.name}-{number}"
        taken.add(name)
        out.append(PictureFile(name, file.path))
    return tuple(out)


def predict_pictures(
    pictures: Pictures,
    out: Path,
    options: Options,
    *,
    bundle: Path | None = None,
    verbosity: Verbosity = Verbosity.NORMAL,
) -> None:
    """Judge pictures and write ``pictures.json``, ``pictures.csv`` and ``pictures.html``; all are judged again.

    Raises:
        UsageError: a format or option that pictures do not have, or a bundle that judges volumes alone.
        StudyError: the only picture was refused.
        BatchError: some of several pictures were refused; the others are done.
        BundleError: the bundle is not usable.
        OutputError: the results cannot be written.
    """
    from cspine.cli.evaluate import counting
    from cspine.cli.progress import quiet_libraries
    from cspine.inference.bundle import Bundle
    from cspine.inference.pictures import PicturePredictor
    from cspine.reports import atomic
    from cspine.reports.picture_findings import PictureFindings, to_csv
    from cspine.reports.pictures import render

    _check(options)
    chosen = pictures.bundle or (Bundle.default() if bundle is None else Bundle.load(bundle))
    predictor = PicturePredictor(chosen, options.runtime.value, options.threads)
    atomic.make_folder(out)
    atomic.remove(out, FILES)
    work = _Work(predictor, options, with_cards="html" in options.formats)
    total = len(pictures.files)
    bar = nullcontext(None) if verbosity is Verbosity.QUIET else counting("pictures judged", total)
    with quiet_libraries(verbosity), bar as show:
        for start in range(0, total, work.size):
            work.add(pictures.files[start : start + work.size])
            if show is not None:
                show(min(start + work.size, total), total)
    findings = PictureFindings(pictures=tuple(work.findings), provenance=_provenance(predictor))
    files = {CSV_FILE: to_csv(findings.pictures)}
    if work.with_cards:
        files[PAGE_FILE] = render(findings, work.cards)
    atomic.write_set(out, files | {JSON_FILE: findings.to_json().encode()})
    if verbosity is not Verbosity.QUIET:
        console.stdout().print(_line(findings.pictures, out), markup=False, soft_wrap=True)
    _conclude(work.faults, total)


class _Work:
    """Pictures on their way: opened, judged, and made into what is written of them, a batch at a time."""

    def __init__(self, predictor: PicturePredictor, options: Options, *, with_cards: bool) -> None:
        from cspine.inference.planar_answers import BATCH

        self.predictor, self.scale, self.with_cards, self.size = predictor, options.scale, with_cards, BATCH
        self.findings: list[PictureFinding] = []
        self.cards: list[Card] = []
        self.faults: list[CspineError] = []

    def add(self, files: Sequence[PictureFile]) -> None:
        """Judge a batch; a picture that cannot be opened does not stop the others."""
        from cspine.reports.picture_findings import finding_of, refused_picture
        from cspine.reports.pictures import Card, keep_strongest
        from cspine.studies.images import SliceImage, open_image

        opened: dict[str, SliceImage | CspineError] = {}
        for file in files:
            try:
                opened[file.name] = open_image(file.path, scale=self.scale)
            except CspineError as error:
                opened[file.name] = error
                self.faults.append(error)
        images = [item for item in opened.values() if isinstance(item, SliceImage)]
        answers = iter(self.predictor.judge(images))
        for name, item in opened.items():
            if isinstance(item, CspineError):
                self.findings.append(refused_picture(name, item))
                continue
            answer = next(answers)
            self.findings.append(finding_of(name, item, answer))
            if self.with_cards:
                self.cards.append(Card.of(self.findings[-1], item, answer))
        keep_strongest(self.cards)


def _check(options: Options) -> None:
    """Refuse what has no meaning for pictures.

    Raises:
        UsageError: names it.
    """
    if options.series is not None:
        raise UsageError("pictures have no series to choose from", where="--series", fix="Leave it out")
    other = [name for name in options.formats if name not in ("json", "csv", "html")]
    if other:
        raise UsageError(f"pictures have no format {other[0]}", where="--formats", fix="Choose from: json, csv, html")


def _provenance(predictor: PicturePredictor) -> PictureProvenance:
    from cspine import __version__
    from cspine.findings import BundleProvenance
    from cspine.reports.picture_findings import PictureProvenance

    manifest, networks = predictor.bundle.manifest, predictor.networks
    return PictureProvenance(
        cspine=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        bundle=BundleProvenance(
            name=manifest.name,
            version=manifest.version,
            sha256=predictor.bundle.sha256,
            trained_on=manifest.trained_on,
            runtime=networks.runtime.name,
            precision=", ".join(f"{stage} {networks.precision_of(stage)}" for stage in predictor.stages),
        ),
    )


def _line(pictures: Sequence[PictureFinding], out: Path) -> str:
    """The run in one line."""
    judged = [item for item in pictures if item.probability is not None]
    refused = sum(item.status == "refused" for item in pictures)
    parts = [f"{len(pictures)} pictures"]
    if judged:
        parts.append(f"fracture suspected in {sum(bool(item.fracture) for item in judged)}")
    elif refused < len(pictures):
        parts.append("this bundle names levels and judges no picture")
    parts += [f"{refused} refused"] if refused else []
    return f"{', '.join(parts)}  {out}"


def _conclude(faults: Sequence[CspineError], total: int) -> None:
    """Raise what the run as a whole amounts to.

    Raises:
        CspineError: the fault of the only picture.
        BatchError: how many of several pictures have no result.
    """
    if faults and total == 1:
        raise faults[0]
    if faults:
        raise BatchError(
            f"{len(faults)} of {total} pictures have no result",
            fix="The column reason of pictures.csv says why; the others are done",
        )
