"""Landscapes and laws as pictures."""
