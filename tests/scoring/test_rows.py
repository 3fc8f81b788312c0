"""Rows -> token ids and counted positions, and their windows."""

import copy

import numpy as np
import pytest

from hf_ppl_select.scoring.rows import TokenizedRow, columns_to_score, is_one_row, tokenize_rows, windows

CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] }}{% endgeneration %}{% else %}{{ message['content'] }}{% endif %}"
    "{% endfor %}"
)
CHAT = [
    {"role": "user", "content": "What is fever?"},
    {"role": "assistant", "content": "A high temperature."},
    {"role": "user", "content": "And cough?"},
    {"role": "assistant", "content": "A reflex é."},
]


def counted_text(row, tokenizer):
    return tokenizer.decode([row.ids[position] for position in row.counted])


def test_text_rows_count_every_token_and_byte(tiny_tokenizer):
    texts = ["The patient has fever.", "", None, "👩‍⚕️ é", "x"]
    rows = tokenize_rows({"text": texts}, tiny_tokenizer)
    assert [list(row.counted) for row in rows] == [list(range(len(row.ids))) for row in rows]
    assert [tiny_tokenizer.decode(row.ids) for row in rows] == [text or "" for text in texts]
    assert [row.num_bytes for row in rows] == [len((text or "").encode()) for text in texts]
    assert tokenize_rows({"text": []}, tiny_tokenizer) == []


def test_a_tokenizer_that_adds_bos_itself_changes_nothing(tiny_tokenizer):
    from tokenizers.processors import TemplateProcessing

    adding = copy.deepcopy(tiny_tokenizer)
    adding.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", adding.bos_token_id)]
    )
    assert adding("fever")["input_ids"][0] == adding.bos_token_id
    (row,) = tokenize_rows({"text": ["fever"]}, adding)
    assert row == tokenize_rows({"text": ["fever"]}, tiny_tokenizer)[0]
    ((ids, counted),) = windows(row, bos=adding.bos_token_id, max_length=64, stride=32)
    assert ids == [adding.bos_token_id, *row.ids] and list(counted) == list(range(1, len(ids)))


def test_a_bos_that_is_there_already_is_neither_doubled_nor_counted(tiny_tokenizer):
    bos = tiny_tokenizer.bos_token_id
    (row,) = tokenize_rows({"text": ["<|endoftext|>fever"]}, tiny_tokenizer)
    assert row.ids[0] == bos
    ((ids, counted),) = windows(row, bos=bos, max_length=64, stride=32)
    assert ids == row.ids and list(counted) == list(range(1, len(ids)))


def test_of_prompt_and_completion_only_the_completion_counts(tiny_tokenizer):
    batch = {"prompt": ["What is fever?", None, "Nothing:"], "completion": [" A high temperature.", "Yes.", ""]}
    rows = tokenize_rows(batch, tiny_tokenizer)
    assert [counted_text(row, tiny_tokenizer) for row in rows] == [" A high temperature.", "Yes.", ""]
    assert [row.num_bytes for row in rows] == [20, 4, 0]
    assert tiny_tokenizer.decode(rows[0].ids) == "What is fever? A high temperature."


def test_of_messages_only_the_assistants_tokens_count(tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = CHAT_TEMPLATE
    for template, used in ((None, tokenizer), (CHAT_TEMPLATE, tiny_tokenizer)):
        rows = tokenize_rows({"messages": [CHAT, [], None, CHAT[:1]]}, used, chat_template=template)
        assert counted_text(rows[0], used) == "A high temperature.A reflex é."
        assert tiny_tokenizer.decode(rows[0].ids).startswith("<user>What is fever?<assistant>A high")
        assert rows[0].num_bytes == len("A high temperature.A reflex é.".encode())
        assert [len(row.counted) for row in rows[1:]] == [0, 0, 0]


def test_a_template_that_marks_no_answer_is_an_error_that_names_it(tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.name_or_path = "me/chatty"
    unmarked = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    with pytest.raises(ValueError, match=r"Row 1 .*'me/chatty' marks no assistant token.*generation.*chat_template="):
        tokenize_rows({"messages": [CHAT[:1], CHAT]}, tokenizer, chat_template=unmarked)
    with pytest.raises(ValueError, match="chat_template"):
        tokenize_rows({"messages": [CHAT]}, tiny_tokenizer)  # no template at all


def test_wrong_columns_and_values_are_named():
    assert columns_to_score({"text": 0, "messages": 0}, "text") == ("text",)
    assert columns_to_score({"prompt": 0, "completion": 0, "messages": 0}, "text") == ("messages",)
    assert columns_to_score({"text": 0, "tools": 0}, "text") == ("text",)
    assert columns_to_score({"tools": 0, "completion": 0, "prompt": 0}, "text") == ("prompt", "completion", "tools")
    with pytest.raises(KeyError, match=r"No column 'text'.*\['answer', 'prompt'\].*text_column"):
        columns_to_score({"prompt": 0, "answer": 0}, "text")
    with pytest.raises(TypeError, match="Row 1 of the batch: column 'text' holds int, not a string"):
        tokenize_rows({"text": ["a", 5]}, None)
    with pytest.raises(TypeError, match="Row 0 of the batch: column 'completion' holds list"):
        tokenize_rows({"prompt": [""], "completion": [["b"]]}, lambda texts, **_: {"input_ids": [[] for _ in texts]})
    with pytest.raises(TypeError, match="Row 0 of the batch: 'messages' must be a list of dicts"):
        tokenize_rows({"messages": [["hello"]]}, None)
    with pytest.raises(TypeError, match="Row 1 of the batch: 'messages' must be a list of dicts"):
        tokenize_rows({"messages": [None, 5]}, None)
    with pytest.raises(TypeError, match="Row 0 of the batch: column 'text' holds list, not a string: join its parts"):
        tokenize_rows({"text": [["a", "b"]]}, None)
    chat = {"messages": [None, CHAT]}
    with pytest.raises(ValueError, match="Row 1 of the batch: column 'tools' is not JSON"):
        tokenize_rows(chat | {"tools": [None, "{dose"]}, None)
    with pytest.raises(TypeError, match="Row 0 of the batch: column 'chat_template_kwargs' holds str, not a dict"):
        tokenize_rows(chat | {"chat_template_kwargs": ["{}", None]}, None)
    for prompt in ("What?", None, []):
        with pytest.raises(
            TypeError, match="Row 0 of the batch: 'prompt' and 'completion' must both be texts, or both"
        ):
            tokenize_rows({"prompt": [prompt, CHAT[:1]], "completion": [CHAT[1:2], CHAT[1:2]]}, None)


def test_a_row_that_the_chat_template_refuses_is_named(tiny_tokenizer):
    template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}{% generation %}{{ m['content'] + '' }}{% endgeneration %}{% endfor %}"
    )
    system = [{"role": "system", "content": "Be short."}, *CHAT]
    refusal = (
        r"Row 2 .* refuses messages of the roles system, user.*\(System role not supported\); .*leave out the row"
    )
    with pytest.raises(ValueError, match=refusal):
        tokenize_rows({"messages": [CHAT, None, system]}, tiny_tokenizer, chat_template=template)
    call = [CHAT[0], {"role": "assistant", "tool_calls": [{"name": "dose"}]}]
    with pytest.raises(ValueError, match=r"Row 0 .* refuses messages of the roles user, assistant"):
        tokenize_rows({"messages": [call]}, tiny_tokenizer, chat_template=template)
    pair = {"prompt": [CHAT[:1], system], "completion": [CHAT[1:2], CHAT[1:2]]}
    with pytest.raises(ValueError, match=refusal.replace("Row 2", "Row 1")):
        tokenize_rows(pair, tiny_tokenizer, chat_template=template)


