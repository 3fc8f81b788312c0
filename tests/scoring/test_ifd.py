"""ifd: an answer's perplexity behind its prompt over that without, against both run by hand in float64."""

import copy
import math

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset
from datasets.fingerprint import Hasher

from hf_ppl_select import PerplexityScorer
from tests.scoring.test_rows import CHAT, CHAT_TEMPLATE

PAIRS = {"prompt": ["What is fever?", "", "Say nothing."], "completion": [" A high temperature.", "Yes.", ""]}
CHATS = {"messages": [CHAT, CHAT[:2], [], CHAT[:1]]}


@pytest.fixture
def scorer(tiny_model_dir):
    return PerplexityScorer(tiny_model_dir, ifd=True, chat_template=CHAT_TEMPLATE, device="cpu")


@pytest.fixture
def nll_of(tiny_model):
    def nll(ids, num_answer):
        """Of the last tokens, or of all that are marked, behind all before them."""
        ids = torch.tensor([ids])
        counted = num_answer if isinstance(num_answer, list) else list(range(ids.shape[1] - num_answer, ids.shape[1]))
        with torch.no_grad():
            log_probs = torch.log_softmax(tiny_model(ids).logits[0].double(), dim=-1)
        return -sum(log_probs[place - 1, ids[0, place]].item() for place in counted)

    return nll


def test_prompt_and_completion(scorer, tiny_tokenizer, nll_of):
    def encode(text):
        return tiny_tokenizer(text, add_special_tokens=False)["input_ids"]

    bos = tiny_tokenizer.bos_token_id
    prompt, answer = encode("What is fever?"), encode(" A high temperature.")
    assert prompt + answer == encode("What is fever? A high temperature.")
    behind, alone = nll_of([bos, *prompt, *answer], len(answer)), nll_of([bos, *answer], len(answer))
    found = scorer(PAIRS)
    assert scorer.columns == tuple(found) and scorer.num_passes == 2
    assert found["nll_sum"][0] == pytest.approx(behind, rel=1e-5)
    assert found["ifd"][0] == pytest.approx(math.exp((behind - alone) / len(answer)), rel=1e-4)
    assert abs(found["ifd"][0] - 1) > 0.01
    assert found["ifd"][1:] == [1.0, None]  # no prompt: nothing to be helped by; no answer: nothing


def test_of_several_turns_the_answers_stand_behind_each_other(scorer, tiny_tokenizer, nll_of):
    def encode(text):
        return tiny_tokenizer(text, add_special_tokens=False)["input_ids"]

    ids, counted = [], []
    for text, counts in (
        ("<user>What is fever?<assistant>", False),
        ("A high temperature.", True),
        ("<user>And cough?<assistant>", False),
        ("A reflex é.", True),
    ):
        counted += range(len(ids), len(ids) + len(encode(text))) if counts else []
        ids += encode(text)
    assert ids == encode("<user>What is fever?<assistant>A high temperature.<user>And cough?<assistant>A reflex é.")
    answers = [ids[place] for place in counted]
    behind = nll_of(ids, counted)  # nothing comes before messages
    alone = nll_of([tiny_tokenizer.bos_token_id, *answers], len(answers))
    found = scorer(CHATS)
    assert found["nll_sum"][0] == pytest.approx(behind, rel=1e-5)
    assert found["ifd"][0] == pytest.approx(math.exp((behind - alone) / len(answers)), rel=1e-4)
    assert found["ifd"][2:] == [None, None] and found["num_tokens"][2:].tolist() == [0, 0]


