"""Capture hidden states: select layers and positions, tokenize and batch prompts, run the model."""
