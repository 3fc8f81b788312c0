"""score.py with a reference: trained first and once, apart from what is measured on; killed, and in two processes."""

import json
import shutil
import signal
from dataclasses import fields

import numpy as np
import pytest
import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM
from warm_processes import finish

import cpt
from hf_ppl_select import PerplexityLandscape, PerplexityScorer
from hf_ppl_select.data.load import load_rows
from hf_ppl_select.data.overlap import sharing_runs
from hf_ppl_select.likelihood.model_identity import adapter_base
from score import ScoreArguments
from scoring.reference import finish_reference
from tests.recipes.test_score import files, launched, run
from tests.scoring.test_reference import make_adapter
from tests.scoring.test_scorer_model import other_weights
from training.checkpoints import problem_of

MEDICAL = "fever cough tea rest tablets treated with daily dose of diuretics and fluids until the patient is well"


def sentence(number):
    """Of the same few words, in an order of its own."""
    rng = np.random.default_rng(number)
    return " ".join(rng.permutation(MEDICAL.split())) + f", case {number}."


def write(path, texts, column="text"):
    path.write_text("".join(json.dumps({column: text}) + "\n" for text in texts))
    return path


@pytest.fixture
def options(tiny_model_dir, tmp_path):
    corpus = [sentence(i) if i % 2 else f"Cookies {i} {'zq xv ' * 8}" for i in range(40)]
    return {
        "dataset_name": write(tmp_path / "corpus.jsonl", corpus, "answer"),
        "text_column": "answer",
        "model_name_or_path": tiny_model_dir,
        "chunk_length": 0,
        "shard_size": 15,
    }


@pytest.fixture
def trusted(tmp_path):
    return write(tmp_path / "trusted.jsonl", [sentence(i) for i in range(100, 140)])


@pytest.fixture
def held_out(tmp_path):
    return write(tmp_path / "eval.jsonl", [sentence(i) for i in range(200, 230)])


TRAINING = {"reference_learning_rate": 1e-3, "reference_epochs": 3}


@pytest.fixture
def trainings(monkeypatch):
    """Counts how often cpt.py trains, here."""
    done, main = [], cpt.main
    monkeypatch.setattr(cpt, "main", lambda *options: (done.append(options), main(*options)))
    return done


