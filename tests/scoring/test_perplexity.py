"""PerplexityScorer on datasets: numbers, columns, rows of all kinds, the cache, other processes."""

import copy
import math
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset, disable_caching, enable_caching
from datasets.fingerprint import Hasher

from hf_ppl_select import PerplexityScorer, score_ppl
from hf_ppl_select.scoring import texts as text_likelihoods
from hf_ppl_select.scoring.perplexity import SCORE_COLUMNS, context_length, evaluate_perplexity
from tests.scoring.test_rows import CHAT, CHAT_TEMPLATE

ROOT = Path(__file__).resolve().parents[2]
TEXTS = [
    "The patient presented with fever, cough and shortness of breath.",
    "x",
    "👩‍⚕️ émigré — ¿qué? 漢字",
    "Hypertension is treated with diuretics. " * 12,
    "Numbers 0 1 2 3 4 5 6 7 8 9",
    "\n",
]


@pytest.fixture
def scorer(tiny_model_dir):
    return PerplexityScorer(tiny_model_dir, device="cpu")


def plain_nll(model, tokenizer, text, bos=True) -> tuple[float, int]:
    """Summed nll and number of tokens by the definition: one text at a time, float32, the model's own loss."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([[tokenizer.convert_tokens_to_ids("<|endoftext|>")] * bos + ids])
    with torch.no_grad():
        return model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1), ids.shape[1] - 1


def assert_equal_columns(found, expected, rtol=1e-6):
    for name in SCORE_COLUMNS:
        np.testing.assert_allclose(np.array(found[name], float), np.array(expected[name], float), rtol=rtol)


@pytest.mark.parametrize("bos", ["auto", "none"])
def test_numbers_equal_the_models_own_loss(tiny_model, tiny_tokenizer, tiny_model_dir, bos):
    scored = PerplexityScorer(tiny_model_dir, bos=bos, max_batch_tokens=100)({"text": TEXTS})
    for i, text in enumerate(TEXTS):
        nll, num_tokens = plain_nll(tiny_model, tiny_tokenizer, text, bos == "auto")
        assert scored["num_tokens"][i] == num_tokens
        first = tiny_tokenizer.decode(tiny_tokenizer(text)["input_ids"][:1]) if bos == "none" else ""
        assert scored["num_bytes"][i] == len(text.removeprefix(first).encode())
        if num_tokens:
            assert scored["nll_sum"][i] == pytest.approx(nll, rel=1e-5)
            assert scored["perplexity"][i] == pytest.approx(math.exp(nll / num_tokens), rel=1e-5)
        else:  # one token, and no BOS before it
            assert scored["perplexity"][i] is None and scored["nll_sum"][i] == 0


def test_long_text_is_scored_in_windows_of_full_context(tiny_model, tiny_tokenizer, tiny_model_dir):
    text = "Hypertension is treated with diuretics or calcium channel blockers. " * 30
    ids = [tiny_tokenizer.bos_token_id, *tiny_tokenizer(text)["input_ids"]]
    scored = PerplexityScorer(tiny_model_dir, max_length=64, stride=24)({"text": [TEXTS[0], text]})
    expected, scored_to, start = 0.0, 1, 0
    while scored_to < len(ids):
        window = torch.tensor([ids[start : start + 64]])
        with torch.no_grad():
            losses = torch.nn.functional.cross_entropy(
                tiny_model(window).logits[0, :-1], window[0, 1:], reduction="none"
            )
        expected += losses[scored_to - start - 1 :].sum().item()
        scored_to = start + window.shape[1]
        start = scored_to - 24
    assert len(ids) > 5 * 64 and scored["num_tokens"][1] == len(ids) - 1
    assert scored["nll_sum"][1] == pytest.approx(expected, rel=1e-5)


def test_batched_unbatched_shuffled_and_iterable_give_the_same(scorer):
    dataset = Dataset.from_dict({"text": TEXTS, "id": list(range(len(TEXTS)))})
    batched = dataset.map(scorer, batched=True)
    assert batched.column_names == ["text", "id", *SCORE_COLUMNS]
    assert_equal_columns(dataset.map(scorer), batched)
    assert_equal_columns(dataset.map(scorer, batched=True, batch_size=2), batched)
    shuffled = dataset.shuffle(seed=0)
    assert_equal_columns(shuffled.map(scorer, batched=True), batched.select(shuffled["id"]))
    for stream in (
        dataset.to_iterable_dataset().map(scorer, batched=True, batch_size=4),
        IterableDataset.from_generator(lambda: iter(dataset)).map(scorer),
    ):
        rows = list(stream)
        assert [row["text"] for row in rows] == TEXTS
        assert_equal_columns({name: [row[name] for row in rows] for name in SCORE_COLUMNS}, batched)
    assert_equal_columns(dataset.with_format("numpy").map(scorer, batched=True), batched)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("texts", [["", None, "fever"], ["fever", ""], ["", "", "fever", None, "cough", ""], [""] * 3])
def test_empty_texts_are_counted_out_and_column_types_stay(scorer, texts, batched):
    scored = Dataset.from_dict({"text": texts}).map(
        scorer, batched=batched, writer_batch_size=2, **({"batch_size": 2} if batched else {})
    )
    types = {name: scored.features[name].dtype for name in SCORE_COLUMNS}
    assert types == {"perplexity": "float64", "nll_sum": "float64", "num_tokens": "int32", "num_bytes": "int32"}
    for text, row in zip(texts, scored):
        if text:
            assert (
                row["perplexity"] == pytest.approx(math.exp(row["nll_sum"] / row["num_tokens"])) and row["num_bytes"]
            )
        else:
            assert row["perplexity"] is None or math.isnan(row["perplexity"])
            assert (row["nll_sum"], row["num_tokens"], row["num_bytes"]) == (0, 0, 0)


def test_a_batch_with_some_text_has_null_perplexities(scorer):
    scored = Dataset.from_dict({"text": ["", "fever", None]}).map(scorer, batched=True)
    assert scored.data["perplexity"].null_count == 2 and not np.isnan(scored[1]["perplexity"])


def test_infinite_score_is_kept(tiny_model, tiny_tokenizer, tmp_path):
    with torch.no_grad():
        tiny_model.lm_head.weight.mul_(10_000)
    tiny_model.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    scored = Dataset.from_dict({"text": TEXTS[:2]}).map(PerplexityScorer(str(tmp_path)), batched=True)
    assert scored[0]["perplexity"] == math.inf and math.isfinite(scored[0]["nll_sum"])


def test_prompt_completion_and_messages(tiny_model_dir, tiny_model, tiny_tokenizer):
    scorer = PerplexityScorer(tiny_model_dir, chat_template=CHAT_TEMPLATE)
    pairs = {"prompt": ["Question: what is fever? Answer:", ""], "completion": [" A high temperature.", "Yes."]}
    scored = Dataset.from_dict(pairs).map(scorer, batched=True)
    both, _ = plain_nll(tiny_model, tiny_tokenizer, "Question: what is fever? Answer: A high temperature.")
    prompt, _ = plain_nll(tiny_model, tiny_tokenizer, "Question: what is fever? Answer:")
    assert scored[0]["nll_sum"] == pytest.approx(both - prompt, rel=1e-5)
    assert scored[0]["num_bytes"] == len(" A high temperature.")
    assert_equal_columns(Dataset.from_dict(pairs).map(scorer), scored)

    chats = Dataset.from_dict({"messages": [[], CHAT, CHAT[:1]]})
    scored = chats.map(scorer, batched=True)
    assert scored["num_tokens"][0] == scored["num_tokens"][2] == 0
    assert scored["num_tokens"][1] == sum(
        len(tiny_tokenizer(turn["content"])["input_ids"]) for turn in CHAT if turn["role"] == "assistant"
    )
    assert_equal_columns(chats.map(scorer), scored)


def test_pairs_of_messages_with_tools_and_variables(tiny_model_dir, tiny_model, tiny_tokenizer):
    template = "{% if tools %}{{ tools | tojson }}\n{% endif %}{{ style }}" + CHAT_TEMPLATE
    rows = {"prompt": [CHAT[:1], CHAT[:3], None], "completion": [CHAT[1:2], CHAT[3:], None]}
    rows |= {"tools": ['[{"name": "dose"}]', None, None], "chat_template_kwargs": [{"style": "Kind."}] * 3}
    scorer = PerplexityScorer(tiny_model_dir, chat_template=template)
    scored = Dataset.from_dict(rows).map(scorer, batched=True)
    for row, start in zip(scored, ('[{"name": "dose"}]\nKind.', "Kind.", "")):
        if row["prompt"] is None:
            assert (row["num_tokens"], row["num_bytes"]) == (0, 0)
            continue
        before = start + "".join(f"<{turn['role']}>{turn['content']}" for turn in row["prompt"])
        completed = f"{before}<assistant>{row['completion'][0]['content']}"
        whole, num_whole = plain_nll(tiny_model, tiny_tokenizer, completed, bos=False)  # a chat starts as in training
        prompt, num_prompt = plain_nll(tiny_model, tiny_tokenizer, before, bos=False)
        assert row["num_tokens"] == num_whole - num_prompt
        assert row["nll_sum"] == pytest.approx(whole - prompt, rel=1e-5)
        assert row["num_bytes"] == len(f"<assistant>{row['completion'][0]['content']}".encode())
    assert_equal_columns(Dataset.from_dict(rows).map(scorer), scored)


def test_wrong_rows_are_named(scorer):
    with pytest.raises(KeyError, match=r"No column 'text' to score; the columns are \['id', 'question'\]"):
        Dataset.from_dict({"id": [1], "question": ["a"]}).map(scorer, batched=True)
    with pytest.raises(TypeError, match="Row 0 of the batch: column 'text' holds int, not a string"):
        Dataset.from_dict({"text": [1, 2]}).map(scorer, batched=True)
    with pytest.raises(TypeError, match="column 'text' holds int"):
        Dataset.from_dict({"text": [1, 2]}).map(scorer)
    lists = Dataset.from_dict({"text": [["a", "b"], ["c", "d"]]})
    for rows in (lists, lists.add_column("id", [1, 2]).to_iterable_dataset()):  # a row alone could be a batch
        with pytest.raises(TypeError, match="column 'text' holds list, not a string: join its parts, or give each"):
            list(rows.map(scorer))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bos": "yes"}, "bos must be 'auto' or 'none', 'bos' or 'eos', not 'yes'"),
        ({"max_length": 1}, "max_length must be at least 2"),
        ({"max_length": 8, "stride": 8}, "stride must be from 1 to max_length - 1"),
        ({"stride": 0}, "stride must be"),
    ],
)
def test_wrong_settings_fail_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        PerplexityScorer("any/model", **options)


@pytest.mark.parametrize("option", ["max_length", "stride", "max_batch_tokens"])
@pytest.mark.parametrize("value", ["64", 64.0, True])
def test_a_number_of_tokens_is_a_whole_number(option, value):
    with pytest.raises(TypeError, match=f"{option}={value!r} must be a whole number, not {type(value).__name__}"):
        PerplexityScorer("any/model", **{option: value})


def test_settings_that_do_not_suit_the_model_fail_at_the_first_row(tiny_model_dir):
    with pytest.raises(ValueError, match="max_length is 2000, but the model has 1024 positions"):
        PerplexityScorer(tiny_model_dir, max_length=2000)({"text": ["a"]})
    with pytest.raises(ValueError, match="stride must be from 1 to max_length - 1, not 1024 with max_length 1024"):
        PerplexityScorer(tiny_model_dir, stride=1024)({"text": ["a"]})


def test_fingerprint_is_the_same_before_and_after_use_and_in_another_process(scorer, tiny_model_dir):
    before = Hasher.hash(scorer)
    scorer({"text": TEXTS})
    assert Hasher.hash(scorer) == before == Hasher.hash(PerplexityScorer(tiny_model_dir, device="cpu"))
    assert Hasher.hash(copy.deepcopy(scorer)) == Hasher.hash(pickle.loads(pickle.dumps(scorer))) == before
    code = (
        "from datasets.fingerprint import Hasher; from hf_ppl_select import PerplexityScorer; import sys;"
        f"print(Hasher.hash(PerplexityScorer({tiny_model_dir!r}, device='cpu'))); assert 'torch' not in sys.modules"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7", "USE_TORCH": "0"}
    other = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert other.stdout.strip() == before, other.stderr


def test_fingerprint_changes_with_settings_and_with_weights(tiny_model_dir, tiny_model, monkeypatch):
    hashes = {
        Hasher.hash(PerplexityScorer(tiny_model_dir, **options))
        for options in (
            {},
            {"bos": "none"},
            {"max_length": 64},
            {"stride": 8},
            {"dtype": "float32"},
            {"split_special_tokens": True},
        )
    }
    assert len(hashes) == 6
    plain = Hasher.hash(PerplexityScorer(tiny_model_dir))
    with torch.no_grad():
        tiny_model.lm_head.weight[0, 0] += 1e-3
    tiny_model.save_pretrained(tiny_model_dir)
    edited = Hasher.hash(PerplexityScorer(tiny_model_dir))
    monkeypatch.setattr(PerplexityScorer, "_version", PerplexityScorer._version + 1)
    assert len({plain, edited, Hasher.hash(PerplexityScorer(tiny_model_dir))}) == 3


def test_a_second_map_comes_from_the_cache_without_the_model(scorer, tiny_model_dir, tmp_path, monkeypatch):
    Dataset.from_dict({"text": TEXTS}).save_to_disk(tmp_path / "rows")
    first = Dataset.load_from_disk(tmp_path / "rows").map(scorer, batched=True)
    monkeypatch.setattr(PerplexityScorer, "_load", lambda *args: pytest.fail("the model was loaded again"))
    again = Dataset.load_from_disk(tmp_path / "rows").map(PerplexityScorer(tiny_model_dir, device="cpu"), batched=True)
    assert again[:] == first[:]


def test_pickled_it_scores_alike(scorer):
    expected = scorer({"text": TEXTS})
    copied = pickle.loads(pickle.dumps(scorer))
    assert copied._loaded is None and vars(copied).keys() == vars(scorer).keys()
    assert_equal_columns(copied({"text": TEXTS}), expected)


def test_two_processes_after_this_one_has_used_its_threads(scorer):
    num_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    dataset = Dataset.from_dict({"text": TEXTS * 4})
    expected = scorer(dataset[:])  # the parent has run OpenMP threads: forked children must not wait for them
    torch.randn(512, 512) @ torch.randn(512, 512)
    signal.signal(signal.SIGALRM, lambda *args: pytest.fail("the forked processes hang"))
    signal.alarm(120)
    disable_caching()
    try:
        assert_equal_columns(dataset.map(scorer, batched=True, batch_size=5, num_proc=2, with_rank=True), expected)
    finally:
        enable_caching()
        signal.alarm(0)
        torch.set_num_threads(num_threads)


def test_score_ppl_takes_the_model_that_the_environment_names(tiny_model_dir, monkeypatch):
    monkeypatch.setattr(score_ppl, "_loaded", None)
    monkeypatch.setenv("HF_PPL_SELECT_MODEL", tiny_model_dir)
    dataset = Dataset.from_dict({"text": TEXTS})
    scored = dataset.map(score_ppl, batched=True)
    assert_equal_columns(dataset.map(score_ppl), scored)
    assert_equal_columns(scored, PerplexityScorer(tiny_model_dir)({"text": TEXTS}))
    assert tiny_model_dir in repr(score_ppl)


def test_score_ppl_without_a_model_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(score_ppl, "_loaded", None)
    monkeypatch.delenv("HF_PPL_SELECT_MODEL", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(OSError, match="SmolLM2-135M.*HF_PPL_SELECT_MODEL"):
        score_ppl({"text": ["a"]})
    with pytest.raises(OSError, match="SmolLM2-135M.*HF_PPL_SELECT_MODEL"):
        score_ppl.settings()


def test_evaluate_perplexity(tiny_model, tiny_tokenizer):
    found = evaluate_perplexity(tiny_model.train(), tiny_tokenizer, [*TEXTS, ""])
    assert tiny_model.training
    plain = [plain_nll(tiny_model.eval(), tiny_tokenizer, text) for text in TEXTS]
    np.testing.assert_allclose(found.nll_sum[:-1], [nll for nll, _ in plain], rtol=1e-5)
    assert found.num_tokens.tolist() == [number for _, number in plain] + [0]
    mean = sum(nll for nll, _ in plain) / sum(number for _, number in plain)
    assert found.nll_per_token == pytest.approx(mean, rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(mean), rel=1e-5)
    num_bytes = sum(len(text.encode()) for text in TEXTS)
    assert found.bits_per_byte == pytest.approx(found.nll_sum.sum() / math.log(2) / num_bytes)
    with pytest.raises(ValueError, match="None of the 2 texts has a token to score"):
        evaluate_perplexity(tiny_model, tiny_tokenizer, ["", ""])
    with pytest.raises(ValueError, match="max_length is 5000"):
        evaluate_perplexity(tiny_model, tiny_tokenizer, TEXTS, max_length=5000)
    with pytest.raises(ValueError, match="stride"):
        evaluate_perplexity(tiny_model, tiny_tokenizer, TEXTS, max_length=1)
    assert context_length(tiny_model) == 1024 and context_length(tiny_model, 64) == 64


def test_import_is_light_and_lazy():
    code = (
        "import sys; import hf_ppl_select; assert not {'torch', 'datasets', 'numpy'} & set(sys.modules);"
        "assert 'score_ppl' in dir(hf_ppl_select); hf_ppl_select.PerplexityScorer; assert 'torch' not in sys.modules"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr


@pytest.mark.slow
def test_real_model_real_answers(smollm2_dir, shared_data):
    """200 medical answers, short ones (at most 40 tokens): half a minute for one at a time in float32 on two cores."""
    import pyarrow.parquet as pq

    from hf_ppl_select.likelihood.engine import load_model

    model, tokenizer = load_model(smollm2_dir, dtype="float32", device="cpu")
    answers = pq.read_table(shared_data / "corpora" / "medquad.parquet", columns=["answer"])["answer"].to_pylist()
    answers = [answer for answer in answers if answer and 20 < len(answer) < 400]
    answers = [text for text in answers[::2] if len(tokenizer(text)["input_ids"]) <= 40][:200]
    assert len(answers) == 200
    found = evaluate_perplexity(model, tokenizer, answers)
    plain = [plain_nll(model, tokenizer, text) for text in answers]
    np.testing.assert_array_equal(found.num_tokens, [number for _, number in plain])
    np.testing.assert_allclose(found.nll_sum, [nll for nll, _ in plain], rtol=1e-5)


@pytest.mark.slow
def test_compiled_layers_give_the_same_numbers(tiny_model_dir, monkeypatch):
    rows = {"text": [f"a sentence about number {i} " * (1 + i % 9) for i in range(40)]}
    plain = PerplexityScorer(tiny_model_dir)(rows)
    compiled = PerplexityScorer(tiny_model_dir, compile=True)
    found = compiled(rows)
    assert found["nll_sum"] == pytest.approx(plain["nll_sum"], rel=1e-5)
    layers = compiled._loaded.engine.causal_lm.model.layers
    assert all(layer._compiled_call_impl is not None for layer in layers)

    monkeypatch.setitem(text_likelihoods.COMPILING_PAYS, "cpu", 2000)
    monkeypatch.setattr("hf_ppl_select.likelihood.engine.LikelihoodEngine._packing_pays", lambda self: True)
    auto = PerplexityScorer(tiny_model_dir, compile="auto")
    auto({"text": rows["text"][:5]})
    assert auto._loaded.engine.causal_lm.model.layers[0]._compiled_call_impl is None
    for _ in range(3):
        found = auto(rows)
    assert auto._loaded.engine.causal_lm.model.layers[0]._compiled_call_impl is not None
    assert found["nll_sum"] == pytest.approx(plain["nll_sum"], rel=1e-5)
    with pytest.raises(ValueError, match="compile must be"):
        PerplexityScorer(tiny_model_dir, compile="always")
