"""Models: what their names mean, how they are loaded, where they keep their blocks, and whether they can be trusted."""
