"""How big a job is before it starts: bytes on every GPU, operations, bytes on disk. From shapes, without torch."""
