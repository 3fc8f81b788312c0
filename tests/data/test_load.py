import gzip
import json

import pytest
from datasets import Dataset, load_dataset

from hf_ppl_select.data.load import load_answers, load_rows, load_texts


def test_rows_from_each_kind_of_file(tmp_path):
    rows = Dataset.from_dict({"text": ["a", "b"]})
    rows.to_parquet(tmp_path / "rows.parquet")
    rows.to_csv(tmp_path / "rows.csv")
    rows.to_json(tmp_path / "rows.jsonl")
    (tmp_path / "rows.txt").write_text("a\nline\n\nb\n")
    rows.save_to_disk(tmp_path / "saved")
    for name in ("rows.parquet", "rows.csv", "rows.jsonl", "saved"):
        assert load_rows(str(tmp_path / name))["text"][:] == ["a", "b"]
    assert load_rows(str(tmp_path / "rows.jsonl"), split="train[1:]")["text"][:] == ["b"]
    texts, num_empty = load_texts(str(tmp_path / "rows.txt"), "body")  # the only column of a .txt file
    assert [text.strip() for text in texts["text"]] == ["a\nline", "b"] and num_empty == 0
    with pytest.raises(ValueError, match="no data"):
        load_rows(str(tmp_path / "rows.csv"), split="train[5:]")
    with pytest.raises(ValueError, match="has no split 'train\\[1:\\]'; it has train"):  # never the whole instead
        load_rows(str(tmp_path / "saved"), split="train[1:]")


def test_answers_keep_braces_and_drop_rows_without_one(tmp_path):
    rows = [
        {"prompt": "{x}?", "completion": "y"},
        {"prompt": None, "completion": "y"},
        {"prompt": "p", "completion": ""},
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    answers, num_empty = load_answers(str(file), prompt_template="Q: {prompt}\n")
    assert answers[:] == {"prompt": ["Q: {x}?\n"], "completion": ["y"]} and num_empty == 2


def test_conversations_need_an_assistant_and_lose_other_columns(tmp_path):
    ask, answer = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}
    rows = Dataset.from_dict({"messages": [[ask, answer], [ask]], "text": ["x", "y"]})
    rows.to_parquet(tmp_path / "chats.parquet")
    answers, num_empty = load_answers(str(tmp_path / "chats.parquet"))
    assert answers.column_names == ["messages"] and (len(answers), num_empty) == (1, 1)


def test_pairs_of_messages_keep_their_tools_and_take_no_template(tmp_path):
    ask, answer = [{"role": "user", "content": "Why?"}], [{"role": "assistant", "content": "So."}]
    rows = {"q": [ask, ask, None], "a": [answer, [], answer], "tools": ["[]"] * 3, "id": [1, 2, 3]}
    Dataset.from_dict(rows).to_parquet(tmp_path / "pairs.parquet")
    columns = {"prompt_column": "q", "completion_column": "a"}
    answers, num_empty = load_answers(str(tmp_path / "pairs.parquet"), **columns)
    assert answers[:] == {"prompt": [ask], "completion": [answer], "tools": ["[]"]} and num_empty == 2
    with pytest.raises(
        ValueError, match="prompt_template is for prompts of text; 'q' of .*pairs.parquet holds messages"
    ):
        load_answers(str(tmp_path / "pairs.parquet"), prompt_template="Q: {prompt}", **columns)


@pytest.mark.parametrize("number", [float("inf"), float("nan"), 0.5])
@pytest.mark.parametrize("where", ["messages", "prompt", "tools"])
def test_numbers_of_messages_and_tools_are_finite(number, where, tmp_path):
    def row(weight):
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 1.5}]
        other = [turns[0], turns[1] | {"weight": weight}]
        found = {"prompt": turns, "completion": turns} if where == "prompt" else {"messages": turns}
        return found | {where: [{"name": "f", "least": weight}] if where == "tools" else other}

    file = tmp_path / "answers.parquet"
    Dataset.from_list([row(1.5), row(number)]).to_parquet(file)
    if number == 0.5:
        assert load_answers(str(file))[1] == 0
        return
    with pytest.raises(ValueError, match=rf"column '{where}' of .*answers.parquet holds a number that is not finite"):
        load_answers(str(file))
    Dataset.from_parquet(str(file)).with_format("numpy").save_to_disk(str(tmp_path / "saved"))  # a format is, too
    with pytest.raises(ValueError, match=rf"column '{where}' of .*saved holds a number that is not finite"):
        load_answers(str(tmp_path / "saved"))


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
@pytest.mark.parametrize(
    "text",
    [
        '{"text": ' + '{"a": ' * 100_000 + "1" + "}" * 100_001,  # which ended the process: pyarrow recurses
        '{"text": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"text": ' + "[\n" * 500 + "]\n" * 500 + "}",
        '{"text": "[' + '"}\n{"text": ' + "[" * 200 + "]" * 200 + "}",
    ],
    ids=["mappings", "lists", "lines", "after a bracket in a text"],
)
def test_brackets_within_brackets_are_refused(text, suffix, tmp_path):
    path = tmp_path / f"rows{suffix}"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"rows{suffix} .*more than 100 deep"):
        load_rows(str(path))


