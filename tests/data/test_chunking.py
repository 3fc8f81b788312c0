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
    documents = [text for text in DOCUMENTS if text]
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
    apart = chunk_documents(batch, tiny_tokenizer, 1000, text_column="answer", separator=None, keep_columns=["source"])
    assert apart == {"text": ["aa bb", "cc dd", "ee ff"], "source": ["NIH", None, "NIH"]}


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
        ({"answer": ["a"]}, {}, KeyError, r"No column 'text' to chunk; the columns are \['answer'\]"),
        ({"text": ["a"]}, {"keep_columns": ["source"]}, KeyError, "No column 'source'"),
        ({"text": "a"}, {}, TypeError, "batched=True"),
        ({"text": ["a", 5]}, {}, TypeError, "Row 1 of the batch: column 'text' holds int"),
    ],
)
def test_errors(tiny_tokenizer, batch, options, error, message):
    with pytest.raises(error, match=message):
        chunk_documents(batch, tiny_tokenizer, **options)
