"""The MCP server: the engine's functions as tools for LLM agents. Importing it does not import torch."""
