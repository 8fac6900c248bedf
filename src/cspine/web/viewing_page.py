"""What the templates of the reading room are told: findings in the words of the HTML report, and where things are."""

from __future__ import annotations

from dataclasses import dataclass
from json import dumps
from typing import Any

from flask import url_for
from markupsafe import Markup

from cspine.findings import Findings, LevelFinding
from cspine.reports import colours, figures, words
from cspine.reports.figures import Shape
from cspine.web.models import Study
from cspine.web.strings import part, t
from cspine.web.viewing_facts import PLANES, Plane, ViewEvidence, ViewFacts, ViewGrid
from cspine.web.viewing_slices import LETTERS, WINDOWS, level_colours, picture_size

# The checklist, by the names of its strings: what methods of this kind take for fractures, and what they overlook.
ALARMS = ("old", "vessel", "growth", "variant", "wear", "motion", "streak", "partial")
MISSES = ("processes", "stiff", "low", "other")
# Of the crosshair's start when no level was located: the middle.
_MIDDLE = 0.5


@dataclass(frozen=True, slots=True)
class LevelView:
    """One level as the page shows it.

    Attributes:
        item: the finding.
        shape: of its mark, which says the finding without colour.
        step: of its colour, 0 to 10; None without a probability.
        evidence: from head to feet.
    """

    item: LevelFinding
    shape: Shape
    step: int | None
    evidence: tuple[ViewEvidence, ...]

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


@dataclass(frozen=True, slots=True)
class Look:
    """What a link asks to be shown.

    Attributes:
        level: that is chosen, or None.
        index: slice of each plane.
        window: name of one of ``WINDOWS``.
        overlay: whether outlines and evidence are drawn.
    """

    level: str | None
    index: dict[Plane, int]
    window: str
    overlay: bool


def level_views(findings: Findings, facts: ViewFacts | None) -> list[LevelView]:
    """The seven levels."""
    evidence = () if facts is None else facts.evidence
    return [
        LevelView(
            item,
            figures.shape_of(item),
            figures.step_of(item.probability),
            tuple(one for one in evidence if one.level == item.level),
        )
        for item in findings.levels
    ]


def first_level(findings: Findings) -> str | None:
    """Where reading starts: the level with the highest probability; None when none was judged."""
    judged = [item for item in findings.levels if item.probability is not None]
    return max(judged, key=lambda item: item.probability or 0.0).level if judged else None


def look_of(asked: dict[str, str], findings: Findings, facts: ViewFacts) -> Look:
    """What a link asks for; whatever makes no sense in it is left out.

    Args:
        asked: ``level``, ``slice`` (of the CT), ``window``, ``overlay`` (``0``).
        findings: of the study.
        facts: of its view.
    """
    names = {item.level for item in findings.levels}
    level = asked.get("level") if asked.get("level") in names else first_level(findings)
    index = _start(level, facts)
    wanted = asked.get("slice", "")
    if wanted.isascii() and wanted.isdigit() and len(wanted) < 7:
        index["axial"] = facts.grid.slice_of(int(wanted))
    window = asked.get("window", "")
    return Look(level, index, window if window in WINDOWS else "bone", asked.get("overlay") != "0")


def _start(level: str | None, facts: ViewFacts) -> dict[Plane, int]:
    """The slices through a level's strongest evidence, its body, or the middle."""
    jump = next((item.jump_mm for item in facts.levels if item.level == level), None)
    if jump is None:
        return {plane: int(facts.grid.count(plane) * _MIDDLE) for plane in PLANES}
    x, y, z = index_of(facts.grid, jump)
    return {"axial": z, "sagittal": x, "coronal": y}


def index_of(grid: ViewGrid, point_mm: tuple[float, float, float]) -> tuple[int, int, int]:
    """The voxel ``(x, y, z)`` of the view nearest to an LPS point."""
    import numpy as np

    affine = np.asarray(grid.affine)
    index = np.linalg.solve(affine[:3, :3], np.asarray(point_mm) - affine[:3, 3])
    x, y, z = np.clip(np.rint(index), 0, np.asarray(grid.shape[::-1]) - 1).astype(int).tolist()
    return x, y, z


def pane(study: Study, facts: ViewFacts, look: Look, plane: Plane) -> dict[str, Any]:
    """One picture of the first view: addresses, proportions, letters, and what it shows in words."""
    index, count = look.index[plane], facts.grid.count(plane)
    width, height = picture_size(facts.grid, plane)
    return {
        "plane": plane,
        "index": index,
        "count": count,
        "width": round(width / min(facts.grid.spacing)),
        "height": round(height / min(facts.grid.spacing)),
        "letters": LETTERS[plane],
        "image": url_for("viewing.slice_picture", study_id=study.id, plane=plane, index=index, window=look.window),
        "overlay": url_for("viewing.overlay_picture", study_id=study.id, plane=plane, index=index),
        "alt": t(f"read.alt.{plane}", number=index + 1, count=count, slice=facts.grid.source_of(look.index["axial"])),
    }


def data_block(study: Study, findings: Findings, facts: ViewFacts, look: Look) -> Markup:
    """What scripts need, as a data block ``<script type="application/json" id="room-data">``."""
    address = url_for("viewing.page", study_id=study.id)
    ramp = level_colours(findings)
    table = {
        "base": address,
        "answers": f"{address}/answers.json",
        "facts": facts.model_dump(mode="json"),
        "colours": {item.level: colours.hex_of(ramp[int(item.level[1:])]) for item in findings.levels},
        "windows": {name: [window.low, window.high] for name, window in WINDOWS.items()},
        "look": {"level": look.level, "index": look.index, "window": look.window, "overlay": look.overlay},
        "types": {name: words.fracture_type(name) for name in _types(findings)},
        "strings": {f"read.{key}": text for key, text in part("read").items()},
    }
    # Nothing in JSON may end the element.
    safe = dumps(table).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return Markup('<script type="application/json" id="room-data">{}</script>').format(Markup(safe))


def _types(findings: Findings) -> list[str]:
    return sorted({item.type for item in findings.levels if item.type})


def room(study: Study, findings: Findings, facts: ViewFacts, asked: dict[str, str]) -> dict[str, Any]:
    """Everything that ``reading/room.html`` uses beside what every template has."""
    look = look_of(asked, findings, facts)
    rows = level_views(findings, facts)
    return {
        "study": study,
        "findings": findings,
        "facts": facts,
        "look": look,
        "rows": rows,
        "chosen": next((row for row in rows if row.level == look.level), None),
        "not_judged": [row for row in rows if row.item.probability is None],
        "panes": [pane(study, facts, look, plane) for plane in PLANES],
        "source_slice": facts.grid.source_of(look.index["axial"]),
        "windows": list(WINDOWS),
        "headline": words.headline(findings),
        "statement": words.said(findings),
        "reading": words.reading(findings),
        "words": words,
        "step_of": figures.step_of,
        "percent_of": words.percent,
        "sentence_of": words.sentence,
        "alarms": ALARMS,
        "misses": MISSES,
        "data": data_block(study, findings, facts, look),
    }
