"""chunk_documents: nothing lost, tokens per chunk, characters of several tokens, kept columns."""

import pytest
from datasets import Dataset

from hf_ppl_select import chunk_documents

DOCUMENTS = [
    "The patient presented with fever, cough and shortness of breath.\n",
    "",
    "  leading and trailing spaces  ",
    None,
    "Hypertension is treated with diuretics, ACE inhibitors or calcium channel blockers. " * 9,
    "👩‍⚕️🧑🏽‍🔬 émigré ¿qué? 漢字 " * 6,
    "x",
]


def num_tokens(tokenizer, text):
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("separator", ["\n\n", "", "<|endoftext|>"])
@pytest.mark.parametrize("max_length", [1, 7, 32, 10_000])
def test_joined_again_chunks_give_the_documents_back(tiny_tokenizer, max_length, separator):
    chunks = chunk_documents({"text": DOCUMENTS}, tiny_tokenizer, max_length, separator=separator)
    assert list(chunks) == ["text"] and all(chunks["text"])
    assert "".join(chunks["text"]) == separator.join(filter(None, DOCUMENTS))
    assert len(chunks["text"]) == 1 or max_length < 10_000


def test_chunks_hold_max_length_tokens(tiny_tokenizer):
    text = DOCUMENTS[0] * 40
    ids = tiny_tokenizer(text)["input_ids"]
    chunks = chunk_documents({"text": [text]}, tiny_tokenizer, 32)["text"]
    assert len(chunks) == -(-len(ids) // 32)
    assert [tiny_tokenizer.decode(ids[i : i + 32]) for i in range(0, len(ids), 32)] == chunks
    assert all(abs(num_tokens(tiny_tokenizer, chunk) - 32) <= 3 for chunk in chunks[:-1])  # a cut word re-tokenizes


@pytest.mark.parametrize("max_length", range(1, 12))
def test_a_character_is_never_split(tiny_tokenizer, max_length):
    text = "a👩‍⚕️b漢字é" * 5
    assert num_tokens(tiny_tokenizer, "👩") > 2
    chunks = chunk_documents({"text": [text]}, tiny_tokenizer, max_length)["text"]
    assert "".join(chunks) == text
    assert not any("\ufffd" in chunk for chunk in chunks)
    longest_character = max(num_tokens(tiny_tokenizer, character) for character in set(text))
    assert all(num_tokens(tiny_tokenizer, chunk) <= max(max_length, longest_character) for chunk in chunks)


def test_documents_apart(tiny_tokenizer):
    documents = [text for text in DOCUMENTS if text and num_tokens(tiny_tokenizer, text) >= 4]
    assert len(documents) == 4  # but for the "x"
    chunks = chunk_documents({"text": DOCUMENTS}, tiny_tokenizer, 16, separator=None)["text"]
    alone = [chunk_documents({"text": [text]}, tiny_tokenizer, 16)["text"] for text in documents]
    assert chunks == [chunk for parts in alone for chunk in parts]
    assert ["".join(parts) for parts in alone] == documents


def test_kept_columns_keep_documents_of_different_values_apart(tiny_tokenizer):
    batch = {"answer": ["aa bb", "cc dd", "ee ff", None], "source": ["NIH", None, "NIH", "NIH"], "n": [1, 2, 1, 1]}
    chunks = chunk_documents(
        batch, tiny_tokenizer, 1000, text_column="answer", separator="|", keep_columns=["source", "n"]
    )
    assert chunks == {"text": ["aa bb|ee ff", "cc dd"], "source": ["NIH", None], "n": [1, 2]}
    apart = chunk_documents(
        batch, tiny_tokenizer, 1000, text_column="answer", separator=None, keep_columns=["source"], min_length=0
    )
    assert apart == {"text": ["aa bb", "cc dd", "ee ff"], "source": ["NIH", None, "NIH"]}


@pytest.mark.parametrize("separator", ["\n\n", None])
@pytest.mark.parametrize(("max_length", "min_length"), [(32, None), (32, 16), (20, 9), (8, 3), (7, 1), (2, 1), (1, 1)])
def test_no_chunk_is_shorter_than_the_minimum_or_longer_than_the_maximum(
    tiny_tokenizer, max_length, min_length, separator
):
    texts = [DOCUMENTS[4][:end] for end in range(3, 400, 13)] + ["漢字é👩‍⚕️ ab" * n for n in range(1, 9)]
    batch = {"text": texts}
    least = max_length // 4 if min_length is None else min_length
    short = [text for text in texts if separator is None and num_tokens(tiny_tokenizer, text) < least]
    assert short or separator or least < 8
    options = {"separator": separator, "min_length": min_length}
    chunks = chunk_documents(batch, tiny_tokenizer, max_length, **options)["text"]
    whole = [text for text in texts if text not in short]
    assert "".join(chunks) == (separator or "").join(whole)

    # What each chunk has of the tokens of its documents, told from where it lies in them
    together = [whole] if separator else [[text] for text in whole]
    remaining = iter(chunks)
    for documents in together:
        parts = [f"{text}{separator}" for text in documents[:-1]] + documents[-1:]
        ends, before = [], 0
        for part in parts:
            offsets = tiny_tokenizer(part, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
            ends += [before + end for _, end in offsets]
            before += len(part)
        done = num = 0
        lengths = []
        while done < before:
            done += len(next(remaining))
            lengths.append(sum(end <= done for end in ends) - num)
            num += lengths[-1]
        longest = max(num_tokens(tiny_tokenizer, character) for character in set("".join(parts)))
        assert max(lengths) <= max(max_length, longest)
        if max_length >= 2 * longest:
            assert min(lengths) >= min(least, num)
            assert all(length > max_length - longest for length in lengths[:-2])


def test_a_short_tail_and_the_chunk_before_it_become_halves(tiny_tokenizer):
    ids = tiny_tokenizer(DOCUMENTS[4], add_special_tokens=False)["input_ids"][: 3 * 32 + 5]
    text = tiny_tokenizer.decode(ids)
    chunks = chunk_documents({"text": [text]}, tiny_tokenizer, 32)["text"]
    cuts = [0, 32, 64, 64 + 18, 101]
    assert chunks == [tiny_tokenizer.decode(ids[i:j]) for i, j in zip(cuts, cuts[1:])]
    for kept in (0, 5):  # a tail of 5 tokens is long enough
        chunks = chunk_documents({"text": [text]}, tiny_tokenizer, 32, min_length=kept)["text"]
        assert chunks == [tiny_tokenizer.decode(ids[i : i + 32]) for i in range(0, 101, 32)]


def test_documents_left_out_are_marked_and_add_up_to_the_input(tiny_tokenizer):
    batch = {"text": DOCUMENTS, "n": list(range(len(DOCUMENTS)))}
    options = {"separator": None, "keep_columns": ["n"], "min_length": 10}
    marked = chunk_documents(batch, tiny_tokenizer, 20, mark_left_out=True, **options)
    short = [i for i, text in enumerate(DOCUMENTS) if text and num_tokens(tiny_tokenizer, text) < 10]
    assert [n for n, out in zip(marked["n"], marked["left_out"]) if out] == short and len(short) == 1
    assert "".join(marked["text"]) == "".join(filter(None, DOCUMENTS))
    chunks = chunk_documents(batch, tiny_tokenizer, 20, **options)
    assert chunks["text"] == [text for text, out in zip(marked["text"], marked["left_out"]) if not out]
    with pytest.raises(ValueError, match="keep_columns has 'left_out'"):
        chunk_documents({"text": [], "left_out": []}, tiny_tokenizer, keep_columns=["left_out"], mark_left_out=True)


def test_joined_documents_are_never_left_out(tiny_tokenizer):
    assert chunk_documents({"text": ["x"]}, tiny_tokenizer, 2048)["text"] == ["x"]
    assert chunk_documents({"text": ["x"]}, tiny_tokenizer, 2048, separator=None)["text"] == []


def test_it_is_a_function_for_map(tiny_tokenizer):
    documents = Dataset.from_dict({"text": DOCUMENTS, "id": list(range(len(DOCUMENTS)))})
    options = {"batched": True, "remove_columns": documents.column_names}
    chunks = documents.map(chunk_documents, fn_kwargs={"tokenizer": tiny_tokenizer, "max_length": 16}, **options)
    assert chunks.column_names == ["text"]
    assert "".join(chunks["text"]) == "\n\n".join(filter(None, DOCUMENTS))
    empty = documents.select([1, 3]).map(chunk_documents, fn_kwargs={"tokenizer": tiny_tokenizer}, **options)
    assert len(empty) == 0


def test_a_tokenizer_that_adds_special_tokens_changes_nothing(tiny_tokenizer):
    import copy

    from tokenizers.processors import TemplateProcessing

    adding = copy.deepcopy(tiny_tokenizer)
    adding.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", adding.bos_token_id)]
    )
    batch = {"text": DOCUMENTS}
    assert chunk_documents(batch, adding, 16) == chunk_documents(batch, tiny_tokenizer, 16)


@pytest.mark.parametrize(
    ("batch", "options", "error", "message"),
    [
        ({"text": ["a"]}, {"max_length": 0}, ValueError, "max_length must be at least 1, not 0"),
        ({"text": ["a"]}, {"min_length": -1}, ValueError, "min_length must be from 0 to half of the 2048 tokens"),
        ({"text": ["a"]}, {"max_length": 9, "min_length": 5}, ValueError, "half of the 9 tokens of a chunk, not 5"),
        ({"answer": ["a"]}, {}, KeyError, r"No column 'text' to chunk; the columns are \['answer'\]"),
        ({"text": ["a"]}, {"keep_columns": ["source"]}, KeyError, "No column 'source'"),
        ({"text": "a"}, {}, TypeError, "batched=True"),
        ({"text": ["a", 5]}, {}, TypeError, "Row 1 of the batch: column 'text' holds int"),
    ],
)
def test_errors(tiny_tokenizer, batch, options, error, message):
    with pytest.raises(error, match=message):
        chunk_documents(batch, tiny_tokenizer, **options)
