"""The sentences of a report: what the numbers say, in plain words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cspine.findings import Findings, LevelFinding

NBSP = "\u00a0"
MINUS = "\u2212"
NOT_JUDGED = "not judged"
RESEARCH = "Research use only, not a diagnosis."
LIMITS = "Not a medical device. A low probability does not exclude a fracture."
NOTHING_JUDGED = "Nothing in this study could be judged."

_CHOOSE_SERIES = "List the series with cspine info STUDY and choose one that covers the neck with --series UID."
_ADVICE = {
    "no-images": "Give the folder, zip or file that holds the CT slices (DICOM or NIfTI).",
    "not-ct": _CHOOSE_SERIES,
    "no-cervical-spine": _CHOOSE_SERIES,
    "locates-only": "Take another model with --bundle DIR, or none for the one that is built in.",
    "damaged-file": "Export or copy the study again; a file is incomplete or cannot be decoded.",
    "geometry": "Export the original axial series again, complete and not reformatted.",
    "intensity": "Give the original series in Hounsfield units, or state the scale with --scale.",
    "too-large": "Give one series only, or run on a machine with more memory.",
    "unsafe-archive": "Unpack the archive yourself after checking it, and give the folder.",
}
_GENERAL = (
    "Check that the study is a CT of the neck: thin axial slices from the skull base to the first thoracic vertebra.",
    "If the study is right and this still happens, keep findings.json: it says what was tried.",
)


def percent(value: float | None) -> str:
    """``83 %``; never 0 or 100, which no method can promise; a dash when there is none."""
    if value is None:
        return "–"
    if value < 0.01:
        return f"<1{NBSP}%"
    return f">99{NBSP}%" if value > 0.99 else f"{round(value * 100)}{NBSP}%"


def millimetres(value: float, digits: int = 1) -> str:
    """A signed number with a true minus sign, unit after a space that does not break."""
    text = f"{value:.{digits}f}"
    return f"{MINUS}{text[1:]}{NBSP}mm" if text.startswith("-") else f"{text}{NBSP}mm"


def point(values: Sequence[float]) -> str:
    """``122.2, 139.6, 81.8 mm``, parts that do not break."""
    numbers = [millimetres(value).removesuffix(f"{NBSP}mm") for value in values]
    return f"{f',{NBSP}'.join(numbers)}{NBSP}mm"


def fracture_type(name: str | None) -> str:
    """``dens-ii`` → ``dens II``; anything else loses its hyphens."""
    if not name:
        return ""
    parts = name.split("-")
    return " ".join(part.upper() if part in ("i", "ii", "iii") else part for part in parts)


def names(levels: Sequence[LevelFinding]) -> str:
    """``C1``, ``C1 and C2``, ``C1, C2 and C3``."""
    words = [item.level for item in levels]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def suspected(findings: Findings) -> bool | None:
    """Whether a fracture is suspected anywhere; None when that was not judged, or not everywhere."""
    patient = findings.patient.fracture
    # Thresholds of patient and levels are fitted apart: what one level raises is never called clear.
    if patient or any(item.fracture for item in findings.levels):
        return True
    return None if findings.status != "ok" else patient


def headline(findings: Findings) -> str:
    """What is said of the patient, in a few words."""
    if findings.patient.fracture is None:
        return "Not judged"
    if findings.patient.fracture:
        return "Fracture suspected"
    at = [item.level for item in findings.levels if item.fracture]
    if at:
        return f"Possible fracture at {', '.join(at)}"
    return "No fracture suspected" if findings.status == "ok" else "No fracture suspected in the levels judged"


def statement(findings: Findings) -> list[str]:
    """Two to three sentences under the headline."""
    patient = findings.patient
    judged = [item for item in findings.levels if item.probability is not None]
    missing = [item for item in findings.levels if item.probability is None]
    said = []
    if patient.probability is not None:
        text = f"The probability of a fracture in {'C1 to C7' if not missing else 'the levels judged'} is "
        text += percent(patient.probability)
        if patient.threshold is not None:
            text += f", {'at or above' if patient.fracture else 'below'} the threshold of {percent(patient.threshold)}"
        said.append(text + ".")
    raised = sorted((item for item in judged if item.fracture), key=_by_probability)
    if raised:
        listed = ", ".join(f"{item.level} ({percent(item.probability)})" for item in raised)
        said.append(f"Suspected at {listed}.")
    elif judged:
        top = min(judged, key=_by_probability)
        said.append(f"No single level reaches its threshold; the highest is {top.level} ({percent(top.probability)}).")
    if missing and judged:
        said.append(f"{names(missing)} {'was' if len(missing) == 1 else 'were'} not judged.")
    return said


def said(findings: Findings) -> list[str]:
    """The sentences under the headline; for a refused study its reasons."""
    if findings.status != "refused":
        return statement(findings)
    return [sentence(warning.message) for warning in findings.warnings] or [NOTHING_JUDGED]


def impression(findings: Findings) -> str:
    """Headline and what stands under it, as running text."""
    return " ".join([sentence(headline(findings)), *said(findings)])


def _by_probability(item: LevelFinding) -> float:
    return -(item.probability or 0.0)


def finding(item: LevelFinding) -> str:
    """``suspected``, ``not suspected`` or ``not judged``."""
    if item.fracture is None:
        return NOT_JUDGED
    return "suspected" if item.fracture else "not suspected"


def verdict(item: LevelFinding) -> str:
    """``Fracture suspected, 83 % (threshold 50 %), likely type dens II (60 %)`` or ``Not judged: not in the scan``."""
    if item.fracture is None:
        return f"Not judged: {why_not(item).rstrip('.')}"
    text = f"Fracture {finding(item)}, {percent(item.probability)}"
    if item.threshold is not None:
        text += f" (threshold {percent(item.threshold)})"
    if item.type:
        text += f", likely type {fracture_type(item.type)}"
        text += "" if item.type_confidence is None else f" ({percent(item.type_confidence)})"
    return text


def in_scan(item: LevelFinding) -> str:
    """How much of the vertebra the scan shows."""
    if not item.visible:
        return "no" if item.visible_fraction < 0.01 else f"partly, {percent(item.visible_fraction)}"
    return "whole" if item.visible_fraction >= 0.995 else percent(item.visible_fraction)


def why_not(item: LevelFinding) -> str:
    """Why a level has no probability."""
    return item.not_judged or ("not in the scan" if not item.visible else "no reason was recorded")


def sentence(text: str) -> str:
    """A message as a sentence: a capital at the start, a full stop at the end."""
    text = text.strip()
    return text if not text else text[0].upper() + text[1:] + ("" if text.endswith((".", "!", "?", "…")) else ".")


def reading(findings: Findings, *, tint: bool = True, numbered: bool = False) -> tuple[str, str]:
    """How to read a report: what a probability means, and where things are.

    Args:
        findings: the result.
        tint: whether its pictures are tinted with the evidence, or carry boxes only.
        numbered: whether slices are called by the image numbers of a DICOM series, not counted.
    """
    bundle = findings.provenance.bundle
    calibrated = "" if bundle is None else f" ({bundle.trained_on})"
    slices = "Slices are counted from the feet, starting at 0."
    if numbered:
        slices = "Images have the numbers that they have in the series."
    marks = "The warm tint and the boxes mark" if tint else "The boxes mark"
    return (
        f"A probability is calibrated: of 100 levels given 30{NBSP}%, about 30 were fractured in the data the bundle "
        f"was calibrated on{calibrated}. Where fractures are rarer or patients differ, it means less. “Suspected” "
        "says that the probability reaches the threshold, nothing more.",
        f"{slices} Positions are in the scanner’s patient coordinates, in "
        "millimetres: x to the patient’s left, y to the back, z to the head. Pictures show the patient’s left on the "
        f"right. {marks} what spoke for a fracture; they are no outline of it. A finding outside the "
        f"{'tint' if tint else 'boxes'} is not excluded.",
    )


def moment(iso: str) -> str:
    """An ISO 8601 time in UTC for a person: ``2030-01-02 03:04:05 UTC``."""
    return iso.replace("T", " ").replace("+00:00", " UTC").replace("Z", " UTC")


def seconds(steps: Mapping[str, float]) -> float:
    """The time of all steps together; a step called ``total`` is that already."""
    return steps["total"] if "total" in steps else sum(steps.values())


def advice(findings: Findings) -> list[str]:
    """What to do about a study that was refused, the specific first."""
    specific = [_ADVICE[warning.code] for warning in findings.warnings if warning.code in _ADVICE]
    return [*dict.fromkeys(specific), *_GENERAL]
