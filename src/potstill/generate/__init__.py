"""Generation: ask the teacher what it has not been asked yet."""
