import json
import re

import pytest
import torch
from callback_trainers import DOMAIN, GENERAL, HELD_OUT, MOMENTS, make_trainer, rows_with, same_history, teach
from transformers import ProgressCallback, TrainerCallback

import trainer_callbacks.measuring
from hf_ppl_select.likelihood.engine import LikelihoodEngine
from trainer_callbacks import (
    BenchmarkCallback,
    ForgettingGuard,
    PerplexityCallback,
    ScalingLawCallback,
    TokensPerSecondCallback,
)


@pytest.mark.parametrize("kind", ["plain", "sft"])
def test_training_goes_on_as_if_nothing_had_been_measured(kind, tiny_model, tiny_tokenizer, tmp_path):
    start = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    for layer in tiny_model.model.layers:
        layer.self_attn.attention_dropout = 0.1  # draws random numbers, so that a shifted generator would show
    runs = []
    for measured in (False, True):
        tiny_model.load_state_dict(start)
        trainer = make_trainer(kind, tiny_model, tiny_tokenizer, tmp_path)
        modes = []
        if measured:
            trainer.add_callback(PerplexityCallback(trainer, HELD_OUT, every_n_steps=1))
        trainer.add_callback(ModeRecorder(modes))
        trainer.train()
        training = [row for row in trainer.state.log_history if "loss" in row]
        weights = {name: value.clone() for name, value in tiny_model.state_dict().items()}
        runs.append((training, modes, weights))
    (without_log, without_modes, without), (with_log, with_modes, with_) = runs
    assert with_log == without_log and [row["step"] for row in with_log] == [1, 2, 3, 4]  # no loss row is swallowed
    assert with_modes == without_modes == [True] * 4  # back in train mode
    assert all(torch.equal(with_[name], without[name]) for name in without)


class ModeRecorder(TrainerCallback):
    def __init__(self, modes, mode=lambda model: model.training):
        self.modes, self.mode = modes, mode

    def on_step_end(self, args, state, control, model, **kwargs):
        self.modes.append(self.mode(model))


@pytest.mark.parametrize("kind", ["plain", "sft"])
def test_what_is_frozen_in_eval_mode_stays_so(kind, tiny_model, tiny_tokenizer, tmp_path):
    trainer = make_trainer(kind, tiny_model, tiny_tokenizer, tmp_path)
    trainer.add_callback(PerplexityCallback(trainer, HELD_OUT, every_n_steps=1))
    frozen = tiny_model.model.layers[0]
    trainer.add_callback(Freezer(frozen))
    seen = []
    trainer.add_callback(ModeRecorder(seen, lambda model: [frozen.mlp.training, model.model.layers[1].mlp.training]))
    trainer.train()
    assert seen == [[False, True]] * 4


class Freezer(TrainerCallback):
    """Puts a part of the model in eval mode, just before the callbacks may measure."""

    def __init__(self, module):
        self.module = module

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.module.eval()


