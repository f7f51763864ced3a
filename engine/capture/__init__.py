"""Capture: which layers and positions, how prompts are tokenized and batched, and the run itself."""
