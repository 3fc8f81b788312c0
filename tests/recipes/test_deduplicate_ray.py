"""recipes/deduplicate_ray.py on a local Ray of two workers: what it keeps is what one machine keeps."""

import shutil
from dataclasses import replace

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, Value, load_dataset

import deduplicate_ray
from deduplicate_ray import RayDeduplicateArguments
from hf_ppl_select import deduplicate_documents
from hf_ppl_select.data.load import load_rows
from hf_ppl_select.data.saving import load_json
from hf_ppl_select.streaming import documents
from hf_ppl_select.streaming.parquet_files import ParquetFiles
from tests.deduplication.test_parts import dirty_texts

ray = pytest.importorskip("ray")
TEXTS = dirty_texts()
FEATURES = Features({"n": Value("int64"), "body": Value("string"), "kind": Value("string")})
SIZES = (120, 1, 0, 2, len(TEXTS) - 125, 2)  # of files


@pytest.fixture(scope="module")
def cluster():
    environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": environment})
    yield
    ray.shutdown()


def all_rows(texts=TEXTS):
    return {"n": [*range(len(texts))], "body": texts, "kind": [f"kind {row % 3}" for row in range(len(texts))]}


def write_documents(folder, texts=TEXTS, sizes=SIZES):
    folder.mkdir()
    rows, start = pa.table(all_rows(texts), FEATURES.arrow_schema), 0
    for number, size in enumerate(sizes):
        pq.write_table(rows.slice(start, size), folder / f"train-{number:05d}.parquet", row_group_size=50)
        start += size
    assert start == len(texts)
    return folder


@pytest.fixture
def arguments(tmp_path):
    return RayDeduplicateArguments(
        dataset_name=str(write_documents(tmp_path / "documents")),
        text_column="body",
        output_dir=str(tmp_path / "kept"),
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "threshold", "ngram"),
    [
        ("near", 0.5, 5),
        ("near", 0.8, 5),
        ("near", 1.0, 2),
        ("near", 0.6, 2),
        ("normalized", 0.8, 5),
        ("exact", 0.8, 5),
    ],
)
def test_it_keeps_what_one_machine_keeps(cluster, arguments, tmp_path, monkeypatch, capsys, how, threshold, ngram):
    monkeypatch.setattr(deduplicate_ray, "BATCH_RUNS", 500)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 10.0**6})  # so many batches
    options = {"near_threshold": threshold, "near_ngram": ngram}
    deduplicate_ray.main(replace(arguments, deduplicate=how, **options))
    source = Dataset.from_dict(all_rows(), FEATURES)  # `datasets` loads no folder with a file without rows in it
    found = deduplicate_documents(source, text_column="body", how=how, **options)
    kept = load_rows(arguments.output_dir)
    assert kept[:] == found.dataset[:] and kept.features == found.dataset.features
    assert load_dataset(arguments.output_dir, split="train")["n"][:] == kept["n"][:]
    num_files = len({next(k for k in range(len(SIZES)) if n < sum(SIZES[: k + 1])) for n in kept["n"]})
    names = {f"data/train-{number:05d}-of-{num_files:05d}.parquet" for number in range(num_files)}
    folder = tmp_path / "kept"
    assert {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} == {"deduplication.json", *names}
    assert not (folder / ".unfinished").exists()
    report = load_json(folder / "deduplication.json", kind="deduplication", version=1)
    assert report["counts"] == {"all": found.counts()}
    assert report["settings"]["near_threshold"] == threshold and len(report["settings"]["files"]) == len(SIZES)
    assert f"| all | {len(TEXTS)} | {len(kept)} |" in capsys.readouterr().out


@pytest.mark.slow
def test_a_file_of_which_nothing_is_left_and_one_that_fails_while_others_are_written(cluster, tmp_path, monkeypatch):
    texts = ["Fever and cough.", "Fever and cough.", "fever  and COUGH.", "Something else."]
    arguments = RayDeduplicateArguments(
        dataset_name=str(write_documents(tmp_path / "documents", texts, (1, 2, 1))),
        text_column="body",
        output_dir=str(tmp_path / "kept"),
    )
    real = documents.write_kept

    def failing(files, index, *others):
        if index == 2:
            raise OSError("the disk is gone")
        return real(files, index, *others)

    monkeypatch.setattr(documents, "write_kept", failing)
    with pytest.raises(OSError, match="the disk is gone"):
        deduplicate_ray.main(arguments)
    with pytest.raises(FileNotFoundError):
        load_rows(arguments.output_dir)  # nobody takes a part for the whole
    with pytest.raises(FileNotFoundError):
        load_dataset(arguments.output_dir)
    with pytest.raises(FileExistsError, match="kept is not empty; name a new folder, or empty it"):
        deduplicate_ray.main(arguments)  # and a killed run is not gone on with
    monkeypatch.setattr(documents, "write_kept", real)
    shutil.rmtree(tmp_path / "kept")
    deduplicate_ray.main(arguments)
    assert load_rows(arguments.output_dir)["n"][:] == [0, 3]
    names = sorted(path.name for path in tmp_path.glob("kept/data/*"))
    assert names == ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]


