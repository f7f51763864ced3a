"""Typed records that pass between the stages.

They have no behavior. What the how-to promises or a file on disk contains is a dictionary (TypedDict); everything else
is a frozen dataclass.
"""
