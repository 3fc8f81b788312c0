r"""
Drop documents that repeat an earlier one, on as many machines as a Ray cluster has: what deduplicate.py keeps is kept.

# On this machine
```bash
python recipes/deduplicate_ray.py --dataset_name documents/ --output_dir outputs/deduplicated
```

# On a cluster, with data that all machines reach
```bash
python recipes/deduplicate_ray.py --address auto \
    --dataset_name s3://bucket/documents --text_column content --output_dir s3://bucket/deduplicated
```

"Earlier" goes by the sorted names of the files, then by their rows. A task for each file hashes it. Only hashes come
together in this process, one kind at a time: 90 bytes of memory a row. All, by default 124 bytes a row, wait in
Ray's object store. Rows that share a hash form groups; the texts of these alone are gathered, whole groups in a task,
and compared exactly. So one task compares all pages of a template, and its time grows with the square of their number.
Then each file is written without what repeats, if anything of it is left.

Of a task whose machine dies, the work is done again. `load_dataset(output_dir)` finds nothing before all is written; a
killed run starts over, in a new folder. Lines and sentences that stand in many documents are deduplicate.py's alone:
run it on what is left. Beside the data: deduplication.json. Needs `pip install "hf-ppl-select[ray]"`.
"""

from dataclasses import dataclass, field
from tempfile import TemporaryDirectory

BATCH_RUNS = 1 << 20  # of words, compared by a task at least: some 6 MB of text


@dataclass
class RayDeduplicateArguments:
    dataset_name: str = field(
        metadata={"help": "Documents: a .parquet file, a folder of them (train-... if named by split), or a URL."}
    )
    output_dir: str = field(metadata={"help": "Where the documents that are kept go: a folder or URL."})
    dataset_split: str = field(default="train", metadata={"help": "Where files are named by split, which to read."})
    text_column: str = field(default="text", metadata={"help": "Column with the text."})
    deduplicate: str = field(default="near", metadata={"help": "exact, normalized (case and blanks), or near."})
    near_threshold: float = field(default=0.8, metadata={"help": "Of near: the least Jaccard similarity."})
    near_ngram: int = field(default=5, metadata={"help": "Of near: words in an n-gram; 2 for short documents."})
    address: str | None = field(default=None, metadata={"help": "Of a Ray cluster; auto: the one this machine is in."})
    num_cpus: int | None = field(default=None, metadata={"help": "Without a cluster: processes on this machine."})


