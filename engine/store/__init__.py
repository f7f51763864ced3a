"""The store: a folder of captures, each `NAME.pt` with a `NAME.json`; written atomically, read without running code."""
