"""Identifiers of results in DICOM: the same input and the same bundle that give the same findings give the same UIDs.

A repeated run then sends the same objects again, which a PACS recognises, instead of doubles; anything that changes
what is said changes the UIDs, so that one UID never names two different contents.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING
from uuid import UUID

if TYPE_CHECKING:
    from cspine.reports.inputs import ReportInput

# Series numbers of the results in the study; scanners count from 1 and stay far below.
SERIES_NUMBERS = {"seg": 9001, "sr": 9002, "sc": 9003, "gsps": 9004, "dicom-pdf": 9005}


def result_uid(report: ReportInput, part: str) -> str:
    """The UID of one part of a result.

    Args:
        report: the result.
        part: what is named, such as ``seg`` or ``track-C2``; different parts have different UIDs.

    Returns:
        A UUID-derived UID (``2.25.…``, PS3.5 B.2), from SHA-256 over digest of the input, digest of the bundle, what
        the findings say, and ``part``. The time of the run is not among them.
    """
    return uid_of("result", _result_digest(report), part)


def uid_of(*parts: str) -> str:
    """A UUID-derived UID from SHA-256 over texts: the same texts, the same UID.

    The 122 free bits of a version 8 UUID (RFC 9562, 5.8) are the first of the digest.
    """
    digest = bytearray(hashlib.sha256("\0".join(("cspine", *parts)).encode()).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x80
    digest[8] = digest[8] & 0x3F | 0x80
    return f"2.25.{UUID(bytes=bytes(digest)).int}"


def _result_digest(report: ReportInput) -> str:
    """SHA-256 over what the result says, without what differs from run to run: times and names of files."""
    findings = report.findings
    provenance = findings.provenance
    said = findings.model_dump(mode="json", exclude={"provenance"})
    said["input"] = None if provenance.input is None else provenance.input.sha256
    said["series"] = None if provenance.input is None else provenance.input.series_uid
    bundle = provenance.bundle
    # Masks may differ by a voxel between runtimes and number formats when the findings do not.
    said["bundle"] = None if bundle is None else [bundle.sha256, bundle.runtime, bundle.precision]
    said["cspine"] = provenance.cspine
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
