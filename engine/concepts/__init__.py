"""Concepts, prompts and pairs: load files, sample pairs and render chat templates."""
