"""Store captures in a folder: one `NAME.pt` or a folder of shards, and a `NAME.json` record.

Writes are atomic. Reading runs no code from a file.
"""
