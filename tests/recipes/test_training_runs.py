import importlib.util
import json
from pathlib import Path

import pytest
import torch
from callback_trainers import make_trainer
from datasets import Dataset
from huggingface_hub import ModelCard
from recipe_runs import ANSWERS, DOMAIN, LORA, QUESTIONS, TEXTS, losses_of, train_here, write_jsonl
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_ppl_select import PerplexityScorer
from hf_ppl_select.likelihood.engine import LikelihoodEngine
from hf_ppl_select.scoring.perplexity import evaluate_perplexity
from training.run import add_callbacks

pytest_plugins = ["recipe_fixtures"]


def test_resuming_without_a_checkpoint_says_so(corpus, common, tmp_path):
    with pytest.raises(ValueError, match="run has no complete checkpoint; leave --resume_from_checkpoint out"):
        train_here("cpt", common | {"dataset_name": corpus, "resume_from_checkpoint": "true"})
    with pytest.raises(ValueError, match="is no complete checkpoint; --resume_from_checkpoint true finds"):
        train_here("cpt", common | {"dataset_name": corpus, "resume_from_checkpoint": str(tmp_path)})


def test_the_merged_model_has_the_adapters_numbers(corpus, common, tmp_path):
    from peft import PeftModel

    run = tmp_path / "run"
    run.mkdir()
    (run / "README.md").write_text("---\nlanguage: de\n---\nMy own notes.\n")  # stays, around the card's section
    train_here("cpt", common | LORA | {"dataset_name": corpus, "merge_adapter": True})
    merged = AutoModelForCausalLM.from_pretrained(run / "merged")
    base = AutoModelForCausalLM.from_pretrained(common["model_name_or_path"])
    adapter = PeftModel.from_pretrained(base, str(run))
    tokenizer = AutoTokenizer.from_pretrained(run / "merged")
    ids = [[tokenizer.bos_token_id, *tokenizer(text)["input_ids"]] for text in TEXTS]
    counted = [range(1, len(row)) for row in ids]
    ours, theirs = (torch.tensor(LikelihoodEngine(model.eval()).nll(ids, counted)) for model in (merged, adapter))
    assert torch.allclose(ours, theirs, rtol=1e-5)
    base = AutoModelForCausalLM.from_pretrained(common["model_name_or_path"])
    before = torch.tensor(LikelihoodEngine(base.eval()).nll(ids, counted))
    assert (before - theirs).abs().min() > 1  # it has learned something to merge
    assert not (run / "model.safetensors").exists() and (run / "adapter_model.safetensors").exists()
    card = ModelCard.load(run / "README.md")
    assert card.data.library_name == "peft" and "lora" in card.data.tags
    assert card.data.language == "de" and card.text.count("My own notes.") == 1
    found = {(result.dataset_name, result.metric_type): result.metric_value for result in card.data.eval_results}
    loss = evaluate_perplexity(adapter, tokenizer, DOMAIN).nll_per_token
    assert found["held-out domain", "loss"] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("options", [{}, {"packing": False, "per_device_train_batch_size": 3}, {"max_length": 500}])
def test_tokens_are_counted_exactly(options, corpus, common, model_dir):
    metrics = train_here("cpt", common | {"dataset_name": corpus, "num_train_epochs": 1, "max_length": 400} | options)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    lengths = [len(tokenizer(text + tokenizer.eos_token)["input_ids"]) for text in TEXTS]
    assert len(set(lengths)) > 1  # so that there is padding, which must not count
    assert metrics["num_tokens"] == metrics["training_rows"]["num_tokens"] == sum(lengths)
    assert metrics["training_rows"]["num_loss_tokens"] == sum(lengths) - len(lengths)


