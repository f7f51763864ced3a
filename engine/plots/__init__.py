"""Plots: one description of what to draw, as data, and the renderers that draw it as text or as a figure."""
