"""The `layerscope` command: data goes to stdout, messages to stderr, and torch loads only when needed."""
