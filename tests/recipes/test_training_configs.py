import json
import runpy

import pytest
import yaml
from recipe_runs import ANSWERS, QUESTIONS, TEXTS, train_here, write_jsonl
from warm_processes import ROOT

pytest_plugins = ["recipe_fixtures"]

CONFIGS = ROOT / "recipes" / "configs"
TRAINING_CONFIGS = sorted(path.stem for kind in ("cpt", "sft") for path in CONFIGS.glob(f"{kind}_*.yaml"))
LAUNCH_CONFIGS = sorted(path.stem for path in (CONFIGS / "accelerate").glob("*.yaml"))


def test_there_is_a_config_for_every_machine():
    for recipe in ("cpt", "sft"):
        expected = {"full", "lora", "lora_small_gpu", "full_big_gpu", "cpu"}
        assert {f"{recipe}_{name}" for name in expected} <= set(TRAINING_CONFIGS)
    assert {"cpu_2", "ddp", "fsdp", "deepspeed_zero2", "deepspeed_zero3"} <= set(LAUNCH_CONFIGS)


@pytest.mark.parametrize("name", TRAINING_CONFIGS)
def test_training_configs_parse_and_say_how_to_run_them(name):
    file = CONFIGS / f"{name}.yaml"
    recipe = name.partition("_")[0]
    parser = runpy.run_path(str(ROOT / "recipes" / f"{recipe}.py"))["make_parser"]()
    script_args, training_args, model_args = parser.parse_args_and_config(["--config", str(file), "--use_cpu"])
    assert "/" in model_args.model_name_or_path and "/" in script_args.dataset_name
    assert ("SmolLM2-135M" in model_args.model_name_or_path) or name.endswith(("_gpu", "_cpu"))
    assert model_args.use_peft == ("_lora" in name)
    assert training_args.output_dir == f"outputs/{name}" and isinstance(training_args.learning_rate, float)
    header = file.read_text().partition("\nmodel_name_or_path")[0]
    assert all(line.startswith("#") for line in header.splitlines())
    assert f"recipes/{recipe}.py --config recipes/configs/{name}.yaml" in header and "Cost" in header
    with pytest.raises(ValueError, match="learning_rat"):
        parser.parse_args_and_config(["--config", str(file), "--use_cpu", "--learning_rat", "1"])


@pytest.mark.parametrize("name", TRAINING_CONFIGS)
def test_tokens_a_step_are_what_the_comment_says(name):
    text = (CONFIGS / f"{name}.yaml").read_text()
    config = yaml.safe_load(text)
    if "tokens a step" not in text.partition("\nmodel_name_or_path")[2]:
        return
    said = int(text.partition(" tokens a step")[0].rpartition("# ")[2].replace(",", ""))
    sequences = config["per_device_train_batch_size"] * config["gradient_accumulation_steps"]
    assert said == sequences * config["max_length"] * (8 if "big_gpu" in name else 1)


@pytest.mark.parametrize("name", LAUNCH_CONFIGS)
def test_launch_configs_are_what_accelerate_reads(name):
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    file = CONFIGS / "accelerate" / f"{name}.yaml"
    load_config_from_file(str(file))  # an unknown key raises
    parser = launch_command_parser()
    known = {action.dest for action in parser._actions}
    config = yaml.safe_load(file.read_text())
    options = config.get("fsdp_config", {}) | config.get("deepspeed_config", {})
    assert set(options) <= known  # these are not checked by accelerate
    args, defaults, _ = _validate_launch_command(parser.parse_args(["--config_file", str(file), "cpt.py"]))
    for option, value in options.items():
        assert str(getattr(args, option)) == str(value)
    kind = next(kind for kind in ("fsdp", "deepspeed", "") if name.startswith(kind))
    assert (args.use_fsdp, args.use_deepspeed) == (kind == "fsdp", kind == "deepspeed")
    assert args.multi_gpu == (kind == "")  # which starts num_processes processes, on GPUs or not
    assert args.num_processes == (2 if name == "cpu_2" else 8) and defaults.use_cpu == (name == "cpu_2")
    header = file.read_text().partition("\ncompute_environment")[0]
    assert f"accelerate launch --config_file recipes/configs/accelerate/{name}.yaml" in header
    for word in header.split():
        if word.startswith("recipes/"):
            assert (ROOT / word).is_file()


@pytest.mark.slow
def test_the_cpu_configs_run_end_to_end(model_dir, tmp_path):
    texts = write_jsonl(tmp_path / "texts.jsonl", [{"content": text} for text in TEXTS])
    pairs = [{"Question": q, "Answer": a} for q, a in zip(QUESTIONS, ANSWERS, strict=True)]
    pairs = write_jsonl(tmp_path / "pairs.jsonl", pairs)
    for recipe, data in (("cpt", texts), ("sft", pairs)):
        config = yaml.safe_load((CONFIGS / f"{recipe}_cpu.yaml").read_text())
        config |= {"model_name_or_path": model_dir, "dataset_name": data, "max_steps": 4}
        config |= {"dataset_train_split": "train[4:]", "dataset_test_split": "train[:4]"}
        metrics = train_here(recipe, config | {"output_dir": str(tmp_path / recipe), "disable_tqdm": True})
        assert [row["step"] for row in metrics["log_history"] if "domain_loss" in row] == [0, 4]
        assert json.loads((tmp_path / recipe / "held_out.json").read_text())["domain"]["num_tokens"]
