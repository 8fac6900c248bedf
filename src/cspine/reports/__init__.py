"""Findings become files that people and systems read: ``reports.write``."""

from cspine.reports.output import FORMATS, Format, clear, wants_series, without_series, write

__all__ = ["FORMATS", "Format", "clear", "wants_series", "without_series", "write"]
