"""The MCP server: the engine's functions as tools that LLM agents call. A thin shell; importing it imports no torch."""
