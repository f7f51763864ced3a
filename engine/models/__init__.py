"""Models: resolve names, load, place and check models, and run forward passes."""
