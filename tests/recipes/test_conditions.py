"""Law points are only added to those that were measured under the same conditions: whatever decides the numbers."""

import contextlib
import json
from types import SimpleNamespace

import pytest
from datasets import Dataset
from faults.kinds import KINDS, scored

import fit_law
from fitting.conditions import check_same_settings
from hf_ppl_select.probes.design import ProbeTarget
from hf_ppl_select.probes.plan import ProbePlan
from hf_ppl_select.scoring.perplexity import PerplexityScorer
from select_subset import select_on_the_way_in

ROWS = Dataset.from_dict(scored(60))
PLAN = ProbePlan((ProbeTarget("probe-00", 20.0, 5.0, "linear"),), 1000, (500, 1000))


@pytest.fixture
def check(tiny_model_dir, tmp_path):
    """Runs the check with some options changed."""
    (tmp_path / "eval.jsonl").write_text('{"text": "fever and cough"}\n')
    (tmp_path / "general.jsonl").write_text('{"text": "the capital of France"}\n')

    def run(*options, rows=ROWS, plan=PLAN):
        given = ["--dataset_name", "scored", "--model_name_or_path", tiny_model_dir, "--use_cpu", "--bf16", "false"]
        given += ["--eval_file", tmp_path / "eval.jsonl", "--general_eval_file", tmp_path / "general.jsonl"]
        given += ["--output_dir", tmp_path / "law", "--column", "perplexity", *options]
        parsed = fit_law.make_parser().parse_args_and_config(args=list(map(str, given)))
        return check_same_settings(tmp_path / "law", *parsed, rows, plan)

    run()
    (tmp_path / "law" / "points.jsonl").touch()  # law points, whatever they are
    return run


def test_settings_of_probes_without_law_points_are_forgotten(check, tmp_path):
    path = tmp_path / "law" / "settings.json"
    (tmp_path / "law" / "points.jsonl").unlink()
    with pytest.raises(ValueError, match="another learning_rate"):
        check("--learning_rate", 0.5, "--probe_index", 0)  # others of the array may be on their way
    check("--learning_rate", 0.5)
    assert json.loads(path.read_text())["learning_rate"] == 0.5
    path.unlink()
    check("--fit_only")  # where there is nothing to fit
    assert not path.exists()
    check()
    own = tmp_path / "law" / "probes" / "probe-00" / "points.jsonl"
    own.parent.mkdir(parents=True)
    own.touch()
    with pytest.raises(ValueError, match="another learning_rate"):
        check("--learning_rate", 0.5)


def test_what_decides_no_number_may_change(check, tmp_path):
    options = ["--logging_steps", 7, "--save_strategy", "steps", "--report_to", "none", "--run_name", "x"]
    options += ["--per_device_eval_batch_size", 3, "--lora_r", 4, "--dataloader_num_workers", 1]
    moved = tmp_path / "eval-moved.jsonl"
    moved.write_text((tmp_path / "eval.jsonl").read_text())
    assert check(*options, "--eval_file", moved).startswith("scored (perplexity sha256:")


CHANGED = {  # by what the error must name
    "lr_scheduler_type": "cosine",
    "weight_decay": 0.1,
    "learning_rate": 3e-4,
    "warmup_steps": 5,
    "optim": "adafactor",
    "adam_beta2": 0.95,
    "max_grad_norm": 0.5,
    "num_train_epochs": 2,
    "per_device_train_batch_size": 3,
    "gradient_accumulation_steps": 2,
    "max_length": 64,
    "seed": 1,
    "bf16": "true",
    "label_smoothing_factor": 0.1,
    "neftune_noise_alpha": 1.0,
    "dtype": "bfloat16",
    "attn_implementation": "eager",
    "use_peft": "true",
    "loss_type": "dft",
}


@pytest.mark.parametrize("name", CHANGED)
def test_another_way_of_training_is_refused(check, name):
    with pytest.raises(ValueError, match=f"made with another .*{name}.* choose another --output_dir"):
        check(f"--{name}", CHANGED[name])


