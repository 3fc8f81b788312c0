r"""
Score a corpus: documents -> chunks -> the perplexity of each under a base model, and the corpus's landscape.

# From a YAML file; options on the command line win
```bash
python recipes/score.py --config recipes/configs/score_medical.yaml
```

# Documents of the Hub or of a file, cut into chunks of 2,048 tokens that keep the column `title`
```bash
python recipes/score.py \
    --dataset_name MedRAG/textbooks \
    --text_column content \
    --keep_columns title \
    --model_name_or_path Qwen/Qwen3-0.6B-Base \
    --output_dir outputs/scored
```

# Several GPUs, on one or more machines with one file system: each process scores its share of the shards
```bash
accelerate launch recipes/score.py --config recipes/configs/score_medical.yaml
```

# Also how much less surprising each chunk is once the model has learned from a small clean sample: perplexity_ratio.
# The reference is trained first, into outputs/scored/reference; --reference takes one that there is already
```bash
python recipes/score.py --config recipes/configs/score_medical.yaml --trusted trusted.jsonl --eval_file held_out.jsonl
```

With `--chunk_length 0` rows are scored as they are: texts, `prompt` and `completion`, or `messages`. Killed and
started again, the same command goes on after the last finished shard; copies of it that run at once end as one, but
share no work (`accelerate launch` does that). `load_dataset(output_dir)` works once every
chunk is scored; beside the data are landscape.json and, with matplotlib, landscape.png, and those of other scores
(landscape_perplexity_ratio.json).
"""

from dataclasses import dataclass, field

from hf_ppl_select.data.saving import check_not_input

TRAINING_OPTIONS = (
    *("trusted", "trusted_share", "eval_file"),
    *("reference_lora", "reference_learning_rate", "reference_epochs"),
)


