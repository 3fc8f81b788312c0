"""Prompt and completion, texts or messages: token for token what TRL's SFTTrainer trains on, as it prepares them."""

import json
import random
from importlib.metadata import version

import pytest
from datasets import Dataset
from packaging.version import Version
from transformers import LlamaConfig, LlamaForCausalLM
from trl import SFTConfig, SFTTrainer

from hf_ppl_select.scoring.rows import tokenize_rows, windows
from tests.scoring.families import SENTENCES
from tests.scoring.test_messages import ALL_FAMILIES, TOOL, tokenizer_and_twin

FIRST_BY_THIS_RULE = Version("1.15")  # of TRL; before it, what a token that crosses the border counts is otherwise
TEXT = "\n".join(SENTENCES[:4]) + "\n\n  The end. " + " ".join(SENTENCES[:4])
# Renders the prompt alone otherwise than before a completion (as Gemma's does), and what tools and variables there are
TEMPLATE = (
    "{% if tools %}Tools: {{ tools | tojson }}\n{% endif %}{% for m in messages %}<|im_start|>{{ m['role'] }}"
    "{{ ' in ' + language if language }}\n{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}"
    "<|im_end|>{% endgeneration %}{% else %}{{ m['content'] }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{{ '<think>' if think }}{% endif %}"
)


def prepared(rows, tokenizer, folder, **options):
    """(input_ids, labels) of each row, as SFTTrainer prepares it."""
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
        )
    )
    args = SFTConfig(
        str(folder), max_length=None, shuffle_dataset=False, use_cpu=True, report_to="none", bf16=False, **options
    )
    trainer = SFTTrainer(model, args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    return [(row["input_ids"], row["labels"]) for row in trainer.train_dataset]


def without_special(ids, labels, tokenizer):
    """Without what the tokenizer itself puts around a text."""
    text = tokenizer("a", add_special_tokens=False)["input_ids"]
    around = tokenizer("a")["input_ids"]
    before = next(i for i in range(len(around)) if around[i : i + len(text)] == text)
    end = len(ids) - (len(around) - before - len(text))
    return ids[before:end], labels[before:end]


def labels_of(row):
    counted = set(row.counted)
    return [token if place in counted else -100 for place, token in enumerate(row.ids)]


def pairs(num_pairs):
    """Two hundred borders: in words, before and after spaces, after newlines, and where they may fall."""
    rng = random.Random(0)
    letters = [i for i in range(1, len(TEXT)) if TEXT[i - 1].isalpha() and TEXT[i].isalpha()]
    kinds = [
        letters,
        [i for i in range(1, len(TEXT)) if TEXT[i] == " "],
        [i for i in range(1, len(TEXT)) if TEXT[i - 1] == " "],
        [i for i in range(1, len(TEXT)) if TEXT[i - 1] == "\n"],
        list(range(1, len(TEXT))),
    ]
    found = []
    for number in range(num_pairs):
        border = rng.choice(kinds[number % len(kinds)])
        found.append((TEXT[max(0, border - rng.randint(0, 40)) : border], TEXT[border : border + rng.randint(1, 40)]))
    return found


@pytest.mark.skipif(Version(version("trl")) < FIRST_BY_THIS_RULE, reason="TRL before 1.15 draws borders otherwise")
@pytest.mark.filterwarnings("ignore:A token crosses from a prompt")
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_completions_are_those_that_trl_trains_on(family, request, tmp_path):
    tokenizer, twin = tokenizer_and_twin(family, request)
    eos = tokenizer.eos_token
    # The trainer adds an EOS where there is none, which is no text of the row
    batch = [(prompt, text + eos if place % 2 else text) for place, (prompt, text) in enumerate(pairs(200))]
    batch += [("The capital of France is", " Paris."), ("", "Hello"), ("Hello ", "world"), ("é", "ü 😀")]
    columns = dict(zip(("prompt", "completion"), map(list, zip(*batch)), strict=True))
    rows = tokenize_rows(columns, tokenizer)
    expected = prepared([{"prompt": p, "completion": c} for p, c in batch], tokenizer, tmp_path)
    num_crossing = 0
    for (prompt, completion), row, (ids, labels) in zip(batch, rows, expected, strict=True):
        if tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id:
            for window, _ in windows(row, bos=tokenizer.bos_token_id, max_length=2048, stride=1):
                assert window == ids[: len(window)]  # a BOS that the tokenizer adds is the one that scoring adds
        ids, labels = without_special(ids, labels, tokenizer)
        if not completion.endswith(eos):
            assert ids.pop() == labels.pop() == tokenizer.eos_token_id
        assert (row.ids, labels_of(row)) == (ids, labels)

        whole = twin(prompt + completion, add_special_tokens=False, return_offsets_mapping=True)
        begin = min(len(prompt), whole["offset_mapping"][row.counted[0]][0]) if row.counted else len(prompt)
        assert row.num_bytes == (len((prompt + completion)[begin:].encode()) if row.counted else 0)
        num_crossing += begin < len(prompt)
    assert num_crossing > 10 or family in ("word_piece", "word_level")


@pytest.mark.filterwarnings("ignore:A token crosses from a prompt")
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_conversational_completions_with_tools_and_variables_are_those_that_trl_trains_on(family, request, tmp_path):
    tokenizer, _ = tokenizer_and_twin(family, request)
    tokenizer.chat_template = TEMPLATE
    user, answer = {"role": "user", "content": "What is fever?"}, {"role": "assistant", "content": "Hello world 😀"}
    system = {"role": "system", "content": "Be short. "}
    for name, more in {
        "plain": {},
        "tools": {"tools": [TOOL]},
        "json": {"tools": json.dumps([TOOL])},
        "variables": {"chat_template_kwargs": {"language": "日本語", "think": True}},
    }.items():
        if name == "tools" and Version(version("datasets")) < Version("5"):
            continue  # it gives a tool the fields of all others, which the template then shows the trainer
        if name == "variables" and Version(version("trl")) < FIRST_BY_THIS_RULE:
            continue
        rows = [
            {"prompt": [user], "completion": [answer]} | more,
            {"prompt": [system, user], "completion": [answer, user, answer]} | more,
            {"prompt": [user], "completion": [{"role": "assistant", "content": ""}]} | more,
        ]
        expected = prepared(rows, tokenizer, tmp_path)
        for given in (rows, Dataset.from_list(rows)):  # as Arrow gives them back, a struct has all fields
            found = tokenize_rows({column: [row[column] for row in given] for column in rows[0]}, tokenizer)
            assert [(row.ids, labels_of(row)) for row in found] == expected, name
        if name != "variables":
            assert found[2].num_bytes == len("<|im_end|>")  # the newline after a block is Jinja's

        chats = [{"messages": row["prompt"] + row["completion"]} | more for row in rows]
        expected = prepared(chats, tokenizer, tmp_path)
        found = tokenize_rows({column: [row[column] for row in chats] for column in chats[0]}, tokenizer)
        assert [row.ids for row in found] == [ids for ids, _ in expected], name


def test_a_crossing_token_warns_and_counts(tiny_tokenizer):
    batch = {"prompt": ["What is fe", "Hello"], "completion": ["ver?", " world"]}
    with pytest.warns(UserWarning, match="A token crosses from a prompt into its completion.*as in TRL's SFTTrainer"):
        crossing, clean = tokenize_rows(batch, tiny_tokenizer)
    assert tiny_tokenizer.decode([crossing.ids[place] for place in crossing.counted]) == " fever?"
    assert (crossing.num_bytes, clean.num_bytes) == (len(" fever?"), len(" world"))