def test_another_adapter_is_refused(check, tmp_path):
    (tmp_path / "law" / "settings.json").unlink()
    check("--use_peft", "--lora_r", 4)
    with pytest.raises(ValueError, match="another lora_r"):
        check("--use_peft", "--lora_r", 8)


@pytest.mark.parametrize("name", ["eval", "general"])
def test_other_texts_under_the_same_name_are_refused(check, tmp_path, name):
    path = tmp_path / f"{name}.jsonl"
    path.write_text(path.read_text().replace("the", "one").replace("fever", "chill"))
    with pytest.raises(ValueError, match=f"another .*{'eval_file' if name == 'eval' else 'general_eval_file'}"):
        check()
    path.unlink()
    check("--fit_only")  # which measures nothing


def test_other_chunks_weights_or_measuring_are_refused(check, tiny_model_dir, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="another texts"):  # with the same scores
        check(rows=ROWS.map(lambda row: {"text": row["text"].upper()}))
    with pytest.raises(ValueError, match="another scores"):
        check(rows=ROWS.map(lambda row: {"perplexity": row["perplexity"] * 1.0000001}))
    with pytest.raises(ValueError, match="another ladder"):
        check(plan=ProbePlan(PLAN.probes, 1000, (250, 1000)))
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="another measuring"):
        patch.setattr(PerplexityScorer, "_version", 99)
        check()
    path = next(path for path in (tmp_path / "tiny-model").iterdir() if path.suffix == ".safetensors")
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match="another model_weights"):
        check()


def test_settings_of_an_earlier_version_are_refused(check, tmp_path):
    path = tmp_path / "law" / "settings.json"
    document = json.loads(path.read_text())
    del document["checksum"]
    path.write_text(json.dumps(document | {"schema_version": 2}))
    with pytest.raises(ValueError, match="schema version 2"):
        check()


def test_a_resumed_run_trains_on_the_subset_it_asks_for(tmp_path):
    """`cpt.py --num_tokens` and sft.py: what select_on_the_way_in takes from an earlier run."""

    Dataset.from_dict(scored(300)).to_parquet(tmp_path / "scored.parquet")
    Dataset.from_dict(scored(300, seed=1)).to_parquet(tmp_path / "others.parquet")
    KINDS["law.json"][0](tmp_path / "law.json")
    document = json.loads((tmp_path / "law.json").read_text())
    del document["checksum"]
    document["params"]["a0"] += 1e-9
    (tmp_path / "law2.json").write_text(json.dumps(document))

    class Args(SimpleNamespace):
        def main_process_first(self, **_):
            return contextlib.nullcontext()

    def select(resume, seed=0, **changes):
        asked = {"num_tokens": 3000, "strategy": "low", "dataset_name": "scored.parquet", "law": None} | changes
        asked["dataset_name"] = str(tmp_path / asked["dataset_name"])
        asked["law"] = asked["law"] and str(tmp_path / asked["law"])
        script = SimpleNamespace(dataset_config=None, dataset_train_split="train", **asked)
        checkpoint = "checkpoint-2" if resume else None
        run = Args(output_dir=str(tmp_path / "out"), seed=seed, resume_from_checkpoint=checkpoint, process_index=0)
        return select_on_the_way_in(script, run)

    folder = select(resume=False, law="law.json")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert select(resume=True, law="law.json") == folder
    for changes, message in (
        ({"num_tokens": 1500}, "another --num_tokens,"),
        ({"strategy": "high"}, "another --strategy,"),
        ({"seed": 1}, "another --seed,"),
        ({"law": "law2.json"}, "another --law,"),
        ({"law": None}, "another --law,"),
        ({"dataset_name": "others.parquet"}, "another --dataset_name,"),
    ):
        with pytest.raises(ValueError, match=message):
            select(**{"resume": True, "law": "law.json", **changes})
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
