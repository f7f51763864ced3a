"""The terminal app: a thin shell over `engine`, without tensor arithmetic, file formats or statistics."""
