"""Of score.py: the trusted sample, and the reference that is trained on it."""
