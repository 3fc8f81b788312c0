"""Loading: the whole model or an error that names what is wrong, and weights that stay what they were."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from hf_ppl_select.likelihood.cpu import auto_is_float32, cpu_multiplies
from hf_ppl_select.likelihood.engine import load_model
from hf_ppl_select.likelihood.models import load_adapter

TINY = {"vocab_size": 100, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
TINY_SEQ2SEQ = {"vocab_size": 100, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1}
IDS = torch.arange(3, 13)[None]
IS_OLD = transformers.__version__.startswith("4.")  # which does not tell the shapes
SHAPE = "another shape" if IS_OLD else r"the shape \(32, 64\), not \(32, 48\)"


def save(folder, model, tokenizer):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def edit_config(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    config.pop("layer_types", None)
    (folder / "config.json").write_text(json.dumps(config | values))


@pytest.mark.parametrize(
    ("class_name", "config"),
    [
        ("LlamaModel", transformers.LlamaConfig(**TINY)),
        ("Qwen3Model", transformers.Qwen3Config(**TINY, head_dim=8)),
        ("LlamaForSequenceClassification", transformers.LlamaConfig(**TINY)),
    ],
)
def test_a_checkpoint_without_its_head_is_an_error_that_names_it(tiny_tokenizer, tmp_path, class_name, config):
    folder = save(tmp_path, getattr(transformers, class_name)(config), tiny_tokenizer)
    with pytest.raises(ValueError, match=r"lm_head.weight is missing.*Save the whole model, with its LM head"):
        load_model(folder)


def test_a_tied_head_need_not_be_saved(tiny_tokenizer, tmp_path):
    saved = transformers.GPT2Model(transformers.GPT2Config(vocab_size=100, n_embd=16, n_layer=1, n_head=2)).eval()
    model, _ = load_model(save(tmp_path, saved, tiny_tokenizer), device="cpu")
    with torch.no_grad():
        expected = saved(IDS).last_hidden_state @ saved.wte.weight.T
        torch.testing.assert_close(model(IDS).logits, expected)


def test_missing_and_mismatched_weights_are_an_error_that_names_them(tiny_model_dir, tmp_path):
    for name, edit, message in (
        ("wider", {"intermediate_size": 48}, rf"down_proj.weight has {SHAPE}"),
        ("deeper", {"num_hidden_layers": 3}, r"model.layers.2.input_layernorm.weight is missing.*and 4 more"),
    ):
        shutil.copytree(tiny_model_dir, tmp_path / name)
        edit_config(tmp_path / name, **edit)
        with pytest.raises(ValueError, match=message):
            load_model(str(tmp_path / name))
    weights = load_file(f"{tiny_model_dir}/model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, f"{tiny_model_dir}/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="model.layers.1.mlp.up_proj.weight is missing"):
        load_model(tiny_model_dir)


@pytest.mark.parametrize(
    ("class_name", "config", "message"),
    [
        ("T5ForConditionalGeneration", {"d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1}, "encoder-decoder"),
        ("BartForConditionalGeneration", TINY_SEQ2SEQ, "encoder-decoder"),
        ("DistilBertModel", {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 8}, "no causal language model"),
    ],
)
def test_what_is_no_causal_model_is_refused_in_one_sentence(tiny_tokenizer, tmp_path, class_name, config, message):
    model_class = getattr(transformers, class_name)
    folder = save(tmp_path, model_class(model_class.config_class(**config)), tiny_tokenizer)
    with pytest.raises(ValueError, match=rf"is (an )?{message}.*HF_PPL_SELECT_MODEL") as error:
        load_model(folder)
    assert len(str(error.value)) < 500


def test_a_folder_without_a_tokenizer_says_so(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    with pytest.raises(OSError, match=r"has no tokenizer: save it there, with tokenizer.save_pretrained"):
        load_model(str(tmp_path))


@pytest.fixture
def adapter_dir(tiny_model_dir, tmp_path):
    """A LoRA adapter with weights of its own, as PEFT saves it: without a tokenizer."""
    peft = pytest.importorskip("peft")
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    model = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", model.eval()


def test_an_adapter_comes_with_its_base_and_its_bases_tokenizer(adapter_dir):
    folder, expected = adapter_dir
    model, tokenizer = load_model(str(folder), device="cpu")
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, expected(IDS).logits)
    assert tokenizer("abc")["input_ids"]


def test_an_adapter_that_lacks_weights_or_its_base_is_an_error(adapter_dir, tiny_model_dir, tmp_path):
    folder, _ = adapter_dir
    weights = load_file(folder / "adapter_model.safetensors")
    del weights[sorted(weights)[0]]
    save_file(weights, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="lora_A.*is missing"):
        load_model(str(folder))
    shutil.move(tiny_model_dir, tmp_path / "elsewhere")
    with pytest.raises(OSError, match=r"an adapter of '.*tiny-model'"):
        load_model(str(folder))


def test_a_loaded_model_does_not_change_with_its_file(tiny_model, tiny_model_dir):
    """`cp` overwrites the very pages that a checkpoint on a CPU is mapped to."""
    model, _ = load_model(tiny_model_dir, device="cpu")
    with torch.no_grad():
        expected = tiny_model(IDS).logits
        path = f"{tiny_model_dir}/model.safetensors"
        with open(path, "r+b") as file:
            size = file.seek(0, 2)
            file.seek(size // 2)
            file.write(bytes(size - size // 2))
        torch.testing.assert_close(model(IDS).logits, expected, rtol=0, atol=0)


@pytest.mark.parametrize("saved_in", [torch.bfloat16, torch.float16])
def test_a_cpu_without_the_instructions_computes_in_float32(
    tmp_path, tiny_model, tiny_tokenizer, saved_in, monkeypatch
):
    """bfloat16 in float32 is seven times as fast there, and has the same weights; who names a dtype gets it."""
    folder = save(tmp_path, tiny_model.to(saved_in), tiny_tokenizer)
    own = dict(tiny_model.named_parameters())
    for has, expected in ((lambda dtype: dtype == torch.float32, torch.float32), (lambda dtype: True, saved_in)):
        monkeypatch.setattr("hf_ppl_select.likelihood.models.cpu_multiplies", has)
        model, _ = load_model(folder, device="cpu")
        assert {weight.dtype for weight in model.parameters()} == {expected}
        assert all(torch.equal(weight, own[name].to(expected)) for name, weight in model.named_parameters())
        assert list(dict(model.named_parameters())) == list(own)
        assert load_model(folder, device="cpu", dtype=saved_in)[0].dtype == saved_in
    assert cpu_multiplies(torch.float32) and isinstance(cpu_multiplies(saved_in), bool)


def test_what_a_model_rounded_when_it_was_made_is_not_kept(tmp_path, tiny_tokenizer, monkeypatch):
    """Gemma scales its embeddings by a number in the model's dtype: in float32 that of float32, as for a reference."""
    sizes = {"vocab_size": 400, "hidden_size": 48, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 8}
    config = transformers.Gemma3TextConfig(**sizes, num_attention_heads=2, num_key_value_heads=1)
    folder = save(tmp_path, AutoModelForCausalLM.from_config(config).bfloat16(), tiny_tokenizer)
    monkeypatch.setattr("hf_ppl_select.likelihood.models.cpu_multiplies", lambda dtype: dtype == torch.float32)
    with torch.no_grad():
        found, expected = (load_model(folder, device="cpu", dtype=name)[0](IDS).logits for name in ("auto", "float32"))
    assert torch.equal(found, expected)


