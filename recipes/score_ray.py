r"""
Score parquet files with Ray Data: a pool of actors, each with the model, on as many machines as the cluster has.

# On this machine; with GPUs, one actor for each
```bash
python recipes/score_ray.py --dataset_name outputs/chunks --model_name_or_path Qwen/Qwen3-0.6B-Base \
    --output_dir outputs/scored
```

# On the cluster that this machine is in; its machines share the file system of `dataset_name` and `output_dir`
```bash
python recipes/score_ray.py --address auto --num_actors 64 --dataset_name /data/chunks --output_dir /data/scored
```

A row is a chunk already (see `chunk_documents`, or score.py, which chunks). An actor that dies is started again and
its rows are scored again; the rows of a shard may come in another order. So many files at a time become a shard; a
killed run, started again, goes on after its last finished shard. `load_dataset(output_dir)` works once all are done;
beside the data is landscape.json, and with `--reference` (score.py trains one) landscape_perplexity_ratio.json.
Needs `pip install "hf-ppl-select[ray]"`.
"""

from dataclasses import dataclass, field


@dataclass
class RayScoreArguments:
    dataset_name: str = field(metadata={"help": "A .parquet file, or a folder of them."})
    dataset_split: str = field(default="train", metadata={"help": "Where files are named by split, which to score."})
    text_column: str = field(default="text", metadata={"help": "Column with the text."})
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
    reference: str | None = field(
        default=None,
        metadata={"help": "Also score perplexity_ratio, over this model, or this adapter of the model: id or folder."},
    )
    reference_revision: str | None = field(default=None, metadata={"help": "Hub branch, tag or commit of it."})
    output_dir: str = field(default="outputs/scored", metadata={"help": "Folder for the scored chunks."})
    address: str | None = field(default=None, metadata={"help": "Of a Ray cluster; auto: the one this machine is in."})
    num_actors: int | None = field(default=None, metadata={"help": "Default: one per GPU, or one without any."})
    batch_size: int = field(default=512, metadata={"help": "Rows that an actor takes at a time."})
    files_per_shard: int = field(default=64, metadata={"help": "Input files in a shard: what a kill can lose."})
    overwrite: bool = field(default=False, metadata={"help": "Start anew where output_dir has other settings."})


def main(args):
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from hf_ppl_select import PerplexityScorer
    from hf_ppl_select.data.saving import check_not_input
    from hf_ppl_select.streaming.documents import TEXT_COLUMN
    from hf_ppl_select.streaming.parquet_files import ParquetFiles
    from hf_ppl_select.streaming.sharded_output import ShardedOutput

    try:
        import ray
    except ImportError as error:
        raise ImportError('this recipe needs Ray: pip install "hf-ppl-select[ray]".') from error

    # What can be wrong is found before any work
    check_not_input(args.output_dir, args.dataset_name)
    options = {
        "model": args.model_name_or_path,
        "revision": args.model_revision,
        "text_column": args.text_column,
        "bos": args.bos,
        "max_length": args.max_length,
        "dtype": args.dtype,
        "reference": args.reference,
        "reference_revision": args.reference_revision,
    }
    scorer = PerplexityScorer(**options)
    files = ParquetFiles.find(args.dataset_name, args.dataset_split)
    files.check_columns(args.text_column, advice=TEXT_COLUMN)
    settings = scorer.settings() | {"files": files.describe(), "files_per_shard": args.files_per_shard}
    starts = range(0, len(files.paths), args.files_per_shard)
    output = ShardedOutput.open(args.output_dir, len(starts), settings, overwrite=args.overwrite)
    print(f"{len(files.paths)} files in {len(starts)} shards, of which {len(output.missing)} are still to score.")

    if output.missing:  # a landscape would be of data that is overwritten
        for landscape in output.folder.glob("landscape*.json"):
            landscape.unlink(missing_ok=True)

    started = not ray.is_initialized()
    if started:
        ray.init(address=args.address, **({} if args.address else {"include_dashboard": False}))
    try:
        num_gpus = int(ray.cluster_resources().get("GPU", 0))
        for index in output.missing:
            paths = list(files.paths[starts[index] :][: args.files_per_shard])
            rows = ray.data.read_parquet(paths, filesystem=files.filesystem)
            rows = rows.map_batches(
                PerplexityScorer,
                fn_constructor_kwargs=options | {"keep_columns": True},
                batch_format="pyarrow",  # with types as they are: NumPy has no whole number for what is missing
                batch_size=args.batch_size,
                compute=ray.data.ActorPoolStrategy(size=args.num_actors or num_gpus or 1),
                num_gpus=1 if num_gpus else 0,
            )
            with TemporaryDirectory(dir=output.folder, prefix=".ray-") as folder:
                rows.write_parquet(folder)
                output.write_from(index, folder)
    finally:
        if started:
            ray.shutdown()

    output.publish()
    for name in ("perplexity", "perplexity_ratio") if args.reference else ("perplexity",):
        landscape, _ = ParquetFiles.find(str(output.folder), column=name).landscape(scorer.model_name)
        file = "landscape.json" if name == "perplexity" else f"landscape_{name}.json"
        landscape.save(Path(output.folder, file))
        print(landscape)
    print(f"Saved to {output.folder}.")


def make_parser():
    from trl import TrlParser

    return TrlParser(RayScoreArguments, description=__doc__.strip().splitlines()[0], allow_abbrev=False)


if __name__ == "__main__":
    from command_line import answer_help, parse_options, run

    answer_help(RayScoreArguments, __doc__)
    run(lambda: main(*parse_options(make_parser())))
