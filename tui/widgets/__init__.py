"""Widgets of the terminal app: they draw what they are given and post messages, and load nothing themselves."""
