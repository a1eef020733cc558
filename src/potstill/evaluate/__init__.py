"""Evaluation: student, teacher and controls on held-out prompts, paired, with intervals."""
