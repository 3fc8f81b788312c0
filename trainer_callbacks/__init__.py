"""Callbacks for any `transformers.Trainer`, TRL's too: held-out perplexity, benchmarks and law points while it trains.

Each takes the trainer first, and is added to it:

    trainer.add_callback(PerplexityCallback(trainer, {"domain": domain_texts, "general": general_texts}))
"""

from .benchmark_callback import BenchmarkCallback
from .perplexity_callback import PerplexityCallback
from .progress_callback import TokensPerSecondCallback
from .scaling_law_callback import ScalingLawCallback

__all__ = ["BenchmarkCallback", "PerplexityCallback", "ScalingLawCallback", "TokensPerSecondCallback"]
