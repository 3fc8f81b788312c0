"""Subsets and laws as folders and Hub repositories, with their cards."""
