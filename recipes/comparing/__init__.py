"""Helpers of report.py."""
