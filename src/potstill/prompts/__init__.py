"""Prompts: rows of any usual file, or procedural tasks, become `Prompt` records, split where the recipe says so."""
