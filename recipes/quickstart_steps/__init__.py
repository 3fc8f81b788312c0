"""Helpers of quickstart.py."""