def test_special_tokens_in_texts_can_be_split(tiny_tokenizer):
    text, end = "Write <|endoftext|> at the end.", tiny_tokenizer.eos_token_id
    batches = {"text": [text]}, {"prompt": [text], "completion": [f" {text}"]}
    for batch in batches:
        (row,) = tokenize_rows(batch, tiny_tokenizer)
        (split,) = tokenize_rows(batch, tiny_tokenizer, split_special_tokens=True)
        assert end in row.ids and end not in split.ids
        assert tiny_tokenizer.decode(split.ids) == "".join(values[0] for values in batch.values())
        assert row.num_bytes == split.num_bytes
        assert (row,) == (*tokenize_rows(batch, tiny_tokenizer),)  # the tokenizer is as it was
    with pytest.raises(ValueError, match="split_special_tokens is for texts"):
        tokenize_rows({"messages": [CHAT]}, tiny_tokenizer, chat_template=CHAT_TEMPLATE, split_special_tokens=True)


def test_a_row_and_a_batch_are_told_apart(tiny_tokenizer):
    chat, other = CHAT[:2], CHAT[2:]
    rows = [
        {"text": "a"},
        {"text": None},
        {"text": ["a", "b"], "id": 3},
        {"text": ["a", "b"], "tags": ["x"]},
        {"messages": chat},
        {"messages": [], "id": 3},
        {"prompt": chat[:1], "completion": chat[1:], "tools": None},
        {"prompt": "a", "completion": "b"},
    ]
    batches = [
        {"text": ["a", "b"]},
        {"text": ["a", "b"], "id": [3, 4]},
        {"text": [["a", "b"]]},
        {"text": []},
        {"messages": [chat, other]},
        {"messages": []},
        {"messages": [], "id": []},
        {"messages": [[]]},
        {"messages": [None, chat]},
        {"prompt": [chat[:1]], "completion": [chat[1:]], "tools": [None]},
    ]
    for expected, examples in ((True, rows), (False, batches)):
        for example in examples:
            assert is_one_row(example, columns_to_score(example, "text")) is expected, example


@pytest.mark.parametrize("bos", [None, 99])
@pytest.mark.parametrize(("max_length", "stride"), [(2, 1), (8, 1), (8, 4), (8, 7), (50, 25), (51, 3), (1000, 1)])
@pytest.mark.parametrize("length", [0, 1, 2, 7, 8, 9, 50, 51])
def test_windows_score_every_token_exactly_once(length, max_length, stride, bos):
    ids = list(range(100, 100 + length))
    scored = []
    for window, positions in windows(
        TokenizedRow(ids, range(length), 0), bos=bos, max_length=max_length, stride=stride
    ):
        assert 2 <= len(window) <= max_length
        assert min(positions) >= 1
        if window[0] not in (bos, 100):  # a later window: enough context before what it scores
            assert min(positions) == stride
        scored += [window[position] for position in positions]
    assert scored == (ids if bos is not None else ids[1:])


def test_windows_of_scattered_positions_skip_what_nothing_counts_in():
    row = TokenizedRow(list(range(40)), [0, 3, 30, 39], 0)
    found = list(windows(row, bos=99, max_length=8, stride=4))
    assert [window[position] for window, positions in found for position in positions] == [0, 3, 30, 39]
    assert len(found) < 9
    assert list(windows(TokenizedRow([5, 6], [], 0), bos=99, max_length=8, stride=4)) == []
    assert np.array_equal(list(windows(TokenizedRow([5, 6], [1], 0), bos=None, max_length=8, stride=4))[0][1], [1])
