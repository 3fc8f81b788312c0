"""Subsets and laws as folders and Hub repositories, with their cards.

A law and a selection come here as objects that save and describe themselves: `ScalingLaw` pushes itself with this
folder, so this folder imports neither `law` nor `selection`.
"""
