"""Widgets of the terminal app: they draw given data, post messages and load nothing."""
