"""Opening what users have: DICOM series, multi-frame files, zips, NIfTI and single images."""

from cspine.studies.images import SliceImage, open_image
from cspine.studies.series import SeriesInfo
from cspine.studies.study import DEFAULT_MAX_BYTES, list_series, open_study, study_name

__all__ = ["DEFAULT_MAX_BYTES", "SeriesInfo", "SliceImage", "list_series", "open_image", "open_study", "study_name"]