def every_callback(trainer, tmp_path, **options):
    """All of them, each measuring on steps of its own."""
    questions = [{"question": f"What is {i}?", "choices": ["yes", "no"], "answer": i % 2} for i in range(4)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    law_options = {"ladder": [20, 60], "moments": MOMENTS, "tokens_per_step": 10}
    return [
        PerplexityCallback(trainer, {"domain": DOMAIN}, landscape=DOMAIN, every_n_steps=3),
        ForgettingGuard(trainer, {"general": GENERAL}, every_n_steps=5, action="lower_lr", **options),
        BenchmarkCallback(trainer, str(tmp_path / "own.jsonl"), every_n_steps=4),
        ScalingLawCallback(trainer, tmp_path / "points.jsonl", "run", DOMAIN, **law_options),
    ]


@pytest.mark.parametrize("kind", ["plain", "sft"])
def test_a_step_that_is_not_due_costs_nothing(kind, tiny_model, tiny_tokenizer, tmp_path, monkeypatch):
    trainer = make_trainer(kind, tiny_model, tiny_tokenizer, tmp_path, max_steps=8)
    for callback in every_callback(trainer, tmp_path):
        trainer.add_callback(callback)
    made, asked, tokenized = [], [], []
    engine_of, nll = trainer_callbacks.measuring.engine_of, LikelihoodEngine.nll
    step = lambda: trainer.state.global_step  # noqa: E731
    monkeypatch.setattr(trainer_callbacks.measuring, "engine_of", lambda t: made.append(step()) or engine_of(t))
    monkeypatch.setattr(
        LikelihoodEngine, "nll", lambda self, *args, **kw: asked.append(step()) or nll(self, *args, **kw)
    )
    monkeypatch.setattr(trainer_callbacks.held_out, "tokenize_rows", lambda *args, **kw: tokenized.append(step()))
    trainer.train()
    # step 0 and the last one: three callbacks; law points at 20 and 60 tokens; the others' own steps
    assert made == [0, 0, 0, 2, 3, 4, 5, 6, 6, 8, 8, 8]
    assert set(asked) == set(made) and tokenized == []


def test_the_last_step_is_measured_when_a_later_callback_ends_the_training(tiny_model, tiny_tokenizer, tmp_path):
    trainer = make_trainer("sft", tiny_model, tiny_tokenizer, tmp_path)
    trainer.add_callback(PerplexityCallback(trainer, HELD_OUT))
    trainer.add_callback(StopAt(3))
    trainer.train()
    assert sorted(rows_with(trainer, "domain_loss")) == [0, 3]


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


def test_a_callback_made_for_another_trainer(tiny_model, tiny_tokenizer, tmp_path):
    other = make_trainer("sft", tiny_model, tiny_tokenizer, tmp_path)
    for callback in every_callback(other, tmp_path):
        trainer = make_trainer("sft", tiny_model, tiny_tokenizer, tmp_path)
        trainer.add_callback(callback)
        with pytest.raises(ValueError, match=f"this {type(callback).__name__} was made for another trainer"):
            trainer.train()


class Killed(BaseException):
    """Stands for a machine that goes away."""


class KillAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Killed


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "sft"])
def test_after_a_kill_the_log_history_is_that_of_an_unbroken_run(kind, tiny_model, tiny_tokenizer, tmp_path):
    start = teach(tiny_model, tiny_tokenizer, GENERAL)

    def run(folder, *callbacks, **options):
        tiny_model.load_state_dict(start)
        saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 8}
        trainer = make_trainer(kind, tiny_model, tiny_tokenizer, folder, **saving)
        for callback in [*every_callback(trainer, folder, max_forgetting=0.002), *callbacks]:
            trainer.add_callback(callback)
        trainer.train(**options)
        return trainer.state.log_history, (folder / "points.jsonl").read_text()

    for name in ("unbroken", "broken"):
        (tmp_path / name).mkdir()
    unbroken, points = run(tmp_path / "unbroken")
    with pytest.raises(Killed):
        run(tmp_path / "broken", KillAt(7))
    resumed, points_after = run(tmp_path / "broken", resume_from_checkpoint=True)
    assert same_history(resumed, unbroken)
    scales = [row["forgetting_guard_lr_scale"] for row in unbroken if "forgetting_guard_lr_scale" in row]
    assert scales == [1.0, 0.5, 0.5]  # lowered at step 5, before the checkpoint; at the last step there is no need
    rates = [row["learning_rate"] for row in resumed if "learning_rate" in row]
    assert rates[6] == pytest.approx(0.5 * 1e-2 * (8 - 6) / 8)  # the seventh step: linear decay, halved
    assert points_after == points


def test_the_bar_shows_tokens_per_second(tiny_model, tiny_tokenizer, tmp_path, capsys):
    options = {"disable_tqdm": False, "include_num_input_tokens_seen": "non_padding"}
    trainer = make_trainer("sft", tiny_model, tiny_tokenizer, tmp_path, **options)
    TokensPerSecondCallback.replace_bar_of(trainer)
    trainer.train()
    bar = capsys.readouterr().err
    assert re.search(r"[1-9][\d,]* tokens/s\]", bar)
    assert sum(isinstance(callback, ProgressCallback) for callback in trainer.callback_handler.callbacks) == 1

    uncounted = make_trainer("sft", tiny_model, tiny_tokenizer, tmp_path, disable_tqdm=False)
    before = [type(callback) for callback in uncounted.callback_handler.callbacks]
    TokensPerSecondCallback.replace_bar_of(uncounted)
    assert [type(callback) for callback in uncounted.callback_handler.callbacks] == before


def test_the_bar_of_a_resumed_run_counts_its_own_steps(tiny_model, tiny_tokenizer, tmp_path):
    options = {
        "disable_tqdm": False,
        "include_num_input_tokens_seen": "all",
        "save_strategy": "steps",
        "save_steps": 2,
    }
    make_trainer("sft", tiny_model, tiny_tokenizer, tmp_path, max_steps=2, **options).train()
    trainer = make_trainer("sft", tiny_model, tiny_tokenizer, tmp_path, max_steps=4, **options)
    TokensPerSecondCallback.replace_bar_of(trainer)
    bars = []
    trainer.add_callback(BarRecorder(trainer, bars))
    trainer.train(resume_from_checkpoint=True)
    assert bars == [(3, 2), (4, 2)]  # steps done, steps done before: the time left goes by the difference


class BarRecorder(TrainerCallback):
    def __init__(self, trainer, bars):
        self.trainer, self.bars = trainer, bars

    def on_step_end(self, args, state, control, **kwargs):
        (bar,) = [c.training_bar for c in self.trainer.callback_handler.callbacks if isinstance(c, ProgressCallback)]
        self.bars.append((bar.n, bar.initial))
