"""What a corpus is, and what its subsets can be."""
