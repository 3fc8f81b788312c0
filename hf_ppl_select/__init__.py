"""Choose which part of a corpus to spend training tokens on, by a perplexity-aware data scaling law.

Public names load lazily: `import hf_ppl_select` costs milliseconds and does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__

_MODULE_OF = {
    "PerplexityScorer": "scoring.perplexity",
    "score_ppl": "scoring.perplexity",
    "NgramScorer": "scoring.ngrams.scorer",
    "NgramCounts": "scoring.ngrams.counts",
    "chunk_documents": "data.chunking",
    "deduplicate_documents": "deduplication.documents",
    "PerplexityLandscape": "landscape.landscape",
    "ScalingLaw": "law.scaling_law",
    "fit_scaling_law": "law.fit",
    "compare_scaling_laws": "law.comparison",
    "PerplexitySelector": "selection.select",
    "select_subset": "selection.select",
    "run_benchmarks": "benchmarks",
    "push_subset_to_hub": "hub.push_subset",
    "push_subset_folder_to_hub": "hub.push_subset",
}
__all__ = ["__version__", *_MODULE_OF]

if TYPE_CHECKING:
    from .benchmarks import run_benchmarks
    from .data.chunking import chunk_documents
    from .deduplication.documents import deduplicate_documents
    from .hub.push_subset import push_subset_folder_to_hub, push_subset_to_hub
    from .landscape.landscape import PerplexityLandscape
    from .law.comparison import compare_scaling_laws
    from .law.fit import fit_scaling_law
    from .law.scaling_law import ScalingLaw
    from .scoring.ngrams.counts import NgramCounts
    from .scoring.ngrams.scorer import NgramScorer
    from .scoring.perplexity import PerplexityScorer, score_ppl
    from .selection.select import PerplexitySelector, select_subset


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
