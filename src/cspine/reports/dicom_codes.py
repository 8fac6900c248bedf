"""The codes that results in DICOM use, each once. ``docs/reference/dicom-results.md`` lists them with their reasons."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from pydicom.sr.coding import Code

from cspine.anatomy import Level

FRACTURE = Code("125605004", "SCT", "Fracture of bone")
CERVICAL_SPINE = Code("122494005", "SCT", "Cervical spine")

# Categories of segments, CID 7150.
ANATOMICAL_STRUCTURE = Code("91723000", "SCT", "Anatomical Structure")
ABNORMAL_STRUCTURE = Code("49755003", "SCT", "Morphologically Abnormal Structure")

# Answers, CID 240 "Present-Absent". A level that was not judged is neither: its answer is "undetermined".
PRESENT = Code("52101004", "SCT", "Present")
ABSENT = Code("272519000", "SCT", "Absent")
UNDETERMINED = Code("373068000", "SCT", "Undetermined")

PROBABILITY = Code("122157", "DCM", "Probability")
RATIO = Code("1", "UCUM", "no units")
COMMENT = Code("121106", "DCM", "Comment")
DEVICE = Code("121007", "DCM", "Device")
OBSERVER_TYPE = Code("121005", "DCM", "Observer Type")
PERSON = Code("121006", "DCM", "Person")
PERSON_NAME = Code("121008", "DCM", "Person Observer Name")
PERSON_ORGANIZATION = Code("121009", "DCM", "Person Observer's Organization Name")
REPORT_TITLE = Code("126000", "DCM", "Imaging Measurement Report")
CT_PROCEDURE = Code("77477000", "SCT", "Computed tomography")
BOUNDED_BY = Code("75958009", "SCT", "Bounded by")
ARTIFICIAL_INTELLIGENCE = Code("123110", "DCM", "Artificial Intelligence")

# What no public scheme has a code for. 99… marks a private scheme (PS3.3 8.2); the objects that use it say so.
OWN_SCHEME = "99CSPINE"
OWN_SCHEME_NAME = "cspine concepts"
FRACTURE_TYPE = Code("fracture-type", OWN_SCHEME, "Fracture type")
NOT_JUDGED = Code("not-judged", OWN_SCHEME, "Reason not judged")
LEVEL_CONFIDENCE = Code("level-confidence", OWN_SCHEME, "Confidence of the vertebral level")
READER_VERDICT = Code("reader-verdict", OWN_SCHEME, "Reader's verdict on the computed finding")
VERDICTS: Mapping[str, Code] = MappingProxyType(
    {
        "accept": Code("accepted", OWN_SCHEME, "Accepted"),
        "reject": Code("rejected", OWN_SCHEME, "Rejected"),
        "correct": Code("corrected", OWN_SCHEME, "Corrected"),
    }
)

# Only concepts whose meaning is the type and nothing more; the other types are given as text.
TYPES: Mapping[str, Code] = MappingProxyType({"hangman": Code("263070009", "SCT", "Hangman fracture")})


def vertebra(level: Level) -> Code:
    """The vertebra, CID 7151 and others: ``14806007 C1 vertebra``."""
    return Code(level.snomed, "SCT", f"{level.name} vertebra")


def answer(fracture: bool | None) -> Code:
    """Present, absent, or undetermined when nothing was judged."""
    if fracture is None:
        return UNDETERMINED
    return PRESENT if fracture else ABSENT