@pytest.mark.parametrize("packing", [False, True])
def test_what_truncation_takes_is_counted(packing, common, model_dir, tmp_path, capsys):
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    prompts, answers = ["Why?", "Why? " * 40, "Why?"], ["Fever.", "Fever.", "Fever and cough. " * 20]
    pairs = [{"prompt": p, "completion": a} for p, a in zip(prompts, answers, strict=True)]
    data = write_jsonl(tmp_path / "pairs.jsonl", pairs)
    common |= {"dataset_name": data, "eval_file": data, "packing": packing, "num_train_epochs": 1}
    metrics = train_here("sft", common)
    rows = metrics["training_rows"]
    texts = [p + a + tokenizer.eos_token for p, a in zip(prompts, answers, strict=True)]
    lengths = [len(tokenizer(text)["input_ids"]) for text in texts]
    assert lengths[0] < 64 < min(lengths[1:])
    assert (rows["num_rows"], rows["num_truncated_rows"], rows["num_rows_without_loss"]) == (3, 2, 1)
    assert rows["num_truncated_tokens"] == lengths[1] + lengths[2] - 128
    kept = lengths[0] + 64 + 64 * packing  # without packing, TRL leaves out the row that lost its answer
    assert metrics["num_tokens"] == rows["num_tokens"] == kept
    question = len(tokenizer("Why?")["input_ids"])
    assert rows["num_loss_tokens"] == lengths[0] - question + 64 - question
    assert "2 of 3 rows are longer than --max_length 64 tokens: they lose their end" in capsys.readouterr().out
    with pytest.raises(ValueError, match="within --max_length 2 none of 3 rows has a token to learn"):
        train_here("sft", common | {"max_length": 2})