@pytest.mark.parametrize(
    "text",
    [
        "null",
        'NaN\n[[1]]\n{"a": 1}',
        '[NaN, {"a": 1}]',
        'null\n{"a": 1}',
        '[null, {"a": 1}]',
        '[\n{"a": 1},\nnull\n]',
        '{"a": 1} null',
    ],
)
def test_null_in_place_of_a_row_is_refused(text, tmp_path):
    """The first of them ends the process: pyarrow follows a pointer to nowhere."""
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="rows.json has (null|NaN) in place of a row in line"):
        load_rows(str(path))


def test_null_elsewhere_is_a_value(tmp_path):
    for name, text in (("a.jsonl", '{"a": null, "b": [null]}\n{"a": 1, "b": [2]}'), ("b.json", '["null", null]')):
        (tmp_path / name).write_text(text)
        assert len(load_rows(str(tmp_path / name))) == 2


def test_what_is_not_utf8_is_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')
    with pytest.raises(ValueError, match="rows.jsonl is not UTF-8 in line 2"):
        load_rows(str(path))


def test_brackets_in_texts_are_text(tmp_path):
    rows = [{"text": "[" * 300 + '"' + "{" * 200 + "\\", "n": [[i]]} for i in range(3)]
    for name, written in (("a.jsonl", "\n".join(map(json.dumps, rows))), ("b.json", json.dumps(rows, indent=1))):
        (tmp_path / name).write_text(written)
        assert load_rows(str(tmp_path / name)).to_list() == rows


CARD = "---\nconfigs:\n- config_name: default\n  data_files: '{}'\n---\n# Theirs\n"
ROWS, CSV = '{"text": "a"}\n{"text": "b"}\n', "text,number\nNA,1\nnull,\n,NA\nb,0.5\n"


