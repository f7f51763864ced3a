"""Concepts: the contrasts that are built in and the user's own, the pairs they make, and how those become prompts."""
