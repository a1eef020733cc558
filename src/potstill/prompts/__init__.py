"""Prompts: rows of any usual file become deduplicated, split `Prompt` records."""

from potstill.prompts.load import PromptSet, load_prompts

__all__ = ["PromptSet", "load_prompts"]
