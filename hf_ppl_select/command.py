"""The console command: `hf-ppl-select score [options]` runs recipes/score.py, and so on.

The recipes stay scripts. A wheel has their folder inside the package (setup.py puts it there), a checkout beside it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

PROGRAM = "hf-ppl-select"
COMMANDS = {  # name: script, what it does
    "deduplicate": ("deduplicate", "drops repeated documents, lines and sentences, before chunking"),
    "deduplicate-ray": ("deduplicate_ray", "drops the same documents on a Ray cluster"),
    "score": ("score", "documents, chunks, perplexities: scores a corpus; its landscape"),
    "score-ngrams": ("score_ngrams", "adds ngram_ratio: likeness to trusted text, without a model"),
    "score-ray": ("score_ray", "the same on a Ray cluster"),
    "fit-law": ("fit_law", "designs and trains probes, compares law forms, fits the law"),
    "select": ("select_subset", "selects by law or target, also larger than memory; card, push"),
    "select-ray": ("select_ray", "the same rows on a Ray cluster"),
    "cpt": ("cpt", "continual pre-training with TRL, full or LoRA"),
    "sft": ("sft", "fine-tuning on prompt/completion or messages, full or LoRA"),
    "benchmarks": ("run_benchmarks", "multiple-choice benchmarks, with intervals"),
    "report": ("report", "compares finished runs: intervals, paired tests, a plot"),
    "study": ("study", "every way to choose, on corpora drawn anew, by a plan fixed beforehand"),
    "quickstart": ("quickstart", "all of the above on a small scale, and a report"),
}


def recipes_folder() -> Path:
    """Where the recipes and their configs/ lie."""
    package = Path(__file__).resolve().parent
    return folder if (folder := package / "recipes").is_dir() else package.parent / "recipes"


def main() -> None:
    """Run the recipe that the command line names, as `python recipes/<script>.py` would."""
    command, *options = sys.argv[1:] or [""]
    if command in ("-h", "--help"):
        print(_help())
        return
    if command not in COMMANDS:
        problem = f"there is no command {command!r}" if command else "no command"
        print(f"{PROGRAM}: error: {problem}; the commands are {', '.join(COMMANDS)}.", file=sys.stderr)
        sys.exit(2)
    folder = recipes_folder()
    if "--config" in options[:-1]:  # recipes/configs/x.yaml is found from anywhere
        place = options.index("--config") + 1
        if not Path(options[place]).exists() and (folder.parent / options[place]).is_file():
            options[place] = str(folder.parent / options[place])
    script = folder / f"{COMMANDS[command][0]}.py"
    sys.path.insert(0, str(folder))
    sys.argv = [f"{PROGRAM} {command}", *options]  # what usage lines say; runpy.run_path would put the path here
    recipe = sys.modules["__main__"] = ModuleType("__main__")
    recipe.__file__ = str(script)
    exec(compile(script.read_bytes(), script, "exec"), recipe.__dict__)


def as_typed(text: str) -> str:
    """`text` with `python recipes/score.py` as `hf-ppl-select score`, and so on, where that is how we were called."""
    if not sys.argv[0].startswith(f"{PROGRAM} "):
        return text
    for name, (script, _) in COMMANDS.items():
        text = text.replace(f"python recipes/{script}.py", f"{PROGRAM} {name}")
        text = text.replace(f" recipes/{script}.py", f" -m hf_ppl_select {name}")  # accelerate launch
    return text.replace("recipes/configs/accelerate", str(recipes_folder() / "configs" / "accelerate"))


def _help() -> str:
    commands = "\n".join(f"  {name:<16}{about}" for name, (_, about) in COMMANDS.items())
    return f"""usage: {PROGRAM} COMMAND [--config FILE] [--option value ...]

{commands}

{PROGRAM} COMMAND --help lists a command's options and has examples to paste.

In several processes, score, cpt and sft:
  accelerate launch -m hf_ppl_select cpt --config recipes/configs/cpt_full.yaml

The commands are scripts to read and copy, with configurations in YAML, in
  {recipes_folder()}
--config recipes/configs/NAME.yaml finds those from anywhere."""
