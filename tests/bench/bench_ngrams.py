"""
What does an n-gram score cost? Counting and scoring short chunks, against plain Python, in one run on one machine.

```bash
python tests/bench/bench_ngrams.py                              # a million chunks, a minute or two
python tests/bench/bench_ngrams.py --num_chunks 100000 --corpus medquad.parquet --text_column answer
```

- count: `NgramCounts.of` of the chunks, which is all of fitting but the trusted text's few thousand words;
- score: `NgramScorer.score` of batches of 1,000;
- map: the same through `dataset.map(scorer, batched=True)`, from Arrow file to Arrow file;
- plain: DSIR's features as its package makes them, word by word in Python: a regular expression for NLTK's
  WordPunctTokenizer, sha256 of each word and pair, a dict of log ratios.

Each is the shortest of some rounds; a contended machine makes all of them slower. A token is one of the model's.
"""

import argparse
import hashlib
import json
import random
import re
import resource
import time
from pathlib import Path
from tempfile import TemporaryDirectory

CHUNK_CHARACTERS = 500
PLAIN_CHUNKS = 2_000


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.strip().splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--corpus", default=None, help="A parquet file; default: the ontology of the quickstart.")
    parser.add_argument("--text_column", default="text", help="Its column with the text.")
    parser.add_argument("--num_chunks", type=int, default=1_000_000, help="Chunks, made of the corpus's sentences.")
    parser.add_argument("--num_buckets", type=int, default=2**18, help="That n-grams are hashed into.")
    parser.add_argument("--output", default=None, help="Also write the numbers here, as JSON.")
    args = parser.parse_args()

    from datasets import Dataset, load_from_disk
    from transformers import AutoTokenizer

    from hf_ppl_select import NgramCounts, NgramScorer
    from quickstart_steps.offline_model import offline_model

    with TemporaryDirectory() as folder:
        Dataset.from_generator(make_chunks, gen_kwargs=pick(args), cache_dir=f"{folder}/made").save_to_disk(folder)
        chunks = load_from_disk(folder)
        first = chunks[:PLAIN_CHUNKS]["text"]
        tokenizer = AutoTokenizer.from_pretrained(offline_model())
        num_tokens = sum(map(len, tokenizer(first)["input_ids"])) / len(first)
        scorer = NgramScorer.fit(first[:100], first, num_buckets=args.num_buckets)
        num_words = scorer.score(first)[1].mean()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

        def count():
            NgramCounts.of(chunks, num_buckets=args.num_buckets)

        def score():
            for rows in chunks.iter(1000):
                scorer.score(rows["text"])

        def through_map():
            written = str(Path(folder, "scored.arrow"))
            chunks.map(scorer, batched=True, new_fingerprint="scored", cache_file_name=written)

        found = {
            name: seconds(run) / len(chunks)
            for name, run in (("count", count), ("score", score), ("map", through_map))
        }
        memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        found["plain"] = seconds(lambda: plain(first), rounds=3) / len(first)

    print(
        f"{args.num_chunks:,} chunks of {num_words:.0f} words, {num_tokens:.0f} tokens; {args.num_buckets:,} buckets; "
        f"peak memory grew by {memory:.0f} MiB\n\n"
        "| what | us a chunk | us a token | chunks/s | times as fast as plain |\n|---|---:|---:|---:|---:|"
    )
    for name, each in found.items():
        print(
            f"| {name} | {each * 1e6:.1f} | {each / num_tokens * 1e6:.3f} | {1 / each:,.0f} "
            f"| {found['plain'] / each:.1f} |"
        )
    if args.output:
        numbers = {"seconds_per_chunk": found, "num_tokens": num_tokens, "num_words": num_words, "memory_mib": memory}
        Path(args.output).write_text(json.dumps(numbers, default=float, indent=2) + "\n")


def pick(args):
    """What `make_chunks` is called with: the corpus's sentences."""
    if args.corpus:
        import pyarrow.parquet as pq

        texts = pq.read_table(args.corpus, columns=[args.text_column])[args.text_column].to_pylist()
    else:
        from quickstart_steps.dirty_ontology import read_terms

        texts = [term.text for term in read_terms().values()]
    sentences = [found for text in texts if text for found in re.split(r"(?<=[.!?])\s+", text) if found]
    return {"sentences": tuple(sentences), "num_chunks": args.num_chunks}


def make_chunks(sentences, num_chunks):
    """Chunks of sentences drawn at random, so that no two are alike."""
    rng = random.Random(0)
    for _ in range(num_chunks):
        chunk = ""
        while len(chunk) < CHUNK_CHARACTERS:
            chunk += f"{rng.choice(sentences)} "
        yield {"text": chunk[:CHUNK_CHARACTERS]}


def plain(texts, num_buckets=10_000):
    log_ratios = [0.0] * num_buckets
    for text in texts:
        words = re.findall(r"\w+|[^\w\s]+", text.lower())
        total = 0.0
        for ngram in [*words, *map(" ".join, zip(words, words[1:]))]:
            total += log_ratios[int(hashlib.sha256(ngram.encode()).hexdigest(), 16) % num_buckets]


def seconds(run, rounds=1):
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return min(found)


if __name__ == "__main__":
    import sys

    sys.path.insert(0, str(Path(__file__).parents[2] / "recipes"))
    main()