def text_losses(folder, tokenizer, texts):
    """nll and tokens of each text by hand."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    found = []
    for text in texts:
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text)["input_ids"]]])
        with torch.no_grad():
            log_probs = torch.log_softmax(model(ids).logits[0, :-1].double(), dim=-1)
        found.append((-log_probs.gather(-1, ids[0, 1:, None]).sum().item(), ids.shape[1] - 1))
    return np.array(found).T


def test_trained_first_and_then_scored(options, trusted, held_out, tiny_tokenizer, tmp_path, trainings, capsys):
    folder = tmp_path / "scored"
    run(folder, **options, **TRAINING, trusted=trusted, eval_file=held_out)
    assert "reference is trained first, on 40 trusted texts" in capsys.readouterr().out
    rows = load_rows(str(folder))
    base, lengths = text_losses(options["model_name_or_path"], tiny_tokenizer, rows["answer"])
    reference, _ = text_losses(folder / "reference", tiny_tokenizer, rows["answer"])
    assert rows["nll_sum"][:] == pytest.approx(base, rel=1e-5)
    assert rows["reference_nll_sum"][:] == pytest.approx(reference, rel=1e-5)
    log_ratio = np.log(rows["perplexity_ratio"][:])
    assert log_ratio == pytest.approx((base - reference) / lengths, rel=1e-3, abs=1e-5)
    medical = np.arange(40) % 2 == 1
    assert log_ratio[medical].min() > log_ratio[~medical].max()  # it has learned the domain, and no dirt

    landscape = PerplexityLandscape.load(folder / "landscape_perplexity_ratio.json")
    assert landscape.column == "perplexity_ratio" and landscape.num_chunks == 40
    assert landscape.log_mu == pytest.approx(log_ratio.mean(), rel=1e-3)
    assert PerplexityLandscape.load(folder / "landscape.json").column == "perplexity"
    assert (folder / "landscape_perplexity_ratio.png").exists()
    kept = json.loads((folder / "reference" / "trained_on.json").read_text())
    assert kept["source"] == {"trusted": str(trusted), "eval_file": str(held_out)}
    assert kept["settings"]["learning_rate"] == 1e-3 and kept["settings"]["num_texts"] == 40
    same = PerplexityScorer(options["model_name_or_path"], reference=str(folder / "reference"), text_column="answer")
    assert same(rows[:])["perplexity_ratio"] == pytest.approx(rows["perplexity_ratio"][:], rel=1e-6)

    before = files(folder)
    run(folder, **options, **TRAINING, trusted=trusted, eval_file=held_out)  # nothing to do
    assert files(folder) == before and len(trainings) == 1
    shutil.move(folder, tmp_path / "elsewhere")
    run(tmp_path / "elsewhere", **options, **TRAINING, trusted=trusted)  # the same reference, wherever it lies
    assert len(trainings) == 1


def test_other_texts_or_settings_are_refused_and_overwrite_trains_anew(options, trusted, tmp_path, trainings):
    folder = tmp_path / "scored"
    run(folder, **options, trusted=trusted)
    before = files(folder)
    with pytest.raises(ValueError, match="reference was trained otherwise: epochs was 1.0, is 2.0. Use another"):
        run(folder, **options, trusted=trusted, reference_epochs=2)
    text = trusted.read_text()
    trusted.write_text(text.replace("case 100", "case 1000"))
    with pytest.raises(ValueError, match="trained otherwise: texts_sha256 was"):
        run(folder, **options, trusted=trusted)
    assert files(folder) == before and len(trainings) == 1
    run(folder, **options, trusted=trusted, overwrite=True)
    assert len(trainings) == 2 and files(folder)["reference/trusted.jsonl"] == trusted.read_bytes()

    run(tmp_path / "without", **options)
    with pytest.raises(ValueError, match="without has data without this reference. Use another output_dir"):
        run(tmp_path / "without", **options, trusted=trusted)
    assert len(trainings) == 2
    run(folder, **options, overwrite=True)  # and none again: no landscape of a score that is not there stays
    assert not (folder / "landscape_perplexity_ratio.json").exists()
    assert load_rows(str(folder)).column_names == load_rows(str(tmp_path / "without")).column_names


def test_an_adapter_by_cpts_own_code(options, trusted, tmp_path):
    pytest.importorskip("peft")
    run(tmp_path / "scored", **options, trusted=trusted, reference_lora=True)
    assert (tmp_path / "scored" / "reference" / "adapter_model.safetensors").exists()
    assert not (tmp_path / "scored" / "reference" / "model.safetensors").exists()
    assert np.ptp(load_rows(str(tmp_path / "scored"))["perplexity_ratio"][:]) > 0

    # Which commit of a model it is of: PEFT leaves it out, and main may go on
    folder = tmp_path / "scored" / "reference"
    finish_reference(folder, "93efa2f")
    assert adapter_base(str(folder))[1] == "93efa2f" and problem_of(folder) is None
    finish_reference(folder, None)
    assert adapter_base(str(folder))[1] == "93efa2f"


def test_trusted_texts_that_are_measured_on_or_in_the_corpus_are_counted_named_and_refused(
    options, trusted, held_out, tmp_path, trainings
):
    texts = [json.loads(line)["text"] for line in trusted.read_text().splitlines()]
    inside = " ".join(texts[3].split()[2:12])
    write(held_out, [sentence(200), f"As said: {inside}.", texts[7], texts[9], texts[11]])
    message = r"4 of the 40 texts of .*trusted.jsonl share a run of eight words with .*eval.jsonl, texts 3 \('.*\), 7 "
    with pytest.raises(ValueError, match=message + r".*, 9 .*, \.\.\.: what is measured on cannot be trained on"):
        run(tmp_path / "scored", **options, trusted=trusted, eval_file=held_out)
    write(trusted, [*texts[:5], sentence(1), sentence(3)])
    message = (
        r"2 of the 7 texts of .*trusted.jsonl are part of .*corpus.jsonl, texts 5 \('.*'\), 6 \('.*'\): what learns"
    )
    for more in ({}, {"chunk_length": 24}):
        with pytest.raises(ValueError, match=message):
            run(tmp_path / "scored", **options | more, trusted=trusted)
    assert not (tmp_path / "scored").exists() and not trainings


def test_a_share_of_the_held_out_file_is_split_off(options, held_out, tmp_path, trainings, capsys):
    folder = tmp_path / "scored"
    run(folder, **options, eval_file=held_out, trusted_share=0.4)
    kept = [json.loads(line)["text"] for line in (folder / "held_out.jsonl").read_text().splitlines()]
    used = [json.loads(line)["text"] for line in (folder / "reference" / "trusted.jsonl").read_text().splitlines()]
    given = [json.loads(line)["text"] for line in held_out.read_text().splitlines()]
    assert sorted(kept + used) == sorted(given) and 8 <= len(used) <= 12
    assert sharing_runs(kept, used) == []
    assert f"held_out.jsonl has the {len(kept)} texts to measure on" in capsys.readouterr().out
    source = json.loads((folder / "reference" / "trained_on.json").read_text())["source"]
    assert source == {"eval_file": str(held_out), "trusted_share": 0.4, "num_held_out": len(kept)}
    assert load_dataset(str(folder))["train"].column_names == load_rows(str(folder)).column_names  # the data alone
    before = files(folder)
    run(folder, **options, eval_file=held_out, trusted_share=0.4)
    assert files(folder) == before and len(trainings) == 1


KILLED = """
import os, signal
from hf_ppl_select.scoring import perplexity
from training import trainer

