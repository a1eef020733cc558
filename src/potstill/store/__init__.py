"""Everything on disk: the run folder, the ledger, examples, checkpoints, metrics."""
