"""A run goes on from the newest checkpoint that is whole, and ends as if nothing had happened."""

import os
import shutil
import warnings

import pytest
import torch
from recipe_runs import TEXTS, train_here, write_jsonl
from safetensors.torch import load_file

pytest_plugins = ["recipe_fixtures"]
FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "checkpoint.json")


@pytest.fixture
def config(common, tmp_path):
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"text": text} for text in TEXTS])
    return common | {
        "dataset_name": rows,
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 2,
        "logging_steps": 4,
    }


def damage(path, how):
    content = path.read_bytes()
    if how == "lost":
        return path.unlink()
    half = len(content) // 2
    flipped = content[:half] + bytes([content[half] ^ 16]) + content[half + 1 :]
    path.write_bytes({"cut": content[:half], "emptied": b"", "flipped": flipped}[how])


@pytest.mark.slow
def test_damaged_checkpoints_are_passed_over_and_the_end_is_the_same(config, tmp_path):
    undisturbed = train_here("cpt", config)
    weights = load_file(tmp_path / "run" / "model.safetensors")
    shutil.rmtree(tmp_path / "run" / "checkpoint-6")  # as if killed after step 4
    shutil.copytree(tmp_path / "run", tmp_path / "kept")
    cases = [(name, how) for name in FILES for how in ("cut", "emptied", "flipped", "lost")]
    cases.remove(("checkpoint.json", "lost"))  # then it is one of an earlier version
    for name, how in cases[:: len(cases) // 6]:
        shutil.rmtree(tmp_path / "run")
        shutil.copytree(tmp_path / "kept", tmp_path / "run")
        damage(tmp_path / "run" / "checkpoint-4" / name, how)
        with pytest.warns(UserWarning, match=f"checkpoint-4 is passed over: .*{name}"):
            resumed = train_here("cpt", config | {"resume_from_checkpoint": "true"})
        assert resumed["resumed_from"].endswith("checkpoint-2")
        for key, value in load_file(tmp_path / "run" / "model.safetensors").items():
            assert torch.equal(value, weights[key]), (name, how)
        # the loss of all steps, also of those before
        assert resumed["train"]["train_loss"] == pytest.approx(undisturbed["train"]["train_loss"], rel=1e-6)
        assert resumed["log_history"][-1]["train_loss"] == resumed["train"]["train_loss"]


def test_a_run_that_was_killed_after_its_last_step_trains_no_other(config, tmp_path):
    config |= {"max_steps": 3, "save_steps": 3}  # in the middle of an epoch
    undisturbed = train_here("cpt", config)
    weights = load_file(tmp_path / "run" / "model.safetensors")
    (tmp_path / "run" / "model.safetensors").unlink()
    resumed = train_here("cpt", config | {"resume_from_checkpoint": "true"})
    assert resumed["resumed_from"].endswith("checkpoint-3") and resumed["num_tokens"] == undisturbed["num_tokens"]
    assert max(row["step"] for row in resumed["log_history"]) == 3
    assert resumed["train"]["train_loss"] == pytest.approx(undisturbed["train"]["train_loss"], rel=1e-6)
    for key, value in load_file(tmp_path / "run" / "model.safetensors").items():
        assert torch.equal(value, weights[key])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["cut", "emptied", "flipped", "lost"])
