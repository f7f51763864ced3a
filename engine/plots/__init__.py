"""Render captures, rankings, comparisons and readings as text and as figures."""
