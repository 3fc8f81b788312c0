"""The one place that runs a model: token ids in, log-likelihoods out."""
