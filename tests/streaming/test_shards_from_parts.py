"""A shard made of the parquet files that Ray's workers wrote: types that hold what is in all of them, or no file."""

import pyarrow as pa
import pyarrow.parquet as pq

from hf_ppl_select.streaming.sharded_output import ShardedOutput


def parts(folder, *tables):
    folder.mkdir()
    for number, table in enumerate(tables):
        pq.write_table(table, folder / f"{number}.parquet")
    return folder


def test_columns_have_the_types_that_hold_what_is_in_all_parts(tmp_path):
    tables = (
        pa.table({"id": pa.array([1, None], pa.int32()), "note": pa.array([None, None], pa.null())}),
        pa.table({"id": pa.array([2**53 + 1], pa.int64()), "note": pa.array(["a"])}),
    )
    output = ShardedOutput.open(tmp_path / "out", 1, {})
    output.write_from(0, parts(tmp_path / "parts", *tables))
    output.publish()
    rows = pq.read_table(output.paths[0])
    assert rows.to_pydict() == {"id": [1, None, 2**53 + 1], "note": [None, None, "a"]}
    assert rows.schema.types == [pa.int64(), pa.string()]


def test_a_shard_of_no_parts_has_no_rows_and_is_left_out(tmp_path):
    output = ShardedOutput.open(tmp_path / "out", 2, {})
    output.write_from(0, parts(tmp_path / "none"))
    output.write_from(1, parts(tmp_path / "parts", pa.table({"id": [1]})))
    assert not output.missing
    output.publish()
    assert [path.name for path in output.paths] == ["train-00001-of-00002.parquet"]
