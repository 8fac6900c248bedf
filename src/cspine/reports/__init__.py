"""Findings become files that people and systems read: ``reports.write``."""

from cspine.reports.output import FORMATS, Format, clear, write

__all__ = ["FORMATS", "Format", "clear", "write"]
