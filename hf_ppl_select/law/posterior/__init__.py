"""Draws of the laws that law points leave plausible."""
