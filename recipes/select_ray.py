r"""
Select from scored parquet files with Ray, on as many machines as the cluster has: the same rows as everywhere else.

# A selector: three numbers and a seed, made on one machine from a landscape and a law
```python
from hf_ppl_select import PerplexityLandscape, PerplexitySelector, ScalingLaw

landscape, law = PerplexityLandscape.load("outputs/scored/landscape.json"), ScalingLaw.load("outputs/law/law.json")
PerplexitySelector.from_law(law, landscape, num_tokens=5_000_000_000, seed=0).save("selector.json")
```

# It decides about each row alone, so Ray may split and schedule the files as it likes
```bash
python recipes/select_ray.py --dataset_name outputs/scored --selector selector.json --output_dir outputs/subset-ray
```

# On a cluster, with data that all machines reach
```bash
python recipes/select_ray.py --address auto \
    --dataset_name s3://bucket/scored --selector selector.json --output_dir s3://bucket/subset
```

`load_dataset(output_dir)` finds nothing before all is written; a killed run starts over, in a new folder.
`select_subset.py --streaming` writes a selector.json too. Needs `pip install "hf-ppl-select[ray]"`.
"""

from dataclasses import dataclass, field


@dataclass
class RayArguments:
    dataset_name: str = field(
        metadata={"help": "Scored chunks: a .parquet file, a folder of them (train-... if named by split), or a URL."}
    )
    selector: str = field(metadata={"help": "selector.json: what `PerplexitySelector.save` wrote."})
    output_dir: str = field(metadata={"help": "Where the parquet files of the subset go: a folder or URL."})
    dataset_split: str = field(default="train", metadata={"help": "Where files are named by split, which to read."})
    num_tokens_column: str = field(
        default="num_tokens",
        metadata={
            "help": "Tokens of each chunk; num_words, of score_ngrams.py, where the selector's budget is in words."
        },
    )
    address: str | None = field(default=None, metadata={"help": "Of a Ray cluster; auto: the one this machine is in."})
    num_cpus: int | None = field(default=None, metadata={"help": "Without a cluster: processes on this machine."})
    batch_size: int = field(default=4096, metadata={"help": "Rows decided about together; decides nothing."})


def main(args):
    from fsspec.core import url_to_fs

    from hf_ppl_select import PerplexitySelector
    from hf_ppl_select.streaming.parquet_files import KEY_COLUMN, ParquetFiles

    try:
        import ray
    except ImportError as error:
        raise ImportError('this recipe needs Ray: pip install "hf-ppl-select[ray]".') from error

    # What can be wrong is found before any work
    selector = PerplexitySelector.load(args.selector)
    columns = {"column": selector.column, "num_tokens_column": args.num_tokens_column}
    files = ParquetFiles.find(args.dataset_name, args.dataset_split, **columns)
    files.check_columns(selector.column)
    files.check_columns(selector.key_column, advice=KEY_COLUMN)
    advice = "name the one that the selector's budget counts in: --num_tokens_column, of score_ngrams.py num_words"
    files.check_columns(files.num_tokens_column, advice=advice)
    filesystem, output = url_to_fs(str(args.output_dir))
    if filesystem.exists(output) and filesystem.ls(output):
        raise FileExistsError(f"{args.output_dir} is not empty; name a new folder, or empty it.")

    # A batch is an Arrow table; the selector is pickled to the workers, settings only
    counts = args.num_tokens_column

    def keep(batch):
        import pyarrow

        from hf_ppl_select.streaming.parquet_files import selector_mask

        return batch.filter(pyarrow.array(selector_mask(selector, batch, counts)))

    started = not ray.is_initialized()
    if started:
        local = {} if args.address else {"num_cpus": args.num_cpus, "include_dashboard": False}
        ray.init(address=args.address, **local)
    try:
        rows = ray.data.read_parquet(list(files.paths), filesystem=files.filesystem)
        rows = rows.map_batches(keep, batch_format="pyarrow", batch_size=args.batch_size)
        unfinished = f"{output}/.unfinished"  # hidden from `load_dataset`
        rows.write_parquet(unfinished, filesystem=filesystem)
    finally:
        if started:
            ray.shutdown()
    if not filesystem.glob(f"{unfinished}/*.parquet"):
        raise ValueError(f"the selector keeps no row of {args.dataset_name}; make one with a target that it reaches.")
    filesystem.mv(unfinished, f"{output}/data", recursive=True)

    # What came out, read from what was written
    kept, _ = ParquetFiles.find(str(args.output_dir), **columns).landscape()
    unit = files.counted_in
    print(f"Kept {kept.num_chunks:,} chunks, {kept.num_tokens:,} {unit}: {kept}")
    if selector.expected_num_tokens is not None:
        print(f"Promised {selector.expected_num_tokens:,.0f} {unit}, deviation {selector.num_tokens_std:,.0f}.")
    print(f"Saved to {args.output_dir}.")


def make_parser():
    from trl import TrlParser

    return TrlParser(RayArguments, description=__doc__.strip().splitlines()[0], allow_abbrev=False)


if __name__ == "__main__":
    from command_line import answer_help, parse_options, run

    answer_help(RayArguments, __doc__)
    run(lambda: main(*parse_options(make_parser())))