def main(args):
    import numpy as np
    from fsspec.core import url_to_fs

    from deduplicate import table
    from hf_ppl_select.data.saving import save_json
    from hf_ppl_select.deduplication.duplicates import DEDUPLICATE, check_deduplicate
    from hf_ppl_select.deduplication.parts import find_repetitions, hash_names
    from hf_ppl_select.streaming import documents
    from hf_ppl_select.streaming.parquet_files import ParquetFiles

    try:
        import ray
    except ImportError as error:
        raise ImportError('this recipe needs Ray: pip install "hf-ppl-select[ray]".') from error

    # What can be wrong is found before any work
    finding = {"how": args.deduplicate, "threshold": args.near_threshold}
    check_deduplicate(**finding, ngram=args.near_ngram)
    files = ParquetFiles.find(args.dataset_name, args.dataset_split)
    files.check_columns(args.text_column, advice=documents.TEXT_COLUMN)
    filesystem, output = url_to_fs(str(args.output_dir))
    if filesystem.exists(output) and filesystem.ls(output):
        raise FileExistsError(f"{args.output_dir} is not empty; name a new folder, or empty it.")

    started = not ray.is_initialized()
    if started:
        local = {} if args.address else {"num_cpus": args.num_cpus, "include_dashboard": False}
        ray.init(address=args.address, **local)
    try:
        every, shared = range(len(files.paths)), ray.put(files)
        quiet = {"runtime_env": {"env_vars": {"TQDM_DISABLE": "1"}}}  # bars are drawn here

        # Hashes stay where they were made until they are asked for, one kind at a time
        names = ["rows", *hash_names(**finding)]
        task = ray.remote(num_returns=len(names), **quiet)(documents.hash_file)
        made = (task.remote(shared, index, args.text_column, *finding.values(), args.near_ngram) for index in every)
        hashed = dict(zip(names, map(list, zip(*made))))
        starts = np.cumsum([0, *results(hashed.pop("rows"), "Hash")])
        if not starts[-1]:
            raise ValueError(f"{args.dataset_name} has no rows.")

        def hashes(name):
            return np.concatenate(ray.get(hashed.pop(name)))

        # Texts go from the tasks that read them to those that compare them, not by way of this process
        def compare(batches):
            ends = [np.searchsorted(rows, starts) for rows in batches]
            texts = [[] for _ in batches]
            for index in every:
                touched = [number for number, end in enumerate(ends) if end[index] < end[index + 1]]
                wanted = [batches[n][ends[n][index] : ends[n][index + 1]] - starts[index] for n in touched]
                if touched:
                    task = ray.remote(num_returns=1 + len(touched), **quiet)(documents.pick_texts)
                    _, *picked = task.remote(shared, index, args.text_column, wanted)
                    for number, part in zip(touched, picked):
                        texts[number].append(part)
            task = ray.remote(**quiet)(documents.compare_texts)
            return enumerate(
                results([task.remote(args.near_threshold, args.near_ngram, *parts) for parts in texts], "Compare")
            )

        num_cpus = int(ray.cluster_resources()["CPU"])
        reasons = find_repetitions(
            hashes, compare, **finding, batch_runs=lambda runs: max(BATCH_RUNS, runs // (4 * num_cpus))
        )

        # A file without rows would keep `datasets` from loading those after it
        of_file = [reasons[starts[index] : starts[index + 1]] for index in every]
        left = [index for index in every if (of_file[index] < 0).any()]
        unfinished = f"{output}/.unfinished"  # hidden from `load_dataset`
        paths = {i: f"{unfinished}/train-{n:05d}-of-{len(left):05d}.parquet" for n, i in enumerate(left)}
        filesystem.makedirs(unfinished)
        task = ray.remote(**quiet)(documents.write_kept)
        characters = results(
            [task.remote(shared, i, args.text_column, of_file[i], filesystem, paths.get(i)) for i in every], "Write"
        )
    finally:
        if started:
            ray.shutdown()
    for partial in filesystem.glob(f"{unfinished}/.*.partial"):  # of a worker that died
        filesystem.rm(partial)
    filesystem.mv(unfinished, f"{output}/data", recursive=True)

    # What was dropped, and why
    numbers = {"kept": -1} | {reason: code for code, reason in enumerate(DEDUPLICATE) if (reasons == code).any()}
    rows = {"input": len(reasons)} | {name: int((reasons == code).sum()) for name, code in numbers.items()}
    lengths = {"input": sum(sum(found.values()) for found in characters)}
    lengths |= {name: sum(found.get(code, 0) for found in characters) for name, code in numbers.items()}
    counts = {"all": {"rows": rows, "characters": lengths}}
    settings = {name: getattr(args, name) for name in ("dataset_name", "dataset_split", "text_column")}
    settings |= {"deduplicate": args.deduplicate, "near_threshold": args.near_threshold}
    settings |= {"near_ngram": args.near_ngram, "files": files.describe()}
    payload = {"settings": settings, "count_by": None, "repeated": {}, "counts": counts}
    with TemporaryDirectory() as folder:
        save_json(f"{folder}/report", payload, kind="deduplication", version=1)
        filesystem.put_file(f"{folder}/report", f"{output}/.unfinished.json")
    filesystem.mv(f"{output}/.unfinished.json", f"{output}/deduplication.json")
    print(f"{table(counts)}\nSaved to {args.output_dir}.")


def results(tasks, what):
    """What tasks return, in their order; a bar meanwhile. What our own code says is wrong is raised as it is."""
    import ray
    from tqdm import tqdm

    waiting = tasks
    try:
        with tqdm(total=len(tasks), desc=what, unit=" tasks", delay=1.0) as bar:
            while waiting:
                done, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=1.0)
                ray.get(done)
                bar.update(len(done))
        return ray.get(tasks)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, (KeyError, OSError, ValueError)):
            raise error.cause from error
        raise


def make_parser():
    from trl import TrlParser

    return TrlParser(RayDeduplicateArguments, description=__doc__.strip().splitlines()[0], allow_abbrev=False)


if __name__ == "__main__":
    from command_line import answer_help, parse_options, run

    answer_help(RayDeduplicateArguments, __doc__)
    (args,) = parse_options(make_parser())
    run(lambda: main(args))
