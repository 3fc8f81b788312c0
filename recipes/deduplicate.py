r"""
Drop documents that repeat an earlier one, and cut out lines and sentences that stand in many, before score.py chunks.

# Near-duplicates (a Jaccard similarity of 0.8 of the 5-word runs), and so normalized and exact ones; the first stays
```bash
python recipes/deduplicate.py --dataset_name MedRAG/textbooks --text_column content --output_dir outputs/deduplicated
```

# Of documents of a sentence or two, one changed word spoils most runs of five
```bash
python recipes/deduplicate.py --dataset_name a.jsonl --near_ngram 2 --near_threshold 0.6 --output_dir outputs/unique
```

# Boilerplate, too: each line or sentence that stands in more than 20 documents is cut out of all of them
```bash
python recipes/deduplicate.py \
    --dataset_name documents.jsonl \
    --max_line_documents 20 --max_sentence_documents 20 \
    --count_by source --write_dropped \
    --output_dir outputs/deduplicated
```

# Then score what is left
```bash
python recipes/score.py --dataset_name outputs/deduplicated --output_dir outputs/scored
```

`load_dataset(output_dir)` has all columns. Beside the data: deduplication.json, with rows and characters dropped by
reason; with `--write_dropped` dropped_rows.parquet, which also says what each row repeats, and cut_passages.parquet.
Killed and started again, the same command looks for repetitions again and goes on after the last finished shard.
"""

from dataclasses import dataclass, field

from hf_ppl_select.data.saving import check_not_input


