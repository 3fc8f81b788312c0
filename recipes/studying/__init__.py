"""Helpers of study.py."""
