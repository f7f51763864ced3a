"""The terminal app: a thin shell over `engine`."""
