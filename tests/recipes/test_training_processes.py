import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from recipe_runs import LORA, held_out_losses, losses_of, start_recipe, train_here
from warm_processes import ROOT, finish

from hf_ppl_select.data.saving import load_json, save_json
from training.checkpoints import list_files

pytest_plugins = ["recipe_fixtures"]
pytestmark = pytest.mark.slow

KILLED_AT_12 = """
import os, signal
from transformers import TrainerState
save = TrainerState.save_to_json
def save_or_die(self, path):
    if self.global_step == 12:
        os.kill(os.getpid(), signal.SIGKILL)
    save(self, path)
TrainerState.save_to_json = save_or_die
"""


def test_two_processes_train_as_one_with_double_the_batch(corpus, common, tmp_path):
    common |= {"dataset_name": corpus}
    two = common | {"output_dir": str(tmp_path / "two"), "per_device_train_batch_size": 2}
    earlier = {"model": "m", "seed": 0, "num_tokens": 9, "train": {}}  # a finished run, and its checkpoint
    (tmp_path / "two" / "checkpoint-99").mkdir(parents=True)
    (tmp_path / "two" / "checkpoint-99" / "trainer_state.json").write_text('{"global_step": 99}')
    list_files(tmp_path / "two" / "checkpoint-99")
    save_json(tmp_path / "two" / "metrics.json", earlier, kind="training_metrics", version=1)
    (tmp_path / "two.yaml").write_text(str(two).replace("True", "true").replace("False", "false"))
    launcher = "from accelerate.commands.accelerate_cli import main; main()"
    config = ROOT / "recipes" / "configs" / "accelerate" / "cpu_2.yaml"
    launched = subprocess.run(
        [sys.executable, "-c", launcher, "launch", "--config_file", str(config)]
        + [str(ROOT / "recipes" / "cpt.py"), "--config", str(tmp_path / "two.yaml")],
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert launched.returncode == 0, launched.stderr[-3000:]
    assert launched.stdout.count("Saved the model and metrics.json") == 1
    assert launched.stdout.count("two gets another model: checkpoint-99 of the earlier one removed") == 1
    assert not (tmp_path / "two" / "checkpoint-99").exists()
    one = train_here("cpt", common | {"per_device_train_batch_size": 4})
    two = load_json(tmp_path / "two" / "metrics.json", kind="training_metrics", version=1)
    assert (one["num_processes"], two["num_processes"]) == (1, 2)
    assert two["num_tokens"] == one["num_tokens"]
    assert len(losses_of(two)) == len(losses_of(one)) > 10
    assert losses_of(two) == pytest.approx(losses_of(one), abs=1e-3)
    assert held_out_losses(two) == pytest.approx(held_out_losses(one), abs=1e-3)


def test_a_killed_run_goes_on_to_the_loss_of_an_unbroken_one(corpus, chats, common, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 6, "perplexity_steps": 8, "num_train_epochs": 2}
    common |= saving
    settings = {
        "cpt": common | {"dataset_name": corpus},
        "sft": common | LORA | {"lora_dropout": 0.1, "dataset_name": chats, "assistant_only_loss": True},
    }
    settings["sft"] |= {"per_device_train_batch_size": 2, "eval_file": chats}
    killed = {}
    for recipe, config in settings.items():
        config["output_dir"] = str(tmp_path / f"{recipe}-killed")
        killed[recipe] = start_recipe(recipe, config, before=KILLED_AT_12)
    for recipe, config in settings.items():
        done = finish(killed[recipe])
        assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
        folder = Path(config["output_dir"])
        assert (folder / "checkpoint-12").exists() and not (folder / "checkpoint-12" / "trainer_state.json").exists()
        resumed = train_here(recipe, config | {"resume_from_checkpoint": True})
        unbroken = train_here(recipe, config | {"output_dir": str(tmp_path / f"{recipe}-unbroken")})
        assert resumed["resumed_from"] == str(folder / "checkpoint-6") and unbroken["resumed_from"] is None
        assert len(losses_of(unbroken)) > 18
        assert losses_of(resumed) == pytest.approx(losses_of(unbroken), abs=1e-4)
        assert held_out_losses(resumed) == pytest.approx(held_out_losses(unbroken), abs=1e-4)
        assert resumed["num_tokens"] == unbroken["num_tokens"]
        for name in ("held_out_base.json", "held_out.json"):
            ours, theirs = (
                load_json(Path(run) / name, kind="text_likelihoods", version=1)["domain"]
                for run in (folder, tmp_path / f"{recipe}-unbroken")
            )
            assert ours["nll_sum"] == pytest.approx(theirs["nll_sum"], abs=1e-3)
