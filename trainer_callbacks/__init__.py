"""Callbacks for any `transformers.Trainer`, TRL's too: perplexity, benchmarks, law points, a bound on forgetting.

Each takes the trainer first, and is added to it:

    trainer.add_callback(PerplexityCallback(trainer, {"domain": domain_texts, "general": general_texts}))
"""

from .benchmark_callback import BenchmarkCallback
from .forgetting_guard import ForgettingGuard
from .perplexity_callback import PerplexityCallback
from .progress_callback import TokensPerSecondCallback
from .scaling_law_callback import ScalingLawCallback

__all__ = [
    "BenchmarkCallback",
    "ForgettingGuard",
    "PerplexityCallback",
    "ScalingLawCallback",
    "TokensPerSecondCallback",
]
