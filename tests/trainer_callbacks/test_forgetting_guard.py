import pytest
import torch
from callback_trainers import DOMAIN, GENERAL, make_trainer, rows_with, teach

from hf_ppl_select.scoring.perplexity import evaluate_perplexity
from trainer_callbacks import ForgettingGuard, PerplexityCallback
from trainer_callbacks.forgetting_guard import lower_learning_rate

KINDS = pytest.mark.parametrize("kind", ["plain", "sft", "lora"])
HELD_OUT = {"general": GENERAL}


def forgetting_unguarded(kind, model, tokenizer, folder, **options):
    """Forgetting by step where nobody looks after it, and the weights to start from again."""
    start = teach(model, tokenizer, GENERAL)
    trainer = make_trainer(kind, model, tokenizer, folder, max_steps=8, **options)
    trainer.add_callback(PerplexityCallback(trainer, HELD_OUT, every_n_steps=1))
    trainer.train()
    if kind == "lora":
        model = trainer.model.unload()
    model.load_state_dict(start)
    return {step: row["general_forgetting"] for step, row in rows_with(trainer, "general_loss").items()}, start


@KINDS
def test_stops_at_the_first_step_beyond_the_bound(kind, tiny_model, tiny_tokenizer, tmp_path, caplog):
    forgetting, _ = forgetting_unguarded(kind, tiny_model, tiny_tokenizer, tmp_path / "free")
    assert forgetting[3] < forgetting[5] and max(forgetting[step] for step in range(5)) < forgetting[5]
    bound = (max(forgetting[step] for step in range(5)) + forgetting[5]) / 2
    options = {"save_strategy": "steps", "save_steps": 4, "max_steps": 8}
    if kind == "sft":
        options |= {"eval_strategy": "steps", "eval_steps": 4}
    trainer = make_trainer(kind, tiny_model, tiny_tokenizer, tmp_path / "guarded", **options)
    trainer.add_callback(ForgettingGuard(trainer, HELD_OUT, max_forgetting=bound, every_n_steps=1))
    trainer.train()
    assert trainer.state.global_step == 5
    logged = {step: row["general_forgetting"] for step, row in rows_with(trainer, "general_loss").items()}
    assert logged == {step: pytest.approx(forgetting[step], abs=1e-5) for step in range(6)}
    by_hand = evaluate_perplexity(trainer.model, tiny_tokenizer, GENERAL).nll_per_token
    assert rows_with(trainer, "general_loss")[5]["general_loss"] == pytest.approx(by_hand, rel=1e-5)
    assert "step 5: training stops: held-out loss has risen" in caplog.text
    saved = sorted(path.name for path in (tmp_path / "guarded").glob("checkpoint-*"))
    assert saved == ["checkpoint-4", "checkpoint-5"]  # the step it stopped at is not lost
    if kind == "sft":
        assert sorted(rows_with(trainer, "eval_loss")) == [4, 5]


def test_looks_only_when_due(tiny_model, tiny_tokenizer, tmp_path):
    forgetting, _ = forgetting_unguarded("plain", tiny_model, tiny_tokenizer, tmp_path)
    trainer = make_trainer("plain", tiny_model, tiny_tokenizer, tmp_path, max_steps=8)
    guard = ForgettingGuard(trainer, HELD_OUT, max_forgetting=forgetting[4], every_n_steps=3)
    trainer.add_callback(guard)
    trainer.train()
    assert sorted(rows_with(trainer, "general_loss")) == [0, 3, 6] and trainer.state.global_step == 6


def test_stops_after_an_evaluation(tiny_model, tiny_tokenizer, tmp_path):
    teach(tiny_model, tiny_tokenizer, GENERAL)
    options = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 4, "max_steps": 8}
    trainer = make_trainer("sft", tiny_model, tiny_tokenizer, tmp_path, **options)
    trainer.add_callback(ForgettingGuard(trainer, HELD_OUT, max_forgetting=1e-6))
    trainer.train()
    assert trainer.state.global_step == 2 and (tmp_path / "checkpoint-2").is_dir()
    assert [row["step"] for row in trainer.state.log_history if "eval_loss" in row] == [2]  # not evaluated twice


@KINDS
def test_lowers_the_learning_rate_while_forgetting_rises(kind, tiny_model, tiny_tokenizer, tmp_path):
    forgetting, _ = forgetting_unguarded(kind, tiny_model, tiny_tokenizer, tmp_path, lr_scheduler_type="constant")
    trainer = make_trainer(kind, tiny_model, tiny_tokenizer, tmp_path, max_steps=8, lr_scheduler_type="constant")
    bound = max(forgetting[step] for step in range(8)) / 3
    options = {"max_forgetting": bound, "action": "lower_lr", "factor": 0.25, "every_n_steps": 1}
    trainer.add_callback(ForgettingGuard(trainer, HELD_OUT, **options))
    trainer.train()
    rows = rows_with(trainer, "general_loss")
    scale, highest = 1.0, bound
    for step in range(8):
        if rows[step]["general_forgetting"] > highest:
            scale, highest = scale * 0.25, rows[step]["general_forgetting"]
        assert rows[step]["forgetting_guard_lr_scale"] == scale
        assert rows_with(trainer, "learning_rate")[step + 1]["learning_rate"] == pytest.approx(1e-2 * scale)
    assert scale < 1.0 and trainer.state.global_step == 8
    assert rows[8]["general_forgetting"] < forgetting[8]


