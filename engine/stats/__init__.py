"""Statistics, one family per file. They take captures, not files, and know nothing of models."""
