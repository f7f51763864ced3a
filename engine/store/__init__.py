"""Save, load and manage the captures of a store.

A store is a folder; each capture is a `NAME.pt` or a folder of shards, and a `NAME.json` record. Writes are atomic, and
reading runs no code from a file.
"""