@pytest.mark.parametrize("tuning", [{}, LORA], ids=["full", "lora"])
@pytest.mark.parametrize(
    ("rows", "options", "counts"),
    [
        ("pairs", {}, "answers"),
        ("pairs", {"completion_only_loss": False}, "all"),
        ("pairs", {"packing": True, "packing_strategy": "bfd"}, "answers"),
        ("chats", {"assistant_only_loss": True}, "answers"),
        ("chats", {"gradient_checkpointing": True}, "all"),
    ],
)
def test_sft_learns_the_tokens_it_should(rows, options, counts, tuning, chats, common, model_dir, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    pairs = [{"prompt": q + "\n", "completion": a} for q, a in zip(QUESTIONS, ANSWERS, strict=True)]
    data = chats if rows == "chats" else write_jsonl(tmp_path / "pairs.jsonl", pairs)
    metrics = train_here("sft", common | options | tuning | {"dataset_name": data, "eval_file": data})
    answers = [len(tokenizer(answer + tokenizer.eos_token)["input_ids"]) for answer in ANSWERS]
    rows = metrics["training_rows"]
    expected = sum(answers) if counts == "answers" else rows["num_tokens"] - len(answers)
    assert rows["num_loss_tokens"] == expected and rows["num_truncated_rows"] == 0
    assert metrics["num_tokens"] == 2 * rows["num_tokens"]
    assert losses_of(metrics)[-1] < losses_of(metrics)[0]


@pytest.mark.parametrize("recipe", ["cpt", "sft"])
def test_replay_is_its_share_of_the_tokens(recipe, corpus, chats, common, tmp_path, capsys):
    texts = [{"text": f"Letters {i} and numbers."} for i in range(400)]
    general = write_jsonl(tmp_path / "general.jsonl", texts)
    common |= {"dataset_name": corpus if recipe == "cpt" else chats, "replay_dataset": general, "replay": 0.2}
    common |= {"eval_file": None, "num_train_epochs": 1}
    metrics = train_here(recipe, common)
    rows = metrics["training_rows"]
    assert rows["num_replay_tokens"] / rows["num_tokens"] == pytest.approx(0.2, abs=0.01)
    assert metrics["num_tokens"] == rows["num_tokens"] and metrics["num_rows"] == 24
    again = train_here(recipe, common | {"output_dir": str(tmp_path / "again")})
    assert losses_of(again) == losses_of(metrics)  # the same rows in the same order
    if recipe == "cpt":
        few = write_jsonl(tmp_path / "few.jsonl", texts[:3])
        metrics = train_here(recipe, common | {"replay_dataset": few, "output_dir": str(tmp_path / "few")})
        assert metrics["training_rows"]["num_replay_rows"] == 3
        assert "The replay dataset has only" in capsys.readouterr().out
        with pytest.raises(ValueError, match="--replay must be a share of the tokens between 0 and 1"):
            train_here(recipe, common | {"replay": 5.0})


def test_selecting_on_the_way_in_is_selecting_first(common, model_dir, tmp_path):
    import select_subset
    from hf_ppl_select import fit_scaling_law

    rows = Dataset.from_dict({"text": TEXTS + [text[::-1] for text in TEXTS]})
    scored = rows.map(PerplexityScorer(model_dir), batched=True)
    scored.save_to_disk(tmp_path / "scored")
    mean, deviation = float(torch.tensor(scored["perplexity"]).mean()), float(torch.tensor(scored["perplexity"]).std())
    points = [
        {"run": f"{mu}-{sigma}", "mu": mean * mu, "sigma": deviation * sigma, "num_tokens": tokens}
        for mu in (0.8, 0.9, 1.0, 1.1, 1.2)
        for sigma in (0.4, 0.6, 0.8)
        for tokens in (1000, 2000, 4000)
    ]
    for point in points:
        point["loss"] = 2 + (point["mu"] / mean - 1) ** 2 + 30 * point["num_tokens"] ** -0.5
    fit_scaling_law(points, form="log_parabola", space="linear").save(tmp_path / "law.json")
    chosen = {"dataset_name": str(tmp_path / "scored"), "law": str(tmp_path / "law.json"), "num_tokens": 2000}
    metrics = train_here("cpt", common | chosen | {"seed": 3, "num_train_epochs": 1})
    options = select_subset.SelectArguments(**chosen, seed=3, output_dir=str(tmp_path / "first"))
    selection = select_subset.main(options)
    assert metrics["selection"]["indices_sha256"] == selection.report()["indices_sha256"]
    assert metrics["num_rows"] == selection.num_chunks < 48
    assert metrics["num_tokens"] == selection.num_tokens + selection.num_chunks  # an EOS for each
    assert (tmp_path / "run-subset" / "README.md").exists()
    random = train_here("cpt", common | chosen | {"law": None, "strategy": "random"})
    assert random["selection"]["strategy"] == "random"
    assert random["selection"]["indices_sha256"] != metrics["selection"]["indices_sha256"]
    with pytest.raises(ValueError, match="--law needs --num_tokens"):
        train_here("cpt", common | chosen | {"num_tokens": None})


def test_help_all_lists_the_options_of_trl(run_recipe):
    _, text, _ = run_recipe("cpt", "--help_all")
    for word in ("--dataset_name", "--law", "--packing_strategy", "--lora_r", "--gradient_checkpointing"):
        assert word in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"merge_adapter": True}, "--merge_adapter merges a LoRA adapter; add --use_peft"),
        ({"merge_adapter": True, "load_in_4bit": True} | LORA, "cannot merge into quantized weights"),
        ({"report_to": "trackio"}, "--report_to trackio needs that library"),
        ({"replay_dataset": "missing.jsonl"}, "missing.jsonl does not exist"),
        ({"replay": 0.2}, "--replay 0.2 needs --replay_dataset"),
        ({"strategy": "random"}, "--strategy random selects; it needs --num_tokens"),
    ],
)
def test_options_that_contradict_fail_before_the_model_loads(options, message, corpus, common):
    if options.get("report_to") and importlib.util.find_spec("trackio") is not None:
        pytest.skip("trackio is installed")
    if options.get("use_peft") and importlib.util.find_spec("peft") is None:
        pytest.skip("peft is not installed")
    with pytest.raises((ValueError, OSError), match=message):
        train_here("cpt", common | {"dataset_name": corpus, "model_name_or_path": "no-model"} | options)
    assert not Path(common["output_dir"]).exists()