def test_out_of_memory_is_no_wrong_adapter(tiny_model_dir, tmp_path, monkeypatch):
    peft = pytest.importorskip("peft")
    model, _ = load_model(tiny_model_dir, device="cpu", dtype="float32")
    peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    model, _ = load_model(tiny_model_dir, device="cpu", dtype="float32")

    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(type(model), "load_adapter", full)
    with pytest.raises(torch.OutOfMemoryError):
        load_adapter(model, str(tmp_path / "adapter"))


@pytest.mark.parametrize("kind", ["lora", "dora", "adalora"])
def test_adapters_with_parameters_of_their_own_load_whole(kind, tiny_model_dir, tmp_path):
    peft = pytest.importorskip("peft")
    own = {"lora": {}, "dora": {"use_dora": True}, "adalora": {"total_step": 10}}[kind]
    config = (peft.AdaLoraConfig if kind == "adalora" else peft.LoraConfig)(target_modules=["q_proj"], **own)
    model, _ = load_model(tiny_model_dir, device="cpu", dtype="float32")
    trained = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, weight in trained.named_parameters():
            if weight.requires_grad and "ranknum" not in name:
                weight.add_(torch.randn_like(weight) * 0.5)
        expected = trained.eval()(IDS).logits
    trained.save_pretrained(tmp_path / "adapter")
    if kind == "dora" and not IS_OLD:  # transformers leaves the magnitudes as they were, and says so only in its log
        with pytest.raises(ValueError, match="does not load the magnitudes of the DoRA adapter .*: merge it into its"):
            load_model(str(tmp_path / "adapter"), device="cpu", dtype="float32")
        return
    found, _ = load_model(str(tmp_path / "adapter"), device="cpu", dtype="float32")
    with torch.no_grad():
        torch.testing.assert_close(found(IDS).logits, expected)


@pytest.mark.parametrize(
    ("machine", "avx512", "mkldnn", "expected"),
    [("x86_64", True, True, True), ("AMD64", False, True, False), ("aarch64", False, True, True), ("arm64", 0, 0, 0)],
)
def test_who_multiplies_bfloat16(machine, avx512, mkldnn, expected, monkeypatch):
    """AVX-512 without bfloat16 is supported by oneDNN on x86, and slow; ARM has other instructions."""
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)
    supported = SimpleNamespace(_is_mkldnn_bf16_supported=lambda: mkldnn)
    monkeypatch.setattr("torch.ops.mkldnn", supported, raising=False)
    monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: bool(mkldnn))
    assert cpu_multiplies(torch.bfloat16) == expected and auto_is_float32("cpu") != expected
    assert cpu_multiplies(torch.float32) and not auto_is_float32("cuda")
