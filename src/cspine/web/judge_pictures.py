"""Single pictures of a study, judged by the slice methods of the bundle; the files are those of ``cspine predict``."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from cspine.errors import CspineError, NoImagesError, StudyError, UsageError
from cspine.node.child import JobOutcome
from cspine.web.orders import VIEW_FOLDER, JudgeOrder
from cspine.web.progress import Progress
from cspine.web.strings import t

if TYPE_CHECKING:
    from cspine.inference.pictures import PictureAnswer, PicturePredictor
    from cspine.reports.picture_findings import PictureFinding, PictureProvenance
    from cspine.reports.pictures import Card
    from cspine.studies.images import SliceImage

JSON_FILE, CSV_FILE, PAGE_FILE = "pictures.json", "pictures.csv", "pictures.html"


class CannotJudgePicturesError(StudyError):
    """The bundle of this server judges volumes alone."""

    code = "no-picture-method"


def judge_pictures(order: JudgeOrder, folder: Path, progress: Progress) -> JobOutcome:
    """Judge every picture of a study; one that cannot be opened does not stop the others.

    Raises:
        StudyError: none can be opened, or the bundle has no method for pictures.
        CspineError: the bundle cannot be used, or the results cannot be written.
    """
    from cspine.reports import atomic
    from cspine.reports.picture_findings import PictureFindings, to_csv
    from cspine.reports.pictures import render
    from cspine.web.viewing_pictures import prepare_picture_view

    start = time.perf_counter()
    predictor = _predictor(order)
    paths = sorted(path for path in order.study.iterdir() if path.is_file())
    work = _Work(predictor, paths, progress)
    prepare_picture_view(work.shown(), folder / VIEW_FOLDER)
    if not any(item.status == "ok" for item in work.findings):
        raise NoImagesError(t("uploads.problem.no-picture"))
    progress.at(0.9)
    whole = PictureFindings(pictures=tuple(work.findings), provenance=_provenance(predictor))
    files = {CSV_FILE: to_csv(whole.pictures), PAGE_FILE: render(whole, work.cards)}
    atomic.write_set(folder, files | {JSON_FILE: whole.to_json().encode()})
    return _outcome(work.findings, time.perf_counter() - start)


def _predictor(order: JudgeOrder) -> PicturePredictor:
    from cspine.inference.bundle import Bundle
    from cspine.inference.pictures import PicturePredictor

    bundle = Bundle.default() if order.bundle is None else Bundle.load(order.bundle)
    try:
        return PicturePredictor(bundle, threads=order.threads)
    except UsageError as error:
        raise CannotJudgePicturesError(t("uploads.problem.no-picture-method")) from error


class _Work:
    """Pictures on their way: opened, judged and handed on, a batch at a time."""

    def __init__(self, predictor: PicturePredictor, paths: Sequence[Path], progress: Progress) -> None:
        self._predictor, self._paths, self._progress = predictor, paths, progress
        self.findings: list[PictureFinding] = []
        self.cards: list[Card] = []

    def shown(self) -> Iterator[tuple[PictureFinding, SliceImage, PictureAnswer]]:
        """Each picture that could be judged; findings and cards grow meanwhile."""
        from cspine.inference.planar_answers import BATCH
        from cspine.reports.pictures import keep_strongest

        for begin in range(0, len(self._paths), BATCH):
            self._progress.at(0.15 + 0.7 * begin / len(self._paths))
            yield from self._batch(self._paths[begin : begin + BATCH])
            keep_strongest(self.cards)

    def _batch(self, paths: Sequence[Path]) -> Iterator[tuple[PictureFinding, SliceImage, PictureAnswer]]:
        from cspine.reports.picture_findings import finding_of, refused_picture
        from cspine.reports.pictures import Card
        from cspine.studies.images import SliceImage

        opened = [_opened(path) for path in paths]
        answers = iter(self._predictor.judge([item for item in opened if isinstance(item, SliceImage)]))
        for path, item in zip(paths, opened, strict=True):
            if isinstance(item, CspineError):
                self.findings.append(refused_picture(path.stem, item))
                continue
            answer = next(answers)
            finding = finding_of(path.stem, item, answer)
            self.findings.append(finding)
            self.cards.append(Card.of(finding, item, answer))
            yield finding, item, answer


def _opened(path: Path) -> SliceImage | CspineError:
    from cspine.studies.images import open_image

    try:
        return open_image(path)
    except CspineError as error:
        return error


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


def _outcome(findings: Sequence[PictureFinding], seconds: float) -> JobOutcome:
    judged = [item for item in findings if item.probability is not None]
    names = ("json", JSON_FILE), ("csv", CSV_FILE), ("html", PAGE_FILE)
    return JobOutcome(
        ending="judged",
        positive=any(item.fracture for item in judged) if judged else None,
        probability=max((item.probability or 0.0 for item in judged), default=None),
        files={kind: (name,) for kind, name in names},
        seconds={"judge": round(seconds, 3)},
    )
