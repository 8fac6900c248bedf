"""``report.html``: one file that holds its pictures, style and script, and asks nothing of any network."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from cspine.findings import Evidence, Findings, LevelFinding
from cspine.reports import colours, figures, words
from cspine.reports.figures import LevelPictures, Shape
from cspine.reports.inputs import ReportInput

# Slices listed for a level; the rest is in findings.json.
LISTED_EVIDENCE = 6
TIMES = "Time of each step"
Pairs = list[tuple[str, str, bool]]


@dataclass(frozen=True, slots=True)
class EvidenceRow:
    """One line of a level's evidence table, as text."""

    slice_index: int
    z: str
    size: str
    score: float


@dataclass(frozen=True, slots=True)
class LevelRow:
    """One level as the page shows it."""

    item: LevelFinding
    shape: Shape
    step: int | None
    pictures: LevelPictures

    @property
    def level(self) -> str:
        """``C1`` … ``C7``."""
        return self.item.level

    @property
    def finding(self) -> str:
        """In one or two words."""
        return words.finding(self.item)

    @property
    def type(self) -> str:
        """The likely type of a suspected fracture, else empty."""
        return words.fracture_type(self.item.type)

    @property
    def in_scan(self) -> str:
        """How much of it the scan shows."""
        return words.in_scan(self.item)

    @property
    def why_not(self) -> str:
        """Why there is no probability."""
        return words.why_not(self.item).rstrip(".")

    @property
    def evidence(self) -> list[EvidenceRow]:
        """The strongest pieces of evidence."""
        ranked = sorted(self.item.evidence, key=lambda one: -one.score)
        return [_evidence_row(one) for one in ranked[:LISTED_EVIDENCE]]

    @property
    def more_evidence(self) -> int:
        """How many pieces are not listed."""
        return max(0, len(self.item.evidence) - LISTED_EVIDENCE)


def render(report: ReportInput) -> bytes:
    """The page as UTF-8. Same input, same bytes.

    Everything that comes from findings (file names, warnings, reasons) is escaped, and a content security policy
    allows this style sheet, this script and inline pictures, nothing else.
    """
    findings = report.findings
    source = findings.provenance.input
    css, script = _assets()
    judged = findings.status != "refused"
    rows = [
        LevelRow(item, figures.shape_of(item), figures.step_of(item.probability), figures.level_pictures(report, item))
        for item in findings.levels
    ]
    page = (
        _environment()
        .get_template("report.html")
        .render(
            findings=findings,
            refused=not judged,
            name=(source.name if source else "") or "unnamed study",
            created=words.moment(findings.provenance.created),
            headline=words.headline(findings),
            statement=words.said(findings),
            reading=words.reading(findings),
            words=words,
            advice=words.advice(findings),
            rows=rows,
            not_judged=[row for row in rows if row.item.probability is None and (judged or row.item.visible)],
            spine=figures.glance(report),
            provenance=provenance(findings),
            css=css,
            script=script,
            policy=_policy(css, script),
        )
    )
    return page.encode("utf-8", "replace")


def provenance(findings: Findings) -> list[tuple[str, Pairs]]:
    """Titles with label, value, and whether the value is an identifier to be set in fixed width."""
    made = findings.provenance
    groups: list[tuple[str, Pairs]] = []
    if made.input is not None:
        groups.append(("Images that were read", _input_pairs(findings)))
    model: Pairs = []
    if made.bundle is not None:
        bundle = made.bundle
        model = [
            ("Bundle", f"{bundle.name} {bundle.version}", False),
            ("Bundle SHA-256", bundle.sha256, True),
            ("Trained on", bundle.trained_on, False),
            ("Runtime", f"{bundle.runtime}, {bundle.precision}", False),
        ]
    model += [
        ("cspine", made.cspine, False),
        ("Created", made.created, False),
        ("Schema of findings.json", findings.schema_version, False),
    ]
    groups.append(("Model and versions", [pair for pair in model if pair[1]]))
    if made.seconds:
        steps = {name: value for name, value in made.seconds.items() if name != "total"}
        steps["together"] = words.seconds(made.seconds)
        times = [(name.replace("_", " "), f"{value:.2f}{words.NBSP}s", False) for name, value in steps.items()]
        groups.append((TIMES, times))
    return groups


def _input_pairs(findings: Findings) -> Pairs:
    source = findings.provenance.input
    if source is None:
        return []
    z, y, x = source.shape
    pairs: Pairs = [
        ("Name", source.name, False),
        ("Kind", source.kind, False),
        ("Why this series", source.selection, False),
        ("Voxels", f"{x} × {y} × {z}", False),
        ("Spacing", " × ".join(f"{value:.3g}" for value in source.spacing_mm) + f"{words.NBSP}mm", False),
        ("SHA-256", source.sha256, True),
        ("Series UID", source.series_uid or "", True),
        ("Study UID", source.study_uid or "", True),
        ("Frame of reference", source.frame_of_reference_uid or "", True),
    ]
    pairs += [(key.replace("_", " "), str(value), False) for key, value in source.acquisition.items()]
    return [pair for pair in pairs if pair[1]]


def _evidence_row(one: Evidence) -> EvidenceRow:
    x0, y0, z0, x1, y1, z1 = one.box_mm
    size = f"{x1 - x0:.0f} × {y1 - y0:.0f}{words.NBSP}mm"
    return EvidenceRow(one.slice_index, words.millimetres((z0 + z1) / 2), size, one.score)


def _data_uri(data: bytes, kind: str) -> Markup:
    return Markup(f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}")


def _policy(css: str, script: str) -> str:
    """A content security policy under which nothing but this page's own style and script runs."""
    style, code = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (css, script))
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{style}'; script-src 'sha256-{code}'; "
        "base-uri 'none'; form-action 'none'"
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("cspine.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=words.percent, point=words.point, sentence=words.sentence, data_uri=_data_uri)
    environment.globals["step_of"] = figures.step_of
    return environment


@cache
def _assets() -> tuple[Markup, Markup]:
    """Style sheet and script, ours and free of anything a study says, so they go into the page as they are."""
    ramps: dict[str, Sequence[str]] = {
        theme: [colours.hex_of(colour) for colour in colours.ramp(theme)] for theme in ("light", "dark")
    }
    environment = _environment()
    css = environment.get_template("report.css").render(ramps=ramps)
    script = environment.get_template("report.js").render()
    return Markup(css), Markup(script)
