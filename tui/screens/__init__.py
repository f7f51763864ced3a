"""The screens, one per file: layout and key actions."""
