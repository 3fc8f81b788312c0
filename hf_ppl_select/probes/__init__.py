"""Which short runs to train before a law can be fitted."""