def write(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(folder)


@pytest.mark.parametrize(
    "beside", [{}, {"README.md": "# Theirs"}, {"README.md": CARD.format("*/*")}, {"about.json": "{}", "a.png": "-"}]
)
@pytest.mark.parametrize(
    "names", [("x/1.txt", "x/2.txt"), ("x/1.txt.gz", "x/2.txt"), ("x/train.txt", "x/train-2.txt")]
)
def test_a_folder_of_texts_has_the_rows_of_its_files(names, beside, tmp_path):
    texts = ["a\nline\n\nb\n", "c\n\n\nd\n e"]
    packed = [gzip.compress(text.encode()) if ".gz" in name else text for name, text in zip(names, texts)]
    expected = []
    for text in texts:
        (tmp_path / "one.txt").write_text(text)
        expected += load_rows(str(tmp_path / "one.txt"))["text"][:]
    found = load_rows(write(tmp_path / "folder", dict(zip(names, packed)) | beside))["text"][:]
    assert len(found) == 4 and sorted(found) == sorted(expected)


def test_a_card_may_say_how_to_read_a_folder(tmp_path):
    by_line = CARD.format("*.txt").replace("'\n", "'\n  sample_by: line\n")
    folder = write(tmp_path / "by line", {"a.txt": "a\nline\n\nb\n", "README.md": by_line})
    assert load_rows(folder)["text"][:] == ["a", "line", "", "b"]
    folder = write(tmp_path / "one of two", {"a.jsonl": ROWS, "b.csv": CSV, "README.md": CARD.format("*.csv")})
    assert load_rows(folder)["text"][:] == ["NA", "null", None, "b"]


@pytest.mark.parametrize(
    ("files", "kinds"),
    [
        ({"A.jsonl": ROWS, "B.csv": CSV}, r"csv \(B.csv\), json \(A.jsonl\)"),
        ({"A.jsonl": ROWS, "B.csv": CSV, "README.md": "---\nlicense: mit\n---\n"}, "csv .*, json"),
        (
            {"A.csv": CSV, "B.csv": CSV, "more/C.json": "[" + ROWS.replace("\n{", ",{") + "]"},
            r"csv .*, json \(C.json\)",
        ),
        ({"A.csv": CSV, "B.json": ROWS}, "csv .*, json"),
        ({"train.csv": CSV, "test.jsonl": ROWS}, "csv .*, json"),
        ({"A.txt": "a", "B.txt": "b", "C.jsonl.gz": gzip.compress(ROWS.encode())}, r"json \(C.jsonl.gz\), text"),
        # what is no data, but would be read as such, since there is more of it, or since .json goes first
        ({"A.csv": CSV, "LICENSE.txt": "l", "README.txt": "r"}, r"csv \(A.csv\), text \(LICENSE.txt\)"),
        ({"A.csv": CSV, "landscape.json": '{"a": {\n}}'}, r"csv .*, json \(landscape.json\)"),
    ],
)
def test_a_folder_of_several_kinds_is_refused(files, kinds, tmp_path):
    folder = write(tmp_path / "mixed", files)
    with pytest.raises(ValueError, match=f"mixed has data files of several kinds, .*: {kinds}.*Give one of") as error:
        load_rows(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "files",
    [
        {"A.jsonl": ROWS, "B.json": "[]", "LICENSE.txt": "l", "metadata.csv": CSV, "README.md": "# Theirs"},
        {"A.jsonl": ROWS, "dataset_info.json": "{}", "config.json": '{"a": {\n}}', "plot.png": "-"},
        {"A.jsonl": ROWS, ".b.csv": CSV, ".c/d.csv": CSV, "__pycache__/e.csv": CSV},
        {"train.jsonl": ROWS, "test.jsonl": ROWS, "labels.csv": CSV, "state of it.json": "{}"},
        {"data/train-00000-of-00001.jsonl": ROWS, "notes.csv": CSV},
    ],
)
def test_a_folder_of_one_kind_may_have_files_about_it(files, tmp_path):
    assert load_rows(write(tmp_path / "folder", files))["text"][:] == ["a", "b"]


def test_folders_that_we_or_datasets_write_may_have_any_file_beside(tmp_path):
    rows, beside = Dataset.from_dict({"text": ["a", "b"]}), {"a.csv": CSV, "b.txt": "b", "law.json": "{}"}
    rows.save_to_disk(tmp_path / "saved")
    write(tmp_path / "shards" / "data", {"manifest.json": "{}"})
    rows.to_parquet(tmp_path / "shards" / "data" / "train-00000-of-00001.parquet")
    for name in ("saved", "shards"):
        assert load_rows(write(tmp_path / name, beside))["text"][:] == ["a", "b"]


@pytest.mark.parametrize("name", ["rows.csv", "folder", "tabs"])
def test_words_for_what_is_missing_are_texts_of_csv(name, tmp_path):
    write(tmp_path, {"rows.csv": CSV, "folder/rows.csv": CSV, "tabs/rows.tsv": CSV.replace(",", "\t")})
    texts, num_empty = load_texts(str(tmp_path / name))
    assert texts["text"][:] == ["NA", "null", "b"] and num_empty == 1
    rows = load_rows(str(tmp_path / name))
    assert rows["number"][:] == [1, None, None, 0.5] and rows.features["number"].dtype == "float64"
    assert load_rows(str(tmp_path / name), split="train[2:3]").to_list() == [{"text": None, "number": None}]


def test_columns_of_csv_are_of_texts_or_of_numbers_as_a_whole(tmp_path):
    """Also where a word for what is missing stands beyond the rows that pandas reads at once, or in all of them."""
    words = ["N/A", "None", "nan", "", "x"]
    lines = ["text,whole,part,yes,none,empty"] + [f"t{i},{i},{i}.5,True,NA," for i in range(12_000)]
    lines += [f"{word},{word.replace('x', '7')},NA,null,None," for word in words]
    rows = load_rows(write(tmp_path, {"rows.csv": "\n".join(lines)}) + "/rows.csv")
    assert rows[12_000:]["text"] == ["N/A", "None", "nan", None, "x"]
    assert rows[12_000:]["whole"] == [None] * 4 + [7] and rows[12_000:]["part"] == rows[12_000:]["yes"] == [None] * 5
    assert [rows.features[column].dtype for column in ("whole", "part", "yes")] == ["int64", "float64", "bool"]
    assert rows[11_999:]["none"] == ["NA"] + ["None"] * 5 and rows[11_999:]["empty"] == [None] * 6


@pytest.mark.parametrize(
    "names",
    [
        ("train.parquet",),
        ("train.parquet", "test.parquet"),
        ("part-0.parquet", "part-1.parquet"),
        ("train-00000-of-00001.parquet", "more.parquet"),
        ("train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "my.test-00000-of-00001-0a3f.parquet"),
    ],
)
def test_parquet_files_in_data_have_the_splits_that_datasets_sees(names, tmp_path):
    for number, name in enumerate(names):
        (tmp_path / "folder" / "data").mkdir(parents=True, exist_ok=True)
        Dataset.from_dict({"n": [number]}).to_parquet(tmp_path / "folder" / "data" / name)
    expected = {split: rows["n"][:] for split, rows in load_dataset(str(tmp_path / "folder")).items()}
    assert {split: load_rows(str(tmp_path / "folder"), split=split)["n"][:] for split in expected} == expected
    with pytest.raises(ValueError, match="split"):
        load_rows(str(tmp_path / "folder"), split="part")


def test_a_configuration_of_a_local_folder_is_not_ignored(tmp_path):
    card = "---\nconfigs:\n- config_name: a\n  data_files: data/train-*\n- config_name: b\n  data_files: b/*\n---\n"
    folder = write(tmp_path / "folder", {"README.md": card, "b/.keep": "", "data/.keep": ""})
    Dataset.from_dict({"n": [0]}).to_parquet(tmp_path / "folder" / "data" / "train-00000-of-00001.parquet")
    Dataset.from_dict({"n": [1]}).to_parquet(tmp_path / "folder" / "b" / "rows.parquet")
    for config in ("a", "b"):
        assert load_rows(folder, config)["n"][:] == load_dataset(folder, config, split="train")["n"][:]
    with pytest.raises(ValueError, match="BuilderConfig 'c' not found"):
        load_rows(folder, "c")
