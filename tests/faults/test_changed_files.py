"""Files that were changed since we wrote them: bits flipped, ends cut off.

Each reader gives back what was written, or a ValueError that names the file. It never gives something else.
"""

import json
import random
import warnings

import pyarrow.parquet as pq
import pytest
from faults.kinds import KINDS

from hf_ppl_select.law.points import append_law_points

FLIPS, CUTS = 150, 40


@pytest.fixture(params=KINDS)
def kind(request, tmp_path):
    """A good file, its reader and what it holds."""
    write, read = KINDS[request.param]
    path = tmp_path / request.param
    write(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what we write now has a checksum
        return path, read, read(path)


def refused(read, path, good):
    """Whether a changed file is refused with our error; a failure if it loads as something else."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = read(path)
        except ValueError as error:
            message = str(error)
            assert path.name in message and len(message) < 1000 and "\n" not in message.strip(), message
            return True
    assert found == good, "a changed file loads as another value"
    return False


def test_flipped_bits_are_never_another_value(kind):
    path, read, good = kind
    content, rng, seen = path.read_bytes(), random.Random(path.name), 0
    for _ in range(FLIPS):
        changed = bytearray(content)
        changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        seen += refused(read, path, good)
    assert seen > 0.5 * FLIPS  # of the others the change says nothing, as of 1e5 and 1E5, or in a parquet file's index


def test_a_file_that_was_cut_off_is_refused(kind):
    path, read, good = kind
    content, rng = path.read_bytes(), random.Random(path.name)
    cuts = [0, 1, len(content) // 2, len(content) - 2, *(rng.randrange(len(content) - 1) for _ in range(CUTS))]
    lines = [i + 1 for i, byte in enumerate(content[:-1]) if byte == ord("\n")][:50]
    for cut in (*cuts, *lines):
        path.write_bytes(content[:cut])
        assert refused(read, path, good), f"{cut} of {len(content)} bytes load"


@pytest.mark.parametrize("name", [name for name in KINDS if name.endswith((".json", ".jsonl"))])
@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "{\"a\":" * 5_000, "[" * 15 + "]" * 15, "1" * 5_000, "-", '"\\ud800"', "{}", "null", "\0",
     "\ufeff{}",
     '{"kind": 1, "kind": 2}', "NaN", '{"kind": "hf_ppl_select/scaling_law", "schema_version": 1' + "0" * 500 + "}"],
    ids=range(13),
)  # fmt: skip
def test_texts_that_are_no_document(name, text, tmp_path):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=name), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        KINDS[name][1](path)


@pytest.mark.parametrize("name", [name for name in KINDS if name.endswith(".json")])
def test_files_without_a_checksum_load_with_a_note(name, tmp_path):
    write, read = KINDS[name]
    path = tmp_path / name
    write(path)
    good, document = read(path), json.loads(path.read_text())
    del document["checksum"]
    path.write_text(json.dumps(document))
    with pytest.warns(UserWarning, match=f"{name} has no checksum"):
        assert read(path) == good


def test_a_checksum_whose_own_name_was_damaged_is_no_file_of_earlier_versions(kind):
    path, read, _ = kind
    if path.suffix == ".parquet":  # which holds its header twice, once in base64
        table = pq.read_table(path)
        header = {name: value.replace(b"checksum", b"checkrem") for name, value in table.schema.metadata.items()}
        pq.write_table(table.replace_schema_metadata(header), path)
    else:
        path.write_bytes(path.read_bytes().replace(b"checksum", b"checkrem"))
    assert b"checkrem" in path.read_bytes()
    with pytest.raises(ValueError, match=path.name), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read(path)


def test_points_of_a_law_are_never_a_file_that_is_opened(tmp_path):
    write, read = KINDS["law.json"]
    elsewhere, path = tmp_path / "points.jsonl", tmp_path / "law.json"
    KINDS["points.jsonl"][0](elsewhere)
    write(path)
    document = json.loads(path.read_text())
    del document["checksum"]
    path.write_text(json.dumps(document | {"points": str(elsewhere)}))
    with pytest.raises(ValueError, match="law.json has points .*; it must be a list"):
        read(path)


def test_whole_tables_of_points_may_stand_one_after_another(tmp_path):
    write, read = KINDS["points.jsonl"]
    path = tmp_path / "points.jsonl"
    write(path)
    text = path.read_text()
    path.write_text(text + text.replace("mu-", "again-"))
    with pytest.raises(ValueError, match="row 15 .* is not what was written"):
        read(path)
    rows = [json.loads(line) for line in text.splitlines()]
    append_law_points(tmp_path / "more.jsonl", [row | {"run": f"again {row['run']}"} for row in rows[:4]])
    path.write_text(text + (tmp_path / "more.jsonl").read_text())
    assert len(read(path)) == 19