@pytest.mark.parametrize("scheduler", ["cosine", "constant_with_warmup", "reduce_lr_on_plateau"])
def test_a_lowered_rate_stays_lowered(scheduler, tiny_model, tiny_tokenizer, tmp_path):
    options = {"max_steps": 6, "lr_scheduler_type": scheduler, "warmup_steps": 2}
    if scheduler == "reduce_lr_on_plateau":
        options |= {"eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "loss", "save_steps": 2}
    start = teach(tiny_model, tiny_tokenizer, GENERAL)

    def rates(max_forgetting):
        tiny_model.load_state_dict(start)
        trainer = make_trainer("sft", tiny_model, tiny_tokenizer, tmp_path, **options)
        guard = {"max_forgetting": max_forgetting, "action": "lower_lr", "every_n_steps": 3}
        trainer.add_callback(ForgettingGuard(trainer, HELD_OUT, **guard))
        trainer.train()
        return [row["learning_rate"] for row in rows_with(trainer, "learning_rate").values()]

    planned, lowered = rates(100.0), rates(1e-9)
    after = 0.5 if scheduler != "reduce_lr_on_plateau" else 0.125  # also looked at the evaluations, steps 2 and 4
    assert lowered[:2] == planned[:2] and lowered[4:] != planned[4:]
    assert lowered[5] == pytest.approx(planned[5] * after)


def test_a_stopped_run_stops_again_when_it_is_resumed(tiny_model, tiny_tokenizer, tmp_path, caplog):
    start = teach(tiny_model, tiny_tokenizer, GENERAL)

    def run(max_forgetting, **options):
        tiny_model.load_state_dict(start)
        trainer = make_trainer("sft", tiny_model, tiny_tokenizer, tmp_path, max_steps=8, save_strategy="steps")
        guarded = HELD_OUT | {"domain": DOMAIN}
        trainer.add_callback(ForgettingGuard(trainer, guarded, max_forgetting=max_forgetting, every_n_steps=3))
        trainer.add_callback(PerplexityCallback(trainer, HELD_OUT))  # logs the same name, but not all that is guarded
        trainer.train(**options)
        return trainer.state

    assert run(1e-6).global_step == 3
    state = run(1e-6, resume_from_checkpoint=True)
    assert state.global_step == 4 and "training stops after one more step, as at step 3" in caplog.text
    assert [row["step"] for row in state.log_history if "domain_forgetting" in row] == [0, 3, 4]
    assert run(1e3, resume_from_checkpoint=str(tmp_path / "checkpoint-3")).global_step == 8


def test_a_checkpoint_without_the_loss_at_step_0(tiny_model, tiny_tokenizer, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2}
    make_trainer("sft", tiny_model, tiny_tokenizer, tmp_path, max_steps=2, **options).train()
    trainer = make_trainer("sft", tiny_model, tiny_tokenizer, tmp_path, max_steps=3, **options)
    trainer.add_callback(ForgettingGuard(trainer, HELD_OUT, every_n_steps=1))
    with pytest.raises(ValueError, match="does not know the loss of general at step 0"):
        trainer.train(resume_from_checkpoint=True)


def test_bad_options(tiny_model, tiny_tokenizer, tmp_path):
    trainer = make_trainer("sft", tiny_model, tiny_tokenizer, tmp_path)
    for options, message in (
        ({"max_forgetting": 0.0}, "max_forgetting must be more than 0"),
        ({"max_forgetting": float("nan")}, "max_forgetting must be more than 0"),
        ({"action": "pause"}, "action must be 'stop' or 'lower_lr'"),
        ({"factor": 1.0}, "factor must lie between 0 and 1"),
        ({"every_n_steps": None}, "pass every_n_steps, or set eval_strategy"),
    ):
        with pytest.raises(ValueError, match=message):
            ForgettingGuard(trainer, HELD_OUT, **{"every_n_steps": 1} | options)
    with pytest.raises(ValueError, match="nothing to guard"):
        ForgettingGuard(trainer, {}, landscape=DOMAIN, every_n_steps=1)


def test_chained_schedulers_are_lowered_and_others_refused(tiny_model):
    optimizer = torch.optim.SGD(tiny_model.parameters(), lr=1.0)
    parts = [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0) for _ in range(2)]
    chained = torch.optim.lr_scheduler.SequentialLR(optimizer, parts, milestones=[2])

    class Holder:
        pass

    holder = Holder()
    holder.optimizer, holder.lr_scheduler = optimizer, chained
    lower_learning_rate(holder, 0.5)
    for _ in range(4):
        optimizer.step()
        chained.step()
        assert optimizer.param_groups[0]["lr"] == 0.5
    holder.lr_scheduler = Holder()
    with pytest.raises(ValueError, match="learning rate of a Holder cannot be lowered"):
        lower_learning_rate(holder, 0.5)
