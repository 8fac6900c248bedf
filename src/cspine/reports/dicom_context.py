"""What the DICOM input says of its patient and study, as text, for results in other formats."""

from __future__ import annotations

from pydicom.config import disable_value_validation

from cspine.reports.inputs import ReportInput


def text_of(report: ReportInput, keyword: str) -> str:
    """The value of a patient or study attribute without spaces around it; empty when absent, or without DICOM.

    pydicom checks values when they are first read and quotes bad ones in a warning. No value of a patient may reach a
    log, so it is told not to check: whoever writes the value on does that.
    """
    if report.series is None:
        return ""
    with disable_value_validation():
        return str(report.series.context.get(keyword) or "").strip()
