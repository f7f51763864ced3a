"""Typed records that pass between the stages.

They compute nothing but descriptions of themselves. What the how-to promises or a file on disk contains is a dictionary
(TypedDict); everything else is a frozen dataclass.
"""
