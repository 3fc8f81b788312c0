from pathlib import Path

import numpy as np
import pytest
from recipe_runs import DOMAIN, GENERAL, TEXTS, TRAINING, train_here, write_jsonl

import report
from command_line import parse_options
from comparing.run_comparison import difference, group_interval, verdict
from comparing.run_records import measures_of, read_groups
from comparing.tables import caveats, paired_tests
from hf_ppl_select.benchmarks import BenchmarkResult, BenchmarkResults, Record, compare_records
from hf_ppl_select.data.saving import save_json

pytest_plugins = ["recipe_fixtures"]

NUM_TEXTS, NUM_QUESTIONS = 40, 60


def make_run(
    folder, seed, gain=0.0, accuracy=0.3, num_tokens=1000, num_texts=NUM_TEXTS, noise=0.01, num_fewshot=0, asked=""
):
    """A folder as cpt.py and run_benchmarks.py leave it, of made-up numbers."""
    rng = np.random.default_rng(0)  # what is hard is hard for every run
    tokens = rng.integers(50, 100, num_texts)
    nll = rng.normal(2.5, 0.3, num_texts) * tokens
    likelihoods, gold = rng.normal(-10, 1, (NUM_QUESTIONS, 4)), rng.integers(0, 4, NUM_QUESTIONS)
    own = np.random.default_rng([1, seed, int(1000 * gain)])
    shift = own.normal(gain, noise)
    likelihoods[range(NUM_QUESTIONS), gold] += 3 * accuracy
    likelihoods += own.normal(0, 0.3, likelihoods.shape)
    for name, change in (("held_out_base.json", 0.0), ("held_out.json", shift)):
        sets = {"domain": {"nll_sum": (nll - change * tokens).tolist(), "num_tokens": tokens.tolist()}}
        save_json(Path(folder, name), sets, kind="text_likelihoods", version=1)
    metrics = {"model": "m", "seed": seed, "num_tokens": num_tokens, "train": {"train_runtime": 60.0}}
    save_json(Path(folder, "metrics.json"), metrics, kind="training_metrics", version=1)
    records = tuple(
        Record(i, int(gold[i]), int(row.argmax()), tuple(row.tolist()), (4, 4, 4, 4), (4, 4, 4, 4), 0, asked)
        for i, row in enumerate(likelihoods)
    )
    found = {"exam": BenchmarkResult("exam", "medical", "made up", {}, records)}
    BenchmarkResults("m", found, {}, None, 0, 10, 128, num_fewshot).save_records(Path(folder, "benchmarks.parquet"))
    return str(folder)


def write_report(*options):
    report.main(*parse_options(report.make_parser(), ["--runs", *options]))


def test_a_report_of_several_seeds(tmp_path, capsys):
    random = ",".join(make_run(tmp_path / f"random-{seed}", seed, gain=0.1) for seed in range(3))
    selected = ",".join(make_run(tmp_path / f"selected-{seed}", seed, gain=0.3) for seed in range(3))
    write_report(f"random={random}", f"selected={selected}", "--output_dir", str(tmp_path / "report"))
    text = (tmp_path / "report" / "report.md").read_text()
    assert text.strip() in capsys.readouterr().out
    assert "| selected | 3 | 0, 1, 2 |  | 1,000 | 60 s each |" in text
    assert "base (1) | random (3) | selected (3)" in text  # step 0 of the runs
    row = next(line for line in text.splitlines() if line.startswith("| domain loss") and "40 texts" in line)
    assert "| worse |" in row and "| better |" in row
    assert "over training seeds by Student's t" in text and "cover items only" not in text
    assert (tmp_path / "report" / "report.png").read_bytes().startswith(b"\x89PNG")
    for line in text.splitlines():  # no difference without its interval
        assert line.count("− random") == 0 or line.startswith("| | items")
        for cell in line.split("|"):
            assert not cell.strip().startswith(("+", "-0")) or ("[" in cell and "]" in cell)


def test_one_seed_says_nothing_of_other_seeds(tmp_path):
    runs = [f"{name}={make_run(tmp_path / name, 0, gain)}" for name, gain in (("random", 0.0), ("selected", 0.3))]
    write_report(*runs, "--output_dir", str(tmp_path / "report"))
    text = (tmp_path / "report" / "report.md").read_text()
    assert "cover items only, not training seeds, where a group has one run: random, selected" in text
    assert "better in this one run each" in text and "| better |" not in text


def test_the_numbers_are_those_of_the_records(tmp_path):
    ours, theirs = make_run(tmp_path / "a", 0, 0.1), make_run(tmp_path / "b", 1)
    groups = read_groups([f"a={ours}", f"b={theirs}"])
    compared = compare_records(tmp_path / "a" / "benchmarks.parquet", tmp_path / "b" / "benchmarks.parquet")
    accuracy = next(m for m in measures_of(groups) if m.title == "exam: accuracy")
    found = difference(accuracy, groups["a"], groups["b"])
    expected = compared.rows["exam"].differences["choice_accuracy"]
    assert found.value == pytest.approx(expected.value)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.02)
    table = paired_tests(groups, "b")[1]
    row = compared.rows["exam"]
    assert f"| exam | a | b | {row.only_ours} | {row.only_baseline} | {row.mcnemar_p:.3g} |" in table
    loss = measures_of(groups)[0]
    nll, tokens = groups["a"][0].texts["domain"]
    assert loss.kind == "loss"
    assert group_interval(loss, groups["a"]).value == pytest.approx(nll.sum() / tokens.sum())
    step_0 = difference(loss, groups["a"], groups["base"])
    assert step_0.value < 0 and verdict(loss, step_0) == "better in this one run each"