@pytest.mark.slow
def test_each_kind_of_task_loses_a_worker(cluster, arguments, tmp_path, monkeypatch):
    def dying(name):
        real, mark = getattr(documents, name), str(tmp_path / name)

        def work(*given):
            import os
            import signal

            from hf_ppl_select.streaming import documents

            if os.path.exists(mark) or given[-1] is None:
                return real(*given)
            open(mark, "w").close()
            if name != "write_kept":
                os.kill(os.getpid(), signal.SIGKILL)
            other = os.path.join(os.path.dirname(given[-1]), ".train.00000000-1-00000000.partial")
            open(other, "w").close()  # as if on another machine, whose processes nobody here can ask
            documents.gathered = lambda batches: os.kill(os.getpid(), signal.SIGKILL)  # in the middle of a file
            return real(*given)

        return work

    tasks = ("hash_file", "pick_texts", "compare_texts", "write_kept")
    for name in tasks:
        monkeypatch.setattr(documents, name, dying(name))
    deduplicate_ray.main(arguments)
    assert all((tmp_path / name).exists() for name in tasks)
    expected = deduplicate_documents(Dataset.from_dict(all_rows(), FEATURES), text_column="body").dataset
    assert load_rows(arguments.output_dir)[:] == expected[:]
    assert not [path for path in (tmp_path / "kept").rglob("*") if path.name.startswith(".")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (
            lambda path: pq.write_table(pa.table({"n": [1]}), path),
            KeyError,
            "00003.parquet has no column 'body', it has n",
        ),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), ValueError, "00003.parquet cannot be read as parquet"),
    ],
)
def test_a_later_file_that_is_wrong_is_one_error_before_anything_is_written(
    cluster, arguments, tmp_path, spoil, error, message
):
    spoil(tmp_path / "documents" / "train-00003.parquet")
    with pytest.raises(error, match=message):
        deduplicate_ray.main(arguments)
    assert not (tmp_path / "kept").exists()


@pytest.mark.slow
def test_no_rows(cluster, arguments, tmp_path):
    empty = write_documents(tmp_path / "empty", [], (0, 0))
    with pytest.raises(ValueError, match="empty has no rows"):
        deduplicate_ray.main(replace(arguments, dataset_name=str(empty)))


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"text_column": "text"}, KeyError, "has no column 'text', it has n, body, kind; name .* by text_column"),
        ({"dataset_name": "{tmp}/nothing"}, FileNotFoundError, "nothing does not exist"),
        ({"dataset_name": "{tmp}/no-parquet"}, FileNotFoundError, "has no .parquet file"),
        ({"output_dir": "{tmp}/full"}, FileExistsError, "full is not empty; name a new folder"),
        ({"deduplicate": "fuzzy"}, ValueError, "one of exact, normalized, near"),
        ({"near_threshold": 1.5}, ValueError, "near_threshold=1.5"),
        ({"near_ngram": 0}, ValueError, "near_ngram=0"),
    ],
)
def test_what_is_wrong_is_one_error_before_ray_starts(arguments, tmp_path, monkeypatch, changed, error, message):
    (tmp_path / "no-parquet").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    monkeypatch.setattr(ray, "init", lambda *args, **kwargs: pytest.fail("Ray is started"))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    changed = {
        name: value.format(tmp=tmp_path) if isinstance(value, str) else value for name, value in changed.items()
    }
    with pytest.raises(error, match=message):
        deduplicate_ray.main(replace(arguments, **changed))
    assert not (tmp_path / "kept").exists()


def test_a_file_that_has_changed_meanwhile_is_refused(arguments, tmp_path):
    files = ParquetFiles.find(arguments.dataset_name)
    with pytest.raises(ValueError, match="00000.parquet has changed meanwhile"):
        documents.write_kept(files, 0, "body", np.zeros(3, dtype=np.int8), files.filesystem, str(tmp_path / "x"))
    assert not (tmp_path / "x").exists()


def test_a_store_that_is_not_this_machines_disk(arguments):
    """As in a bucket: written there, then moved as a folder."""
    store = fsspec.filesystem("memory")
    files = ParquetFiles.find(arguments.dataset_name)
    reasons = np.where(np.arange(SIZES[0]) % 3 == 1, -1, 2).astype(np.int8)
    store.makedirs("/kept/.unfinished")
    try:
        path = "/kept/.unfinished/train-00000-of-00001.parquet"
        characters = documents.write_kept(files, 0, "body", reasons, store, path)
        store.mv("/kept/.unfinished", "/kept/data", recursive=True)
        assert store.find("/kept") == ["/kept/data/train-00000-of-00001.parquet"]
        with store.open("/kept/data/train-00000-of-00001.parquet") as file:
            assert pq.read_table(file)["n"].to_pylist() == list(range(1, SIZES[0], 3))
    finally:
        store.rm("/kept", recursive=True)
    lengths = [len(text or "") for text in TEXTS[: SIZES[0]]]
    assert characters == {-1: sum(lengths[1::3]), 2: sum(lengths) - sum(lengths[1::3])}
