"""Judged studies for tests of the reading room: small, with exact truth, prepared as the worker prepares them."""

from __future__ import annotations

from pathlib import Path

from flask import Flask

from cspine import reports
from cspine.findings import Findings
from cspine.volume import Volume
from cspine.web.app import Context
from cspine.web.models import Study, StudyKind, StudyState
from cspine.web.viewing_facts import VIEW_FOLDER, ViewFacts
from cspine.web.viewing_files import prepare_view
from report_factory import FakePrediction, center_of, evidence_at, make_findings, make_prediction, make_volume

RUN = "r1"


def judged(volume: Volume | None = None) -> tuple[Volume, FakePrediction]:
    """A CT with evidence at C2 (two places) and C4; C7 is not in the scan."""
    volume = make_volume() if volume is None else volume
    x, y, z = center_of(1)
    evidence = {
        1: (evidence_at(volume, (x + 3, y, z), 0.9), evidence_at(volume, (x, y + 4, z - 6), 0.6)),
        3: (evidence_at(volume, center_of(3), 0.3),),
    }
    findings = make_findings(evidence=evidence)
    return volume, make_prediction(volume, findings)


def prepared(folder: Path, volume: Volume | None = None) -> tuple[ViewFacts, Findings]:
    """The reading room's files of such a study in ``folder``."""
    volume, prediction = judged(volume)
    return prepare_view(volume, prediction, folder), prediction.findings


def add_study(app: Flask, owner: str, volume: Volume | None = None, *, title: str = "Neck") -> str:
    """A judged study of a person; gives its id."""
    volume, prediction = judged(volume)
    context: Context = app.extensions["cspine"]
    with context.sessions() as session:
        study = Study(
            owner_id=owner, kind=StudyKind.VOLUME, state=StudyState.DONE, title=title, patient_label="Anna Example",
            result=RUN, probability=0.86, positive=True,
        )  # fmt: skip
        session.add(study)
        session.commit()
        results = context.store.run_folder(study.id, RUN)
        results.mkdir(parents=True)
        reports.write(prediction, volume, results, formats=("json", "html"))
        prepare_view(volume, prediction, results / VIEW_FOLDER)
        return study.id
