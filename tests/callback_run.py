"""A run with every callback, for tests: called there, or started in processes of its own (also by torchrun).

    torchrun --nproc_per_node 2 tests/callback_run.py MODEL_FOLDER OUTPUT_FOLDER '{"plain": {"max_forgetting": 0.1}}'

Each process writes its log history, and how it ended, to OUTPUT_FOLDER/<kind>/process-<rank>.json.
"""

import json
import os
import signal
import sys
from pathlib import Path

from callback_trainers import DOMAIN, GENERAL, MOMENTS, make_trainer
from transformers import TrainerCallback

from hf_ppl_select.likelihood.engine import LikelihoodEngine, load_model
from trainer_callbacks import BenchmarkCallback, ForgettingGuard, PerplexityCallback, ScalingLawCallback


class KillAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def run(kind, model_folder, folder, *, max_forgetting=100.0, action="stop", kill_at=None, resume=None):
    """Train 8 steps; what was logged, and how many sequences the engine was given in each call."""
    rank, num_processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    own_folder = Path(folder) / f"{kind}-{rank}"
    own_folder.mkdir(parents=True, exist_ok=True)
    model, tokenizer = load_model(model_folder, device="cpu")
    trainer = make_trainer(
        kind,
        model,
        tokenizer,
        Path(folder) / kind,
        max_steps=8,
        save_strategy="steps",
        save_steps=2,
        per_device_train_batch_size=4 // num_processes,
        include_num_input_tokens_seen="non_padding",
    )
    questions = [{"question": f"What is {i}?", "choices": ["yes", "no"], "answer": i % 2} for i in range(6)]
    (own_folder / "own.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    law_options = {"ladder": [80, 300], "moments": MOMENTS}
    guard = {"max_forgetting": max_forgetting, "action": action, "every_n_steps": 1}
    for callback in (
        PerplexityCallback(trainer, {"domain": DOMAIN}, landscape=DOMAIN, every_n_steps=3),
        ForgettingGuard(trainer, {"general": GENERAL}, **guard),
        BenchmarkCallback(trainer, str(own_folder / "own.jsonl"), every_n_steps=4),
        ScalingLawCallback(trainer, Path(folder) / kind / "points.jsonl", "run", DOMAIN, **law_options),
        *([KillAt(kill_at)] if kill_at is not None else []),
    ):
        trainer.add_callback(callback)
    calls = []
    nll = LikelihoodEngine.nll
    LikelihoodEngine.nll = lambda self, ids, *args, **options: (
        calls.append(len(ids)) or nll(self, ids, *args, **options)
    )
    try:
        trainer.train(resume_from_checkpoint=resume)
    finally:
        LikelihoodEngine.nll = nll
    found = {"steps": trainer.state.global_step, "log_history": trainer.state.log_history, "calls": calls}
    (Path(folder) / kind / f"process-{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    for kind, options in json.loads(sys.argv[3]).items():
        run(kind, sys.argv[1], sys.argv[2], **options)
