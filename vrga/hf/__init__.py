"""All that knows transformers: its names, its model families, its files."""
