"""The student, asked: from its model folder alone."""
