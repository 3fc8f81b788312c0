"""Helpers of fit_law.py."""
