"""Which weights exactly: folders by content, Hub models by commit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hf_ppl_select.likelihood.model_identity import (
    DEFAULT_MODEL,
    adapter_base,
    default_model_name,
    own_revision,
    resolve_revision,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    (folder / "additional_chat_templates").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "tokenizer.json").write_text("{}")
    return folder


def test_a_folder_is_known_by_its_content(folder, tmp_path):
    revision = resolve_revision(str(folder))
    assert revision.startswith("sha256:") and len(revision) == 71
    assert resolve_revision(str(folder), "main") == revision  # folders have no revisions
    copied = tmp_path / "elsewhere"
    folder.rename(copied)
    os.utime(copied / "model.safetensors", (1, 1))
    assert resolve_revision(str(copied)) == revision


@pytest.mark.parametrize(
    "edit",
    [
        lambda folder: (folder / "model.safetensors").write_bytes(b"wEights"),
        lambda folder: (folder / "tokenizer.json").write_text('{"a": 1}'),
        lambda folder: (folder / "chat_template.jinja").write_text("{{ messages }}"),
        lambda folder: (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}"),
        lambda folder: (folder / "spiece.spm").write_bytes(b"pieces"),
        lambda folder: (folder / "model.safetensors").rename(folder / "model-2.safetensors"),
        lambda folder: (folder / "tokenizer.json").unlink(),
    ],
)
def test_any_edit_of_model_or_tokenizer_shows(folder, edit):
    before = resolve_revision(str(folder))
    edit(folder)
    assert resolve_revision(str(folder)) != before


def test_files_that_are_no_part_of_the_model_do_not_show(folder):
    before = resolve_revision(str(folder))
    (folder / "README.md").write_text("hello")
    (folder / "checkpoint-1").mkdir()
    assert resolve_revision(str(folder)) == before


def test_content_decides_also_where_size_and_times_stay(folder):
    path = folder / "model.safetensors"
    for age in (0, 3600):  # just written; and settled, so that the hash is kept
        stamp = path.stat().st_mtime_ns - age * 10**9
        os.utime(path, ns=(stamp, stamp))
        before = resolve_revision(str(folder))
        path.write_bytes(path.read_bytes()[::-1])
        os.utime(path, ns=(stamp, stamp))
        assert resolve_revision(str(folder)) != before


def test_an_adapter_is_known_with_what_it_is_based_on(folder, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(b"lora")
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(folder)}))
    first = resolve_revision(str(adapter))
    assert first.endswith(f" on {resolve_revision(str(folder))}") and own_revision(first) is None
    assert adapter_base(str(adapter)) == (str(folder), None) and adapter_base(str(folder)) is None
    (folder / "model.safetensors").write_bytes(b"other weights")
    second = resolve_revision(str(adapter))
    assert second != first and second.partition(" on ")[0] == first.partition(" on ")[0]
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "gone")}))
    with pytest.raises(OSError, match="Cannot find the model '.*gone'"):
        resolve_revision(str(adapter))


def test_a_folder_without_a_model_is_an_error(tmp_path):
    with pytest.raises(OSError, match="holds no model"):
        resolve_revision(str(tmp_path))


def test_a_hub_model_is_known_by_its_commit(tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "models--me--model" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    refs = tmp_path / "models--me--model" / "refs"
    refs.mkdir()
    (refs / "main").write_text(commit)
    code = (
        "from hf_ppl_select.likelihood.model_identity import resolve_revision as r; import sys;"
        f"print(r('me/model'), r('me/model', 'main'), r('me/model', '{commit}')); assert 'torch' not in sys.modules"
    )
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert run.stdout.split() == [commit] * 3, run.stderr


@pytest.mark.parametrize("name", ["nobody/nothing", "not a valid name!", "./no/such/folder"])
def test_an_unknown_model_is_an_error_with_the_fix(name):
    with pytest.raises(OSError, match=r"Cannot find the model.*HF_PPL_SELECT_MODEL to a local folder"):
        resolve_revision(name)


def test_default_model(monkeypatch):
    monkeypatch.delenv("HF_PPL_SELECT_MODEL", raising=False)
    assert default_model_name() == DEFAULT_MODEL == "HuggingFaceTB/SmolLM2-135M"
    monkeypatch.setenv("HF_PPL_SELECT_MODEL", "me/model")
    assert default_model_name() == "me/model"
    monkeypatch.setenv("HF_PPL_SELECT_MODEL", "")
    assert default_model_name() == DEFAULT_MODEL