@dataclass
class ScoreArguments:
    dataset_name: str = field(
        metadata={"help": "A Hub dataset, a folder of `save_to_disk`, or a .parquet, .jsonl, .csv or .txt file."}
    )
    output_dir: str = field(metadata={"help": "Where the scored chunks go."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    dataset_split: str = field(default="train", metadata={"help": "Split to score, e.g. train[:1000]."})
    text_column: str = field(default="text", metadata={"help": "Column with the text."})
    chunk_length: int = field(default=2048, metadata={"help": "Tokens in a chunk; 0: each row is a chunk already."})
    separator: str = field(
        default="\n\n", metadata={"help": "Put between documents to join them; 'none' keeps documents apart."}
    )
    min_length: int | None = field(
        default=None,
        metadata={
            "help": "Least tokens in a chunk; default: a quarter of chunk_length. A shorter last chunk gets part of "
            "the one before it; with separator none, shorter documents are left out, and counted."
        },
    )
    keep_columns: list[str] = field(
        default_factory=list, metadata={"help": "Columns that chunks keep; only documents equal in them are joined."}
    )
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Causal LM; default: HF_PPL_SELECT_MODEL, else HuggingFaceTB/SmolLM2-135M."}
    )
    model_revision: str | None = field(default=None, metadata={"help": "Hub branch, tag or commit of the model."})
    dtype: str = field(
        default="auto", metadata={"help": "Of the weights; auto: its own, or float32 on a CPU slow in that."}
    )
    bos: str = field(
        default="auto",
        metadata={"help": "Before a text: auto (what the model saw between documents), bos, eos or none."},
    )
    max_length: int | None = field(default=None, metadata={"help": "Longest window; default: the model's positions."})
    chat_template_file: str | None = field(
        default=None, metadata={"help": "For messages: a Jinja template with {%% generation %%} marks."}
    )
    split_special_tokens: bool = field(
        default=False, metadata={"help": "Take the name of a special token in a text as the letters it is written in."}
    )
    ifd: bool = field(
        default=False, metadata={"help": "Also score ifd: an answer's perplexity behind its prompt over that without."}
    )
    reference: str | None = field(
        default=None,
        metadata={"help": "Also score perplexity_ratio, over this model, or this adapter of the model: id or folder."},
    )
    reference_revision: str | None = field(default=None, metadata={"help": "Hub branch, tag or commit of it."})
    trusted: str | None = field(
        default=None,
        metadata={
            "help": "Train the reference first, on a small clean sample of the domain that is no part of the corpus; "
            "named like a dataset."
        },
    )
    eval_file: str | None = field(
        default=None,
        metadata={"help": "Held-out domain texts: trusted ones may share no run of eight words with them."},
    )
    trusted_share: float | None = field(
        default=None,
        metadata={"help": "Without `trusted`: this share of eval_file; the rest goes to output_dir/held_out.jsonl."},
    )
    reference_lora: bool = field(default=False, metadata={"help": "Train an adapter (LoRA), not all weights."})
    reference_learning_rate: float | None = field(
        default=None, metadata={"help": "Of its training; default: 1e-4, of an adapter 1e-3."}
    )
    reference_epochs: float = field(default=1.0, metadata={"help": "How often it is trained on the trusted texts."})
    compile: str = field(
        default="auto", metadata={"help": "Compile the model's layers: true, false; auto: of many chunks."}
    )
    max_batch_tokens: int | None = field(default=None, metadata={"help": "Padded tokens in one forward pass."})
    shard_size: int = field(default=1000, metadata={"help": "Chunks in a shard: what a kill can lose."})
    overwrite: bool = field(default=False, metadata={"help": "Start anew where output_dir has other settings."})

    def __post_init__(self):
        if self.compile not in ("auto", "true", "false"):
            raise ValueError(f"compile must be auto, true or false, not {self.compile!r}.")
        self.keep_columns = [self.keep_columns] if isinstance(self.keep_columns, str) else self.keep_columns
        for name, least in (("chunk_length", 0), ("shard_size", 1)):
            if type(value := getattr(self, name)) is not int or value < least:
                raise ValueError(f"{name} must be a whole number, at least {least}, not {value!r}.")
        ways = [name for name in ("reference", "trusted", "trusted_share") if getattr(self, name) is not None]
        if len(ways) > 1:
            raise ValueError(f"{ways[0]} and {ways[1]} are two ways to a reference: leave one out.")
        if ways == ["trusted_share"] and (self.eval_file is None or not 0 < self.trusted_share < 1):
            raise ValueError("trusted_share is a share of eval_file, above 0 and below 1: pass both.")
        training = (self.eval_file, self.reference_lora, self.reference_learning_rate, self.reference_epochs)
        if ways in ([], ["reference"]) and training != (None, False, None, 1):
            raise ValueError("eval_file and the reference's training are for trusted texts: pass trusted, too.")
        if self.min_length is not None and type(self.min_length) is not int:
            raise ValueError(f"min_length must be a whole number, not {self.min_length!r}.")
        if self.min_length is not None and not self.chunk_length:
            raise ValueError("min_length is for chunks: with chunk_length 0 each row is scored as it is.")


def main(args):
    from importlib.util import find_spec
    from pathlib import Path

    import pyarrow as pa
    from tqdm import tqdm

    import cpt
    from command_line import parse_options
    from hf_ppl_select import PerplexityLandscape
    from hf_ppl_select.data.chunking import check_lengths
    from hf_ppl_select.data.load import load_rows
    from hf_ppl_select.data.saving import one_at_a_time
    from hf_ppl_select.likelihood.model_identity import own_revision
    from hf_ppl_select.likelihood.models import load_tokenizer
    from hf_ppl_select.scoring.ifd import check_prompts
    from hf_ppl_select.scoring.loaded import check_tokenizers
    from hf_ppl_select.scoring.perplexity import PerplexityScorer
    from hf_ppl_select.scoring.rows import columns_to_score
    from hf_ppl_select.scoring.score_columns import EVERY_COLUMN
    from hf_ppl_select.scoring.texts import compiling_pays
    from hf_ppl_select.streaming.sharded_output import ShardedOutput, hash_rows, launched_as
    from scoring import reference, trusted
    from scoring.chunks import cut_into_chunks
    from training.cpu_trainer import release_large_blocks

    check_not_input(args.output_dir, args.dataset_name)
    rank, num_processes, local_rank = launched_as()
    scorer = PerplexityScorer(
        args.model_name_or_path,
        revision=args.model_revision,
        text_column="text" if args.chunk_length else args.text_column,
        bos=args.bos,
        max_length=args.max_length,
        dtype=args.dtype,
        max_batch_tokens=args.max_batch_tokens,
        chat_template=args.chat_template_file and Path(args.chat_template_file).read_text(encoding="utf-8"),
        split_special_tokens=args.split_special_tokens,
        reference=args.reference,
        reference_revision=args.reference_revision,
        ifd=args.ifd,
    )
    decide_nothing = ("output_dir", "overwrite", "max_batch_tokens")  # in the data
    named_by_scorer = ("reference", "reference_revision", "ifd", *TRAINING_OPTIONS)
    options = {name: value for name, value in vars(args).items() if name not in decide_nothing + named_by_scorer}
    settings = scorer.settings() | options
    if args.chunk_length:
        settings["min_length"] = check_lengths(args.chunk_length, args.min_length)
    revision = own_revision(settings["revision"])
    tokenizer = load_tokenizer(scorer.model_name, revision=revision)
    if args.reference is not None:
        theirs = own_revision(settings["reference_revision"])
        check_tokenizers(args.reference, theirs, scorer.model_name, tokenizer)

    # Documents -> chunks
    documents = chunks = load_rows(args.dataset_name, args.dataset_config, args.dataset_split)
    if args.chunk_length:
        chunks, left_out = cut_into_chunks(documents, args, tokenizer, settings["min_length"])
        settings |= left_out
    trains = args.trusted is not None or args.trusted_share is not None
    if earlier := [name for name in EVERY_COLUMN if name in chunks.column_names]:
        print(f"Columns of an earlier scoring are left out: {', '.join(earlier)}.", flush=True)
        chunks = chunks.remove_columns(earlier)
    columns = list(columns_to_score(dict.fromkeys(chunks.column_names), scorer.text_column)) if len(chunks) else []
    scored = ["completion"] if columns[:2] == ["prompt", "completion"] else columns[:1]
    if not any(any(batch[scored[0]]) for batch in chunks.select_columns(scored).iter(1000)):
        raise ValueError(f"{args.dataset_name} has no text: all of its {len(documents)} rows are empty.")
    if args.ifd:
        check_prompts(dict.fromkeys(columns), scorer.text_column)

    # Trusted texts -> the reference, by the first process, which the others wait for
    if trains:
        if args.trusted is not None:
            texts, source = trusted.read_trusted(args.trusted, args.eval_file, args.text_column)
        else:
            texts, held_out, source = trusted.split_trusted(args.eval_file, args.trusted_share, args.text_column)
        pieces = reference.cut_as_the_corpus(texts, tokenizer, args) if args.chunk_length else texts
        training = reference.reference_settings(
            pieces,
            scorer.model_name,
            revision,
            chunk_length=args.chunk_length,
            lora=args.reference_lora,
            learning_rate=args.reference_learning_rate,
            epochs=args.reference_epochs,
        )
        folder = Path(args.output_dir, "reference")
        if rank == 0:
            column = args.text_column if args.chunk_length else scored[0]
            name = args.trusted or f"the trusted share of {args.eval_file}"
            trusted.check_not_in_corpus(texts, name, documents, column, args.dataset_name)
            with one_at_a_time(args.output_dir):  # a second copy of this command finds it trained
                if reference.start_reference(folder, pieces, training, source, overwrite=args.overwrite):
                    with reference.as_one_process():
                        cpt.main(*parse_options(cpt.make_parser(), reference.cpt_options(folder, training)))
                    release_large_blocks()
                    reference.finish_reference(folder, revision)
                if args.trusted is None:
                    trusted.write_held_out(folder.with_name("held_out.jsonl"), held_out)
        reference.wait_for_reference(folder, training)
        scorer.reference = str(folder)
        settings["reference"] = folder.name  # wherever the two folders are moved to
        settings["reference_revision"] = scorer.settings()["reference_revision"]

    # Decided by the whole corpus, not by what is left of it: a run that was killed goes on with the same numbers
    num_tokens = len(chunks) * args.chunk_length
    scorer.compile = args.compile == "true" or (args.compile == "auto" and compiling_pays(num_tokens))

    # Go on with what an earlier run of the same settings has finished
    settings |= {"num_chunks": len(chunks), "chunks_sha256": hash_rows(chunks)}
    starts = range(0, len(chunks), args.shard_size)
    output = ShardedOutput.open(args.output_dir, len(starts), settings, overwrite=args.overwrite, rank=rank)
    missing = {index: range(starts[index], len(chunks))[: args.shard_size] for index in output.missing}
    print(f"{len(chunks)} chunks in {len(starts)} shards, of which {len(missing)} are still to score.", flush=True)
    if scorer.compile and missing:
        print("The model's layers are compiled first.", flush=True)
    if missing:  # a landscape would be of data that is overwritten
        for landscape in (*output.folder.glob("landscape*.json"), *output.folder.glob("landscape*.png")):
            landscape.unlink(missing_ok=True)
    missing = {index: rows for index, rows in missing.items() if index % num_processes == rank}

    # Score. The bar counts tokens; how many there will be is extrapolated from the shards that are done
    bar = tqdm(desc="Score", unit=" tokens", unit_scale=True, position=rank)
    done, todo = 0, sum(map(len, missing.values()))
    bar.total = todo * args.chunk_length * scorer.num_passes or None

    def tokenize(rows):  # in a thread, one shard ahead
        shard = chunks.select(rows)
        return shard, scorer.tokenize(shard.select_columns(columns)[:], local_rank)

    def score(tokenized):
        nonlocal done
        shard, rows = tokenized
        for name, values in scorer.score(rows, local_rank, progress=bar.update).items():
            shard = shard.add_column(name, pa.array(values, from_pandas=True))  # NaN becomes null
        done += len(shard)
        bar.total = bar.n * todo // done
        return shard

    with bar:
        output.fill(missing, tokenize, score)
    if output.missing:
        print(f"Process {rank} is done; {len(output.missing)} shards are for the {num_processes - 1} others.")
        return

    # The data as a whole, and the landscape of each score: the last process to finish gets here
    names = [name for name in ("ifd", "perplexity_ratio", "perplexity") if name in scorer.columns]
    scored = output.read([*names, "num_tokens"])
    landscapes = {}
    for name in names:
        values, num_tokens = (scored[column].to_numpy() for column in (name, "num_tokens"))
        landscapes[name] = PerplexityLandscape.from_values(values, num_tokens, model=scorer.model_name, column=name)
    output.publish()
    for name, landscape in landscapes.items():
        path = output.folder / ("landscape.json" if name == "perplexity" else f"landscape_{name}.json")
        if find_spec("matplotlib"):
            from hf_ppl_select.plots.plots import plot_landscape

            plot_landscape(landscape, path=path.with_suffix(".png"))
        landscape.save(path)
        print(landscape)
    print(f"{landscape.num_skipped} chunks are empty. Saved to {output.folder}.")


def make_parser():
    from trl import TrlParser

    return TrlParser(ScoreArguments, description=__doc__.strip().splitlines()[0], allow_abbrev=False)


if __name__ == "__main__":
    from command_line import answer_help, parse_options, run

    answer_help(ScoreArguments, __doc__)
    run(lambda: main(*parse_options(make_parser())))
