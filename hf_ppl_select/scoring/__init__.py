"""Rows in, score columns out."""