def kill(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

if {!r} == "training":
    trainer.RecipeTrainer.save_model = kill
else:
    perplexity.PerplexityScorer.score = kill
"""


@pytest.mark.slow
def test_killed_it_trains_a_half_trained_reference_anew_and_a_finished_one_never(
    options, trusted, tmp_path, trainings
):
    folder = tmp_path / "scored"
    done = finish(launched(folder, before=KILLED.format("training"), **options, trusted=trusted))
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (folder / "reference" / "trusted.jsonl").exists() and not (folder / "reference" / "metrics.json").exists()
    done = finish(launched(folder, before=KILLED.format("scoring"), **options, trusted=trusted))
    assert done.returncode == -signal.SIGKILL, done.stderr
    weights = files(folder / "reference")
    assert "metrics.json" in weights
    with pytest.raises(FileNotFoundError, match="scored is not finished"):
        load_rows(str(folder))  # with the files of a reference in it, it is not taken for a dataset
    run(folder, **options, trusted=trusted)
    assert not trainings and files(folder / "reference") == weights
    assert len(load_rows(str(folder))) == 40


def test_a_reference_that_was_damaged_scores_nothing(options, trusted, tmp_path, trainings, monkeypatch):
    run(tmp_path / "alone", **options, trusted=trusted)
    expected, folder = load_rows(str(tmp_path / "alone"))[:], tmp_path / "scored"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(PerplexityScorer, "score", lambda *args, **kwargs: (_ for _ in ()).throw(KeyboardInterrupt()))
        run(folder, **options, trusted=trusted)
    weights = folder / "reference" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-4] + bytes([content[-4] ^ 64]) + content[-3:])
    run(folder, **options, trusted=trusted)  # trains it anew
    assert len(trainings) == 3 and load_rows(str(folder))[:] == expected
    weights.write_bytes(content[:-400])
    with pytest.raises(ValueError, match="has data whose reference is damaged .its model.safetensors is not what was"):
        run(folder, **options, trusted=trusted)
    assert len(trainings) == 3 and load_rows(str(folder))[:] == expected


@pytest.mark.slow
def test_of_two_processes_one_trains_and_both_score(options, trusted, tmp_path):
    run(tmp_path / "alone", **options, trusted=trusted)
    second = launched(tmp_path / "shared", 1, 2, **options, trusted=trusted)
    first = launched(tmp_path / "shared", 0, 2, **options, trusted=trusted)
    first, second = finish(first), finish(second)
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert "trained first" in first.stdout and "trained first" not in second.stdout
    assert json.loads((tmp_path / "shared/reference/metrics.json").read_text())["num_processes"] == 1
    alone, shared = (load_rows(str(tmp_path / name)) for name in ("alone", "shared"))
    assert shared["perplexity_ratio"][:] == pytest.approx(alone["perplexity_ratio"][:], rel=1e-5)


def test_a_reference_that_there_is(options, tiny_model, tiny_tokenizer, tmp_path):
    other_weights(tiny_model, 3).save_pretrained(tmp_path / "other")
    tiny_tokenizer.save_pretrained(tmp_path / "other")
    folder = tmp_path / "scored"
    run(folder, **options, reference=tmp_path / "other")
    rows = load_rows(str(folder))
    expected, lengths = text_losses(tmp_path / "other", tiny_tokenizer, rows["answer"])
    assert rows["reference_nll_sum"][:] == pytest.approx(expected, rel=1e-5)
    ratios = np.exp((np.array(rows["nll_sum"]) - expected) / lengths)
    assert rows["perplexity_ratio"][:] == pytest.approx(ratios, rel=1e-4)
    other_weights(tiny_model, 4).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="has other settings: reference_revision was 'sha256:.*, is 'sha256:"):
        run(folder, **options, reference=tmp_path / "other")
    adapter = make_adapter(tmp_path / "other", tmp_path / "lora")
    with pytest.raises(ValueError, match="lora' is an adapter of .*other"):
        run(tmp_path / "new", **options, reference=adapter)
    small = tiny_tokenizer.__class__.from_pretrained(tmp_path / "other", eos_token="<|pad|>")
    small.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="differ in their BOS or EOS token"):
        run(tmp_path / "new", **options, reference=tmp_path / "other")
    assert not (tmp_path / "new").exists()


def test_ifd_of_pairs_and_not_of_texts(options, tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"What helps in case {i}?", "completion": f" {sentence(i)}" if i else ""} for i in range(9)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(tmp_path / "scored", **options | {"dataset_name": pairs}, ifd=True)
    found = load_rows(str(tmp_path / "scored"))
    expected = PerplexityScorer(options["model_name_or_path"], ifd=True)(
        {name: found[name][:] for name in ("prompt", "completion")}
    )
    assert found["ifd"][1:] == pytest.approx(expected["ifd"][1:], rel=1e-6) and found["ifd"][0] is None
    assert PerplexityLandscape.load(tmp_path / "scored" / "landscape_ifd.json").column == "ifd"
    with pytest.raises(ValueError, match="ifd compares answers with and without"):
        run(tmp_path / "texts", **options, ifd=True)
    assert not (tmp_path / "texts").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"reference": "a", "trusted": "b"}, "reference and trusted are two ways to a reference"),
        ({"trusted": "a", "trusted_share": 0.5}, "trusted and trusted_share are two ways"),
        ({"trusted_share": 0.5}, "trusted_share is a share of eval_file"),
        ({"trusted_share": 1.5, "eval_file": "a"}, "above 0 and below 1"),
        ({"eval_file": "a"}, "eval_file and the reference's training are for trusted texts"),
        ({"reference": "a", "reference_lora": True}, "for trusted texts: pass trusted"),
    ],
)
def test_options_that_do_not_go_together(given, message):
    with pytest.raises(ValueError, match=message):
        ScoreArguments(dataset_name="rows.jsonl", output_dir="out", **given)


def test_without_a_reference_the_manifest_is_as_before(options, tmp_path):
    """So that what was scored, or begun, before there were references is gone on with."""
    run(tmp_path / "scored", **options)
    manifest = json.loads((tmp_path / "scored" / "data" / "manifest.json").read_text())
    new = {
        name for name in (field.name for field in fields(ScoreArguments)) if "reference" in name or "trusted" in name
    }
    assert len(new) == 7 and not manifest.keys() & {*new, "eval_file", "ifd"}


def test_a_reference_that_diverged_is_trained_anew(options, trusted, tmp_path, trainings, monkeypatch):
    from training.trainer import RecipeTrainer

    folder, real = tmp_path / "scored", RecipeTrainer.training_step

    def ruined(self, model, *args, **kwargs):
        next(model.parameters()).data.fill_(torch.nan)
        return real(self, model, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(RecipeTrainer, "training_step", ruined)
        with pytest.raises(ValueError, match="training diverged"):
            run(folder, **options, trusted=trusted)
    assert (folder / "reference" / "metrics.json").exists() and not (folder / "data").exists()
    run(folder, **options, trusted=trusted)
    assert len(trainings) == 2 and len(load_rows(str(folder))) == 40
