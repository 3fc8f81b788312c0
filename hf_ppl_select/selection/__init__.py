"""Which rows of a corpus to train on."""
