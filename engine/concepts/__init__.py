"""Concepts, prompts and pairs: load them, draw pairs, and render chat templates."""