def test_every_file_of_a_checkpoint_is_looked_at(name, how, tmp_path):
    from types import SimpleNamespace

    from training.checkpoints import begin_checkpoint, checkpoint_to_resume, list_files

    for step in (2, 10):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        for file in FILES[:-1]:
            (folder / file).write_text('{"global_step": 2, "more": "0123456789"}')
        list_files(folder, 12.5)
    args = SimpleNamespace(resume_from_checkpoint="true", output_dir=str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert checkpoint_to_resume(args).endswith("checkpoint-10")
    damage(tmp_path / "checkpoint-10" / name, how)
    if (name, how) == ("checkpoint.json", "lost"):  # as of an earlier version
        assert checkpoint_to_resume(args).endswith("checkpoint-10")
        damage(tmp_path / "checkpoint-10" / "trainer_state.json", "cut")
        name = "trainer_state.json"
    with pytest.warns(UserWarning, match=f"checkpoint-10 is passed over: .*{name}"):
        assert checkpoint_to_resume(args).endswith("checkpoint-2")
    args.resume_from_checkpoint = str(tmp_path / "checkpoint-10")
    with pytest.raises(ValueError, match=f"no complete checkpoint; .*{name}"):
        checkpoint_to_resume(args)
    shutil.copytree(tmp_path / "checkpoint-2", tmp_path / "checkpoint-20")
    begin_checkpoint(tmp_path / "checkpoint-20")  # and killed before its files were listed
    args.resume_from_checkpoint = "true"
    with pytest.warns(UserWarning, match="checkpoint-20 is passed over: it was not finished"):
        assert checkpoint_to_resume(args).endswith("checkpoint-2")


@pytest.mark.parametrize("recipe", ["cpt", "sft"])
def test_a_new_run_is_not_gone_on_with_from_another_one_s_checkpoint(recipe, config, tmp_path, monkeypatch, capsys):
    from training.trainer import RecipeTrainer

    if recipe == "sft":
        rows = [{"prompt": "What?", "completion": text} for text in TEXTS]
        config |= {"dataset_name": write_jsonl(tmp_path / "answers.jsonl", rows)}
        config |= {"eval_file": config["dataset_name"]}
    folder, real = tmp_path / "run", RecipeTrainer.training_step
    train_here(recipe, config | {"max_steps": 4})
    assert {path.name for path in folder.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}

    def killed(self, *args, **kwargs):
        if self.state.global_step == 1:
            raise KeyboardInterrupt
        return real(self, *args, **kwargs)

    monkeypatch.setattr(RecipeTrainer, "training_step", killed)
    with pytest.raises(KeyboardInterrupt):
        train_here(recipe, config | {"seed": 7})
    assert "run gets another model: held_out.json, held_out_base.json, checkpoint-4, checkpoint-2 of" in (
        capsys.readouterr().out
    )
    monkeypatch.setattr(RecipeTrainer, "training_step", real)
    with pytest.raises(ValueError, match="run has no complete checkpoint; leave --resume_from_checkpoint out"):
        train_here(recipe, config | {"seed": 7, "resume_from_checkpoint": "true"})


def test_a_new_run_loses_no_checkpoint_of_one_that_did_not_finish(tmp_path):
    from types import SimpleNamespace

    from hf_ppl_select.data.saving import save_json
    from training.checkpoints import checkpoint_to_resume, list_files, remove_checkpoints

    def checkpoint(step, listed=True):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        for file in FILES[:-1]:
            (folder / file).write_text(f'{{"global_step": {step}}}')
        if listed:
            list_files(folder, 12.5)
            os.utime(folder / "checkpoint.json", (step, step))
        return folder

    def finish(step, **train):
        metrics = {"model": "m", "recipe": "cpt", "dataset": "d", "seed": 0, "num_tokens": 9, "train": train}
        save_json(tmp_path / "metrics.json", metrics, kind="training_metrics", version=1)
        os.utime(tmp_path / "metrics.json", (step, step))

    args = SimpleNamespace(resume_from_checkpoint=None, output_dir=str(tmp_path))
    assert checkpoint_to_resume(args) is None
    checkpoint(2)
    with pytest.raises(ValueError, match="checkpoint-2 would be .* --resume_from_checkpoint true; or move"):
        checkpoint_to_resume(args)
    finish(3, diverged_at_step=3)  # which leaves no model
    with pytest.raises(ValueError, match="checkpoint-2 would be taken for one of the new run"):
        checkpoint_to_resume(args)
    finish(3)
    assert checkpoint_to_resume(args) is None
    unfinished = checkpoint(20)  # of a later run, killed
    with pytest.raises(ValueError, match="checkpoint-20 would be taken for one of the new run"):
        checkpoint_to_resume(args)
    damage(unfinished / "optimizer.pt", "cut")  # nothing to go on from
    assert checkpoint_to_resume(args) is None
    shutil.copytree(tmp_path / "checkpoint-2", tmp_path / "checkpoint-best")  # a name of the user's
    assert remove_checkpoints(tmp_path) == ["checkpoint-2"]  # the other may be one that a run is writing just now
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-20", "checkpoint-best", "metrics.json"]
    checkpoint(1, listed=False)  # of an earlier version: not ours to remove, and one to go on from
    with pytest.raises(ValueError, match="checkpoint-1 would be taken for one of the new run"):
        checkpoint_to_resume(args)
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(ValueError, match="checkpoint-1 would be taken for one of the new run"):
        checkpoint_to_resume(args)
    assert remove_checkpoints(tmp_path) == []
