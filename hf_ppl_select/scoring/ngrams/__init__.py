"""How much likelier are a row's words in trusted text than in the corpus: a score without a model."""
