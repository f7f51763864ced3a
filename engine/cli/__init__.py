"""The `layerscope` command. Data goes to stdout, narration to stderr; torch is imported when a model is needed."""
