"""recipes/select_ray.py on a local Ray: nobody takes a part for the whole; what is wrong is told before it starts."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

import select_ray
from hf_ppl_select import PerplexitySelector
from hf_ppl_select.data.load import load_rows

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster():
    environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": environment})
    yield
    ray.shutdown()


@pytest.fixture
def arguments(tmp_path):
    """Of three files, all rows of the second are kept, and no others."""
    (tmp_path / "scored").mkdir()
    for part, perplexity in enumerate((500.0, 20.0, 500.0)):
        rows = {"text": [f"{part}-{row}" for row in range(20)], "perplexity": np.full(20, perplexity)}
        rows = pa.table(rows | {"num_tokens": [9] * 20})
        pq.write_table(rows, tmp_path / "scored" / f"train-{part:05d}-of-00003.parquet")
    PerplexitySelector((30.0, 0.0, -9.0), 20.0, 6.0).save(tmp_path / "selector.json")
    return select_ray.RayArguments(
        dataset_name=str(tmp_path / "scored"),
        selector=str(tmp_path / "selector.json"),
        output_dir=str(tmp_path / "subset"),
    )


@pytest.mark.slow
def test_a_part_is_not_taken_for_the_whole(cluster, arguments, tmp_path, monkeypatch):
    write = ray.data.Dataset.write_parquet

    def write_and_fail(*args, **options):
        write(*args, **options)
        raise OSError("the disk is gone")

    monkeypatch.setattr(ray.data.Dataset, "write_parquet", write_and_fail)
    with pytest.raises(OSError, match="the disk is gone"):
        select_ray.main(arguments)
    assert list((tmp_path / "subset").rglob("*.parquet"))
    with pytest.raises(FileNotFoundError):
        load_rows(arguments.output_dir)
    with pytest.raises(FileNotFoundError):
        load_dataset(arguments.output_dir)
    with pytest.raises(FileExistsError, match="subset is not empty; name a new folder, or empty it"):
        select_ray.main(arguments)
    monkeypatch.setattr(ray.data.Dataset, "write_parquet", write)
    arguments = replace(arguments, output_dir=str(tmp_path / "new"))
    select_ray.main(arguments)
    expected = sorted(f"1-{row}" for row in range(20))
    assert sorted(load_rows(arguments.output_dir)["text"][:]) == expected
    assert sorted(load_dataset(arguments.output_dir, split="train")["text"][:]) == expected
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["data"]

    PerplexitySelector((-90.0, 0.0, 0.0), 20.0, 6.0).save(tmp_path / "selector.json")
    with pytest.raises(ValueError, match="the selector keeps no row of "):
        select_ray.main(replace(arguments, output_dir=str(tmp_path / "none")))


@pytest.mark.parametrize(
    ("lacks", "advice"),
    [
        ("text", "the selector draws by it; make one with a key_column"),
        ("perplexity", "score it with recipes/score.py first"),
        ("num_tokens", "name the one that the selector's budget counts in: --num_tokens_column"),
    ],
)
def test_a_missing_column_is_told_before_ray_starts(arguments, tmp_path, monkeypatch, lacks, advice):
    for path in tmp_path.glob("scored/*"):
        pq.write_table(pq.read_table(path).drop_columns(lacks), path)
    monkeypatch.setattr(ray, "init", lambda *args, **kwargs: pytest.fail("Ray is started"))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(KeyError, match=f"no column '{lacks}', it has .*; {advice}"):
        select_ray.main(arguments)
    assert not (tmp_path / "subset").exists()
