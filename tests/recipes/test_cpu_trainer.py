"""Training on a CPU: short rows attend in plain matrix products, to the same loss; everything else as it was."""

import copy
import warnings

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import SFTConfig

from training.cpu_trainer import LONGEST_EAGER, CpuSFTTrainer, StoppingSFTTrainer, eager_attention


class Watched(TrainerCallback):
    """What attention is computed in: during the forward passes, and when a callback runs a model between steps."""

    def __init__(self, model):
        self.model, self.forward, self.between = model, set(), set()
        model.register_forward_pre_hook(lambda *_: self.forward.add(model.config._attn_implementation))

    def on_step_end(self, args, state, control, **kwargs):
        self.between.add(self.model.config._attn_implementation)


def train(trainer_class, model, tokenizer, folder, length, **options):
    rows = Dataset.from_list([{"input_ids": [7 + (i * j) % 50 for j in range(length - i)]} for i in range(8)])
    named = {"max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "max_length": length}
    named |= {"use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no", "logging_steps": 1}
    args = SFTConfig(output_dir=str(folder), **(named | {"gradient_checkpointing": False} | options))
    watched = Watched(model)
    trainer = trainer_class(model, args=args, train_dataset=rows, processing_class=tokenizer, callbacks=[watched])
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line], watched


@pytest.mark.parametrize("checkpointing", [False, True])
def test_short_rows_attend_in_matrix_products_to_the_same_loss(tiny_model, tiny_tokenizer, tmp_path, checkpointing):
    same_model = copy.deepcopy(tiny_model)
    options = {"length": 24, "gradient_checkpointing": checkpointing}
    expected, theirs = train(StoppingSFTTrainer, same_model, tiny_tokenizer, tmp_path / "a", **options)
    losses, ours = train(CpuSFTTrainer, tiny_model, tiny_tokenizer, tmp_path / "b", **options)
    assert theirs.forward == {"sdpa"} and ours.forward == {"eager"} and ours.between == {"sdpa"}
    assert losses == pytest.approx(expected, rel=1e-5) and len(losses) == 3
    for name, weights in tiny_model.named_parameters():
        torch.testing.assert_close(weights, same_model.get_parameter(name), rtol=0, atol=2e-5)


def test_packed_texts_do_not_attend_to_each_other(tiny_model, tiny_tokenizer, tmp_path):
    """Nor where the model would keep a cache, which hides from transformers where one text of a row ends."""
    texts = [[7 + (i * j) % 50 for j in range(5 + 3 * i)] for i in range(1, 5)]
    options = {"packing": True, "max_length": 64, "per_device_train_batch_size": 1, "gradient_checkpointing": False}
    args = SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", **options)
    rows = Dataset.from_list([{"input_ids": ids} for ids in texts])
    trainer = CpuSFTTrainer(tiny_model, args=args, train_dataset=rows, processing_class=tiny_tokenizer)
    tiny_model.config.use_cache = True
    (batch,) = list(trainer.get_train_dataloader())
    assert batch["input_ids"].shape == (1, sum(map(len, texts)))
    with torch.no_grad():
        packed = trainer.compute_loss(tiny_model.eval(), batch)
        alone = [tiny_model(input_ids=torch.tensor([ids]), labels=torch.tensor([ids])).loss for ids in texts]
    counts = [len(ids) - 1 for ids in texts]
    expected = sum(loss.item() * n for loss, n in zip(alone, counts, strict=True)) / sum(counts)
    assert packed.item() == pytest.approx(expected, rel=1e-5)


def test_long_rows_and_other_attention_stay_as_they_are(tiny_model, tiny_tokenizer, tmp_path):
    _, long = train(CpuSFTTrainer, tiny_model, tiny_tokenizer, tmp_path, LONGEST_EAGER + 9, max_steps=1)
    assert long.forward == {"sdpa"}
    tiny_model.set_attn_implementation("eager")
    with eager_attention(tiny_model):
        assert tiny_model.config._attn_implementation == "eager"
    assert tiny_model.config._attn_implementation == "eager"


def test_a_model_that_cannot_switch_or_caps_its_scores_keeps_its_attention(tiny_model, monkeypatch, caplog):
    """SDPA leaves the cap out, with which Gemma 2 on transformers 4 would be trained as another function."""
    tiny_model.config.attn_logit_softcapping = 50.0
    with eager_attention(tiny_model):
        assert tiny_model.config._attn_implementation == "sdpa"
    tiny_model.config.attn_logit_softcapping = None
    monkeypatch.setattr(type(tiny_model), "_can_set_attn_implementation", classmethod(lambda cls: False))
    with eager_attention(tiny_model):
        assert tiny_model.config._attn_implementation == "sdpa" and not caplog.records


@pytest.mark.parametrize(("bf16", "has_it", "warns"), [(True, False, 1), (True, True, 0), (False, False, 0)])
def test_bfloat16_on_a_cpu_without_it_warns(tiny_model, tiny_tokenizer, tmp_path, monkeypatch, bf16, has_it, warns):
    monkeypatch.setattr("training.cpu_trainer.cpu_multiplies", lambda dtype: has_it)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        train(CpuSFTTrainer, tiny_model, tiny_tokenizer, tmp_path, length=16, max_steps=1, bf16=bf16)
    assert sum("no instructions for bfloat16: with --bf16 false" in str(one.message) for one in told) == warns


def test_a_step_that_fails_leaves_the_attention_as_it_was(tiny_model):
    with pytest.raises(RuntimeError, match="out of memory"), eager_attention(tiny_model):
        raise RuntimeError("out of memory")
    assert tiny_model.config._attn_implementation == "sdpa"
