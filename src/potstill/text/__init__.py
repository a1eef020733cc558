"""Messages in, token ids out: chat templates, the answer's tokens, and the checks that both must pass."""
