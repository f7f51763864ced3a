"""Steer a model with directions, and carry them to other tools."""
