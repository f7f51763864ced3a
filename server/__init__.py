"""The MCP server: the engine's functions as tools for LLM agents; loads no torch."""