def test_runs_that_differ_by_seed_alone_are_seldom_called_better(tmp_path):
    """Two groups of three runs from one distribution, of seeds that spread far more than items explain."""
    rng = np.random.default_rng(0)
    groups = read_groups([f"a={make_run(tmp_path / 'a', 0)}", f"b={make_run(tmp_path / 'b', 1)}"])
    (measure, *_), run = measures_of(groups), groups["a"][0]
    nll, tokens = run.texts["domain"]
    claims = 0
    for _ in range(200):
        members = []
        for shift in rng.normal(0, 0.05, 6):
            texts = {"domain": np.array([nll + (shift + rng.normal(0, 0.01, len(nll))) * tokens, tokens])}
            members.append(type(run)(run.folder, metrics=run.metrics, texts=texts))
        claims += difference(measure, members[:3], members[3:]).excludes_zero
    assert claims <= 20  # 95 % intervals: 10 expected; items alone would claim most


def test_what_makes_a_comparison_unfair_is_said(tmp_path):
    runs = [f"random={make_run(tmp_path / 'r', 0)},{make_run(tmp_path / 'r2', 0, 0.01)}"]
    runs.append(f"selected={make_run(tmp_path / 's', 0, num_tokens=1500)}")
    found = " ".join(caveats(read_groups(runs), "random"))
    assert "selected had 1.50 times the training tokens of random" in found
    assert "Runs of random share a seed" in found and "num_fewshot" not in found
    runs[1] += f",{make_run(tmp_path / 'f', 1, num_fewshot=5)}"
    assert "measured with num_fewshot 0 and 5" in " ".join(caveats(read_groups(runs), "random"))


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        (["random"], "--runs needs name=folder"),
        (["random={a}", "random={b}"], "each name once"),
        (["random={a}", "selected={a}"], "is given twice"),
        (["random={a}", "selected={missing}"], "holds nothing to report"),
        (["random={a}", "selected={other}"], "other and .*/a measured .* on other items .39 and 40., so"),
        (["random={asked}", "selected={reworded}"], "reworded and .*/asked measured benchmark 'exam' on other items"),
        (["random={a}", "selected={broken}"], "is not valid JSON"),
        (["random={a}", "selected={b}", "--baseline", "low"], "no group 'low' to compare with"),
        (["random={bare}"], "one group of runs and nothing to compare"),
    ],
)
def test_bad_input_is_one_clear_error(runs, message, tmp_path):
    names = ("a", "b", "other", "missing", "broken", "bare", "asked", "reworded")
    places = {name: tmp_path / name for name in names}
    make_run(places["asked"], 0, asked="d1")
    make_run(places["reworded"], 1, asked="d2")
    make_run(places["a"], 0)
    make_run(places["b"], 1)
    make_run(places["other"], 1, num_texts=NUM_TEXTS - 1)
    for name, file in (("broken", "held_out.json"), ("bare", "metrics.json")):
        places[name].mkdir()
        content = '{"domain": ' if name == "broken" else (places["a"] / file).read_text()
        (places[name] / file).write_text(content)
    runs = [run.format(**places) for run in runs]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        write_report(*runs, "--output_dir", str(tmp_path / "report"))
    assert not (tmp_path / "report").exists()


def test_from_training_to_report(model_dir, tmp_path):
    corpus = write_jsonl(tmp_path / "corpus.jsonl", [{"text": text} for text in TEXTS])
    common = TRAINING | {"model_name_or_path": model_dir, "num_train_epochs": 1}
    for name, texts in (("eval_file", DOMAIN), ("general_eval_file", GENERAL)):
        common[name] = write_jsonl(tmp_path / f"{name}.jsonl", [{"text": text} for text in texts])
    for name, split in (("first", "train[:12]"), ("last", "train[12:]")):
        run = {"dataset_name": corpus, "dataset_train_split": split, "output_dir": str(tmp_path / name)}
        metrics = train_here("cpt", common | run)
    write_report(f"first={tmp_path / 'first'}", f"last={tmp_path / 'last'}", "--output_dir", str(tmp_path / "report"))
    text = (tmp_path / "report" / "report.md").read_text()
    losses = [row["domain_loss"] for row in metrics["log_history"] if "domain_loss" in row]
    line = next(line for line in text.splitlines() if line.startswith("| domain loss"))
    assert f"{losses[0]:.4f} [" in line and f"{losses[-1]:.4f} [" in line  # base, and the run
    assert "| general loss" in text and "last − first" in text
