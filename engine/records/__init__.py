"""The typed records that pass between the stages: models and concepts, captures, statistics, files.

They hold no behaviour. Dictionaries (TypedDict) are what the how-to promises or what is written to disk; everything
else is a frozen dataclass.
"""
