"""Capture hidden states: prepare prompts, plan batches and run the model."""