def test_what_was_measured_of_an_earlier_model_is_not_taken_for_the_new_one_s(corpus, common):
    folder = Path(common["output_dir"])
    folder.mkdir()
    for name in ("benchmarks.json", "benchmarks.parquet", "held_out.json", "held_out_base.json", "notes.txt"):
        (folder / name).write_text("of an earlier model")
    train_here("cpt", common | {"dataset_name": corpus, "eval_file": corpus})
    assert not (folder / "benchmarks.json").exists() and not (folder / "benchmarks.parquet").exists()
    assert (folder / "notes.txt").exists() and json.loads((folder / "held_out.json").read_text())
    for name in ("benchmarks.json", "held_out.json"):
        (folder / name).write_text("of an earlier model")
    train_here(
        "cpt", {name: value for name, value in common.items() if name != "eval_file"} | {"dataset_name": corpus}
    )
    assert not (folder / "held_out.json").exists() and not (folder / "held_out_base.json").exists()


TOOLS_TEMPLATE = (
    "{{ bos_token }}{% if tools %}{{ tools | tojson }}\n{% endif %}{{ style }}{% for m in messages %}{{ m['role'] }}: "
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ m['content'] }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


@pytest.mark.parametrize("kind", ["messages", "pairs", "texts"])
def test_held_out_rows_are_measured_as_the_trainer_evaluates_them(kind, common, model_dir, tmp_path):
    """Tools and template arguments included: the callback's loss is SFTTrainer's own eval_loss on the same rows."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    tokenizer.chat_template = TOOLS_TEMPLATE
    tokenizer.save_pretrained(model_dir)
    parameters = {"type": "object", "properties": {"tablets": {"type": "number"}}}
    more = {
        "tools": [
            {"type": "function", "function": {"name": "dose", "description": "how much", "parameters": parameters}}
        ],
        "chat_template_kwargs": {"style": "Short and kind."},
    }
    rows = []
    for question, answer in zip(QUESTIONS, ANSWERS, strict=True):
        prompt, completion = [{"role": "user", "content": question}], [{"role": "assistant", "content": answer}]
        if kind == "messages":
            rows.append({"messages": prompt + completion} | more)
        elif kind == "pairs":
            rows.append({"prompt": prompt, "completion": completion} | more)
        else:  # written whole: the BOS that scoring puts first, the EOS that the trainer puts last
            rows.append({"prompt": f"<|endoftext|>{question} ", "completion": f"{answer}<|endoftext|>"})
    held_out = write_jsonl(tmp_path / "held_out.jsonl", rows[:6])
    options = {
        "dataset_name": write_jsonl(tmp_path / "rows.jsonl", rows[6:]),
        "eval_file": held_out,
        "eval_strategy": "steps",
        "eval_steps": 3,
        "per_device_eval_batch_size": 6,  # one batch: a mean over all of its tokens
        "max_length": 512,
        "assistant_only_loss": kind == "messages",
    }
    log = train_here("sft", common | options)["log_history"]
    ours = {row["step"]: row["domain_loss"] for row in log if "domain_loss" in row}
    theirs = {row["step"]: row["eval_loss"] for row in log if "eval_loss" in row}
    assert len(theirs) > 2
    assert {step: ours[step] for step in theirs} == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize("how", ["is_fsdp_enabled", "is_distributed_loading_by_transformers"])
def test_sharded_weights_are_measured_by_the_trainer_itself(how, tiny_model, tiny_tokenizer, tmp_path):
    trainer = make_trainer("plain", tiny_model, tiny_tokenizer, tmp_path)
    setattr(trainer, how, True)
    before = list(trainer.callback_handler.callbacks)
    with pytest.raises(ValueError, match="the trainer itself must measure held-out rows: add --eval_strategy"):
        add_callbacks(trainer, {"domain": DOMAIN})
    trainer.eval_dataset = trainer.train_dataset
    add_callbacks(trainer, {"domain": DOMAIN})
    assert trainer.callback_handler.callbacks == before