@pytest.mark.filterwarnings("ignore:A token crosses")
def test_a_token_that_crosses_the_border_counts_in_both(scorer, tiny_tokenizer, nll_of):
    ids = tiny_tokenizer("What is fever?", add_special_tokens=False)["input_ids"]
    before = tiny_tokenizer("What is fe", add_special_tokens=False)["input_ids"]
    shared = next(place for place, (a, b) in enumerate(zip(before, ids)) if a != b)
    bos = tiny_tokenizer.bos_token_id
    behind, alone = nll_of([bos, *ids], len(ids) - shared), nll_of([bos, *ids[shared:]], len(ids) - shared)
    found = scorer({"prompt": "What is fe", "completion": "ver?"})
    assert found["num_tokens"] == len(ids) - shared and tiny_tokenizer.decode(ids[shared:]) == " fever?"
    assert found["ifd"] == pytest.approx(math.exp((behind - alone) / (len(ids) - shared)), rel=1e-4)


def test_a_start_token_in_the_row_is_neither_doubled_nor_lost(scorer, tiny_tokenizer, nll_of):
    bos = tiny_tokenizer.bos_token_id
    answer = tiny_tokenizer("fever", add_special_tokens=False)["input_ids"]
    # Without a prompt it is the row's own start, which does not count; behind one it is a token as any other
    assert scorer({"prompt": "", "completion": "<|endoftext|>fever"})["ifd"] == 1.0
    prompt = tiny_tokenizer("What?", add_special_tokens=False)["input_ids"]
    found = scorer({"prompt": "What?", "completion": "<|endoftext|>fever"})
    number = len(answer) + 1
    behind, alone = nll_of([bos, *prompt, bos, *answer], number), nll_of([bos, bos, *answer], number)
    assert found["num_tokens"] == number
    assert found["ifd"] == pytest.approx(math.exp((behind - alone) / number), rel=1e-4)


def test_long_rows_count_the_same_tokens_in_both(tiny_model_dir):
    scorer = PerplexityScorer(tiny_model_dir, ifd=True, max_length=32, stride=8, device="cpu")
    row = {"prompt": "Question: what is the capital of France?" * 5, "completion": " Paris, letters and signs." * 9}
    text = PerplexityScorer(tiny_model_dir, max_length=32, stride=8, device="cpu")({"text": row["completion"]})
    found = scorer(row)
    assert found["num_tokens"] == text["num_tokens"] > 64
    expected = math.exp((found["nll_sum"] - text["nll_sum"]) / found["num_tokens"])
    assert found["ifd"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("rows", [PAIRS, CHATS], ids=["pairs", "messages"])
def test_maps_streams_tables_and_a_reference_beside_it(scorer, tiny_model_dir, rows):
    expected = scorer(rows)["ifd"]
    dataset = Dataset.from_dict(rows)
    both = copy.copy(scorer)
    both.reference = tiny_model_dir
    assert both.num_passes == 3
    for found in (
        dataset.map(scorer, batched=True, batch_size=2)["ifd"][:],
        dataset.map(scorer)["ifd"][:],
        [row["ifd"] for row in dataset.to_iterable_dataset().map(scorer, batched=True)],
        scorer(pa.table(rows))["ifd"].to_pylist(),
        dataset.map(both, batched=True)["ifd"][:],
        dataset.map(scorer, batched=True, num_proc=2)["ifd"][:],
    ):
        np.testing.assert_allclose(np.array(found, float), np.array(expected, float), rtol=1e-5)
    assert dataset.map(both, batched=True)["perplexity_ratio"][0] == 1.0


def test_it_is_in_the_fingerprint_and_texts_are_refused(scorer, tiny_model_dir):
    without = PerplexityScorer(tiny_model_dir, chat_template=CHAT_TEMPLATE, device="cpu")
    assert Hasher.hash(scorer) != Hasher.hash(without) and "ifd" not in without.settings()
    assert scorer.settings() == without.settings() | {"ifd": True}
    with pytest.raises(ValueError, match="column 'text' holds texts without: bring 'prompt' and 'completion'"):
        scorer({"text": ["fever"]})
    with pytest.raises(ValueError, match="ifd scores an answer's first token.*bos that is not 'none'"):
        PerplexityScorer(tiny_model_dir, ifd=True, bos="none")
