"""Metrics, calibration, confidence intervals, tables and figures."""
