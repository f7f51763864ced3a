"""The terminal app: a thin shell over the engine for people. No statistic, no file format and no tensor lives here."""
