"""The `layerscope` command: data goes to stdout, messages to stderr."""
