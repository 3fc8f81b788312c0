r"""
Score rows by the words that trusted text has more often than the corpus: no model, a million chunks in minutes.

# A scored corpus (score.py) gets the column `ngram_ratio` beside perplexity; the trusted text is a small clean sample
```bash
python recipes/score_ngrams.py \
    --dataset_name outputs/scored \
    --trusted trusted.jsonl \
    --output_dir outputs/scored_ngrams
```

Rows are scored as they are: chunks of score.py, texts of a Hub dataset, `prompt` and `completion`, or `messages`; all
columns stay. Killed and started again, the same command goes on after the last finished shard; processes that
`accelerate launch` starts share the shards. Beside the data are ngrams.safetensors, which is the fitted `NgramScorer`,
and landscape.json, of the column ngram_ratio. `select_subset.py --column ngram_ratio` takes the folder; where no model
has scored, with `--num_tokens_column num_words`: the budget is then in words.
"""

from dataclasses import dataclass, field

from hf_ppl_select.data.saving import check_not_input

SAVED = ("ngrams.safetensors", "landscape.json")


@dataclass
class NgramArguments:
    dataset_name: str = field(
        metadata={"help": "What score.py wrote, a Hub dataset, or a .parquet, .jsonl, .csv or .txt file."}
    )
    trusted: str = field(
        metadata={
            "help": "Clean text of the domain, some 10,000 words, that is no part of the corpus; named like a dataset."
        }
    )
    output_dir: str = field(metadata={"help": "Where the scored rows go."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    dataset_split: str = field(default="train", metadata={"help": "Split to score, e.g. train[:1000]."})
    text_column: str = field(default="text", metadata={"help": "Column with the text."})
    trusted_column: str | None = field(
        default=None, metadata={"help": "The same of trusted; default: text_column, else text."}
    )
    eval_file: str | None = field(
        default=None, metadata={"help": "Held-out texts: trusted ones may share no run of eight words with them."}
    )
    smoothing: float = field(
        default=0.1, metadata={"help": "Weight of the corpus in the model of trusted text, between 0 and 1."}
    )
    num_buckets: int = field(default=2**18, metadata={"help": "That words and pairs of words are hashed into."})
    shard_size: int = field(default=100_000, metadata={"help": "Rows in a shard: what a kill can lose."})
    overwrite: bool = field(default=False, metadata={"help": "Start anew where output_dir has other settings."})

    def __post_init__(self):
        if self.shard_size < 1:
            raise ValueError(f"shard_size must be at least 1, not {self.shard_size}.")


def main(args):
    import numpy as np
    import pyarrow as pa
    from tqdm import tqdm

    from hf_ppl_select import NgramScorer, PerplexityLandscape
    from hf_ppl_select.data.load import load_rows
    from hf_ppl_select.scoring.ngrams.counts import text_batches
    from hf_ppl_select.scoring.ngrams.scorer import NGRAM_COLUMNS
    from hf_ppl_select.streaming.sharded_output import ShardedOutput, hash_rows, launched_as
    from scoring.trusted import check_not_in_corpus, read_trusted

    check_not_input(args.output_dir, args.dataset_name)
    # What can be wrong is found before any work
    rank, num_processes, _ = launched_as()
    rows = load_rows(args.dataset_name, args.dataset_config, args.dataset_split)
    rows = rows.remove_columns([name for name in NGRAM_COLUMNS if name in rows.column_names])
    _, columns = find_columns(args.dataset_name, rows, "text_column", args.text_column)
    trusted = load_rows(args.trusted)
    named = (args.trusted_column,) if args.trusted_column else (args.text_column, "text")
    trusted_column, _ = find_columns(args.trusted, trusted, "trusted_column", *named)
    if args.eval_file is not None:
        read_trusted(args.trusted, args.eval_file, args.trusted_column or args.text_column)
    texts = [text for batch in text_batches(trusted, trusted_column) for text in batch if text.strip()]
    for column in columns if rank == 0 else ():
        check_not_in_corpus(texts, args.trusted, rows, column, args.dataset_name)

    # Count
    scorer = NgramScorer.fit(
        texts, rows, text_column=args.text_column, smoothing=args.smoothing, num_buckets=args.num_buckets
    )

    # Go on with what an earlier run of the same settings has finished
    settings = scorer.settings() | {"shard_size": args.shard_size, "rows_sha256": hash_rows(rows)}
    starts = range(0, len(rows), args.shard_size)
    output = ShardedOutput.open(args.output_dir, len(starts), settings, overwrite=args.overwrite, rank=rank)
    missing = {index: range(starts[index], len(rows))[: args.shard_size] for index in output.missing}
    print(f"{len(rows)} rows in {len(starts)} shards, of which {len(missing)} are still to score.", flush=True)
    for name in SAVED if missing else ():  # would be of data that is overwritten
        (output.folder / name).unlink(missing_ok=True)
    missing = {index: some for index, some in missing.items() if index % num_processes == rank}

    with tqdm(desc="Score", total=sum(map(len, missing.values())), unit=" rows", unit_scale=True) as bar:

        def read(some):  # in a thread, one shard ahead
            shard = rows.select(some)
            return shard, list(text_batches(shard, args.text_column))

        def score(shard_and_texts):
            shard, batches = shard_and_texts
            scored = []
            for texts in batches:
                scored.append(scorer.score(texts))
                bar.update(len(texts))
            for name, values in zip(NGRAM_COLUMNS, zip(*scored)):
                shard = shard.add_column(name, pa.array(np.concatenate(values), from_pandas=True))  # NaN becomes null
            return shard

        output.fill(missing, read, score)
    if output.missing:
        print(f"Process {rank} is done; {len(output.missing)} shards are for the {num_processes - 1} others.")
        return

    # The last process to finish gets here
    tokens = "num_tokens" if "num_tokens" in rows.column_names else "num_words"
    ratios, num_tokens = (column.to_numpy() for column in output.read(["ngram_ratio", tokens]))
    landscape = PerplexityLandscape.from_values(ratios, num_tokens, column="ngram_ratio")
    output.publish()
    for name, part in zip(SAVED, (scorer, landscape)):
        part.save(output.folder / name)
    print(f"{landscape}\n{landscape.num_skipped} rows have no word. Saved to {output.folder}.")


def find_columns(name, rows, option, *text_columns):
    """The first of these that is there, as the text column; and the columns that hold the rows' text."""
    from hf_ppl_select.data.load import TEMPLATE_COLUMNS
    from hf_ppl_select.scoring.rows import columns_to_score

    text_column = next((column for column in text_columns if column in rows.column_names), text_columns[0])
    try:
        columns = columns_to_score(dict.fromkeys(rows.column_names), text_column)
    except KeyError as error:
        missing = " or ".join(map(repr, dict.fromkeys(text_columns)))
        raise KeyError(
            f"{name} has no column {missing} to score, nor 'messages', nor 'prompt' and 'completion'; its columns are "
            f"{', '.join(rows.column_names)}. Name the one with the text: --{option}."
        ) from error
    return text_column, [column for column in columns if column not in TEMPLATE_COLUMNS]


def make_parser():
    from trl import TrlParser

    return TrlParser(NgramArguments, description=__doc__.strip().splitlines()[0], allow_abbrev=False)


if __name__ == "__main__":
    from command_line import answer_help, parse_options, run

    answer_help(NgramArguments, __doc__)
    run(lambda: main(*parse_options(make_parser())))
