"""Helpers of cpt.py and sft.py."""
