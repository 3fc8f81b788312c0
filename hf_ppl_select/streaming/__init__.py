"""Corpora larger than memory."""