@dataclass
class DeduplicateArguments:
    dataset_name: str = field(
        metadata={"help": "A Hub dataset, a folder of `save_to_disk`, or a .parquet, .jsonl, .csv or .txt file."}
    )
    output_dir: str = field(metadata={"help": "Where the documents that are kept go."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    dataset_split: str = field(default="train", metadata={"help": "Split to read, e.g. train[:1000]."})
    text_column: str = field(default="text", metadata={"help": "Column with the text."})
    deduplicate: str = field(
        default="near", metadata={"help": "Documents: exact, normalized (case and blanks), near, or none."}
    )
    near_threshold: float = field(default=0.8, metadata={"help": "Of near: the least Jaccard similarity."})
    near_ngram: int = field(default=5, metadata={"help": "Of near: words in an n-gram; 2 for short documents."})
    max_line_documents: int | None = field(
        default=None, metadata={"help": "Cut out the lines that stand in more documents than this."}
    )
    max_sentence_documents: int | None = field(
        default=None, metadata={"help": "Cut out the sentences that stand in more documents than this."}
    )
    keep_columns: list[str] = field(
        default_factory=list, metadata={"help": "Columns to keep beside the text; default: all."}
    )
    count_by: str | None = field(default=None, metadata={"help": "Also count by the values of this column."})
    write_dropped: bool = field(default=False, metadata={"help": "Write what was dropped and cut out, too."})
    shard_size: int = field(default=10_000, metadata={"help": "Documents read for a shard."})
    overwrite: bool = field(default=False, metadata={"help": "Start anew where output_dir has other settings."})

    def __post_init__(self):
        self.keep_columns = [self.keep_columns] if isinstance(self.keep_columns, str) else self.keep_columns
        if type(self.shard_size) is not int or self.shard_size < 1:
            raise ValueError(f"shard_size must be a whole number, at least 1, not {self.shard_size!r}.")
        if self.deduplicate == "none" and self.max_line_documents is None and self.max_sentence_documents is None:
            raise ValueError(
                "deduplicate none leaves nothing to do; give max_line_documents or max_sentence_documents."
            )


def main(args):
    import numpy as np

    from hf_ppl_select import deduplicate_documents
    from hf_ppl_select.data.load import load_rows
    from hf_ppl_select.data.saving import save_json, written_aside
    from hf_ppl_select.deduplication.documents import DROPPED_COLUMNS, check_options
    from hf_ppl_select.streaming.sharded_output import ShardedOutput, hash_rows

    check_not_input(args.output_dir, args.dataset_name)
    documents = load_rows(args.dataset_name, args.dataset_config, args.dataset_split)
    needed = [args.text_column, *args.keep_columns, *([args.count_by] if args.count_by else [])]
    if missing := [name for name in needed if name not in documents.column_names]:
        there = ", ".join(documents.column_names)
        raise KeyError(f"{args.dataset_name} has no column {missing[0]!r}; its columns are {there}.")
    if args.write_dropped and (taken := set(DROPPED_COLUMNS) & set(documents.column_names)):
        raise ValueError(f"write_dropped adds a column {min(taken)!r}, which {args.dataset_name} has; rename it.")
    columns = (
        list(dict.fromkeys([args.text_column, *args.keep_columns])) if args.keep_columns else documents.column_names
    )

    finding = {
        "text_column": args.text_column,
        "how": None if args.deduplicate == "none" else args.deduplicate,
        "near_threshold": args.near_threshold,
        "near_ngram": args.near_ngram,
        "max_line_documents": args.max_line_documents,
        "max_sentence_documents": args.max_sentence_documents,
    }
    check_options(documents, **finding)

    # Go on with what an earlier run of the same settings has finished
    settings = dict(vars(args))
    for name in ("output_dir", "overwrite", "write_dropped", "count_by"):  # decide nothing in the data
        del settings[name]
    settings |= {"num_documents": len(documents), "documents_sha256": hash_rows(documents)}
    starts = range(0, len(documents), args.shard_size)
    output = ShardedOutput.open(args.output_dir, len(starts), settings, overwrite=args.overwrite)
    report, dropped_rows, cut_passages = (
        output.folder / name for name in ("deduplication.json", "dropped_rows.parquet", "cut_passages.parquet")
    )
    if not output.published:  # these would be of data that is overwritten
        for path in (report, dropped_rows, cut_passages):
            path.unlink(missing_ok=True)

    # What to keep
    found = deduplicate_documents(documents, **finding)
    kept = np.flatnonzero(found.reasons < 0)
    if not len(kept):
        raise ValueError("Every line or sentence stands in too many documents: nothing is left. Allow more of them.")

    # The data, shard by shard of the input, and what is not in it
    ends = np.searchsorted(kept, [*starts[1:], len(documents)])
    for index in output.missing:
        rows = range(ends[index - 1] if index else 0, ends[index])
        output.write(index, found.dataset.select_columns(columns).select(rows or []))  # an empty range may be none
    output.publish()
    if args.write_dropped:  # now: a folder of nothing but dropped rows would load as if they were the data
        with written_aside(dropped_rows) as aside:
            found.dropped_rows().to_parquet(aside)
        if found.cut:
            with written_aside(cut_passages) as aside:
                found.cut_passages().to_parquet(aside)

    # What was dropped, and why
    counts = with_totals(found.counts(), found.counts_by(args.count_by) if args.count_by else {})
    repeated = {f"{kind}s": len(often) for kind, often in found.repeated.items()}
    payload = {"settings": settings, "count_by": args.count_by, "repeated": repeated, "counts": counts}
    save_json(report, payload, kind="deduplication", version=1)
    for kind, number in repeated.items():
        print(f"{number} different {kind} stand in more documents than allowed, and are cut out of all of them.")
    print(f"{table(counts)}\nSaved to {output.folder}.")


def with_totals(totals, groups):
    """The counts of all documents, as `all`, and of each group; a group of that name is called `(all)`."""
    name = "all"
    while name in groups:
        name = f"({name})"
    return {"all": totals} | {name if group == "all" else group: counts for group, counts in groups.items()}


def table(counts):
    """Markdown: rows by reason and the characters kept, of all documents and of each group of them."""
    reasons = [reason for reason in counts["all"]["rows"] if reason not in ("input", "kept")]
    cuts = [name for name in counts["all"] if name.endswith("_cut")]
    names = ["documents", "kept", *reasons, *cuts, "characters kept"]
    lines = [f"| | {' | '.join(name.replace('_', ' ') for name in names)} |", f"|---|{'---:|' * len(names)}"]
    for group, here in counts.items():
        numbers = [here["rows"].get(name, 0) for name in ("input", "kept", *reasons)] + [here[name] for name in cuts]
        characters = here["characters"]
        share = characters["kept"] / characters["input"] if characters["input"] else 0.0
        lines.append(f"| {group} | {' | '.join(f'{number:,}' for number in numbers)} | {share:.1%} |")
    return "\n".join(lines)


def make_parser():
    from trl import TrlParser

    return TrlParser(DeduplicateArguments, description=__doc__.strip().splitlines()[0], allow_abbrev=False)


if __name__ == "__main__":
    from command_line import answer_help, parse_options, run

    answer_help(DeduplicateArguments, __doc__)
    run(lambda: main(*parse_options(make_parser())))
