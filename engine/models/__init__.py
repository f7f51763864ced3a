"""Models: resolve their names, load and place them, find their blocks, check them and run forward passes."""
