"""Engines: what turns prompts into answers and distributions."""
