"""fit_law.py: probes from a scored corpus to a law on a tiny model; known points alone; what bad input gets."""

import contextlib
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from recipe_runs import write_jsonl
from warm_processes import run

from hf_ppl_select.law.points import append_law_points

WORDS = "fever cough pain heart lung kidney acute chronic the of and in with patients treatment dose risk"


def fit_law(*options, cwd):
    """Run the recipe in a process of its own."""
    return run("recipes/fit_law.py", *options, cwd=cwd, environment={"CUDA_VISIBLE_DEVICES": ""})


def call(*options):
    """The recipe in this process, which has imported everything already."""
    import fit_law as recipe
    from command_line import parse_options

    recipe.main(*parse_options(recipe.make_parser(), list(map(str, options))))


@pytest.fixture
def scored(tmp_path, tiny_model_dir):
    from datasets import Dataset

    from hf_ppl_select import PerplexityScorer

    rng, words = np.random.default_rng(0), WORDS.split()
    texts = [" ".join(rng.choice(words[: rng.integers(2, len(words))], size=12)) for _ in range(240)]
    dataset = Dataset.from_dict({"text": texts})
    dataset.map(PerplexityScorer(tiny_model_dir), batched=True).to_parquet(tmp_path / "scored.parquet")
    (tmp_path / "held_out.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[:10]))
    return tmp_path / "scored.parquet"


def options(scored, model, **changed):
    named = {
        "dataset_name": scored,
        "eval_file": scored.parent / "held_out.jsonl",
        "model_name_or_path": model,
        "num_probes": 6,
        "num_tokens": 1200,
        "max_length": 128,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "bf16": False,
        "use_cpu": True,
        "output_dir": scored.parent / "law",
    } | changed
    return [part for name, value in named.items() for part in (f"--{name}", value)]


@pytest.mark.slow
def test_probes_to_law_and_on_after_a_kill(scored, tiny_model_dir):
    from hf_ppl_select import ScalingLaw
    from hf_ppl_select.likelihood.model_identity import resolve_revision

    law_path = scored.parent / "law" / "law.json"
    done = fit_law(*options(scored, tiny_model_dir), cwd=scored.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    law = ScalingLaw.load(law_path)
    assert law.report.num_runs == 6 and law.report.num_points == 18 and law.model == tiny_model_dir
    assert law.model_revision == resolve_revision(tiny_model_dir) and law.corpus
    assert "<- chosen" in done.stdout and "best landscape" in done.stdout
    assert {path.name for path in law_path.parent.glob("*.png")} >= {
        "law_surface.png",
        "predicted_against_measured.png",
    }
    rows = [json.loads(line) for line in (law_path.parent / "points.jsonl").read_text().splitlines()]
    for name in {row["run"] for row in rows}:
        losses = [row["loss"] for row in rows if row["run"] == name]
        assert losses == sorted(losses, reverse=True), "a random model learns with every token"

    # As if killed before the last probe's last rung: the others are left alone, that one is trained again
    (law_path.parent / "points.jsonl").unlink()
    append_law_points(law_path.parent / "points.jsonl", rows[:-1])
    law_path.unlink()
    again = fit_law(*options(scored, tiny_model_dir), cwd=scored.parent)
    assert again.returncode == 0, again.stderr[-3000:]
    assert ScalingLaw.load(law_path).params == pytest.approx(law.params, rel=1e-3)
    assert again.stdout.count("train_runtime") == 1 < done.stdout.count("train_runtime")

    changed = fit_law(*options(scored, tiny_model_dir, learning_rate=2e-3), cwd=scored.parent)
    assert changed.returncode == 2 and "another learning_rate" in changed.stderr


def test_all_probes_are_chosen_before_one_is_trained_and_a_failure_loses_none(scored, tiny_model_dir, monkeypatch):
    from fitting import probe_runs

    done, real = [], probe_runs.select_subset
    trained = {}

    def select(*arguments, **named):
        done.append("chosen")
        return real(*arguments, **named)

    def train(probe, subset, moments, ladder, folder, points, *rest):
        done.append(probe.run)
        if probe.run == "probe-02" and "probe-02" not in trained:
            trained[probe.run] = 1
            raise RuntimeError("out of memory")
        rows = [{"run": probe.run, "loss": 3.0 + 0.1 * len(trained) - 0.1 * i, **row} for i, row in enumerate(moments)]
        trained[probe.run] = 1
        probe_runs.append_law_points(points, rows)

    monkeypatch.setattr(probe_runs, "select_subset", select)
    monkeypatch.setattr(probe_runs, "run_probe", train)
    with pytest.raises(RuntimeError, match="out of memory"):
        call(*options(scored, tiny_model_dir))
    assert done == ["chosen"] * 5 + ["random", "probe-00", "probe-01", "probe-02"]
    with contextlib.suppress(ValueError):  # no landscape, maybe: the losses are made up
        call(*options(scored, tiny_model_dir))
    assert done[9:] == ["chosen"] * 5 + ["probe-02", "probe-03", "probe-04"]
    monkeypatch.setattr(probe_runs, "select_subset", lambda *a, **k: (_ for _ in ()).throw(ValueError("no subset")))
    with pytest.raises(ValueError, match="no subset"):
        call(*options(scored, tiny_model_dir, output_dir=scored.parent / "other"))
    assert not (scored.parent / "other" / "settings.json").exists() and len(done) == 17


def test_a_probe_trains_on_its_chunks_in_order(tiny_model_dir, tmp_path):
    from datasets import Dataset
    from transformers import AutoTokenizer

    import fit_law as recipe
    from command_line import parse_options
    from fitting.probe_runs import run_probe
    from hf_ppl_select.law.points import read_law_points
    from hf_ppl_select.probes.design import ProbeTarget, prefix_points

    words = WORDS.split()
    texts = [" ".join(words[:count]) for count in (2, 15, 4, 9, 1, 12, 6, 17, 3, 8)]
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    lengths = [len(tokenizer(text + tokenizer.eos_token)["input_ids"]) for text in texts]
    reached = np.cumsum(lengths)[[0, 2, 5, 9]].tolist()
    subset = Dataset.from_dict({"text": texts, "perplexity": np.linspace(9, 30, 10), "num_tokens": lengths})
    made = options(tmp_path / "scored.parquet", tiny_model_dir, per_device_train_batch_size=1, num_train_epochs=1)
    _, training_args, model_args = parse_options(recipe.make_parser(), list(map(str, made)))
    probe = ProbeTarget("in order", 20.0, 6.0, "linear")
    rows = (tmp_path, tmp_path / "points.jsonl", training_args, model_args, {"texts": texts[:3]})
    moments = prefix_points({"perplexity": subset["perplexity"]}, lengths, reached)
    run_probe(probe, subset, moments, reached, *rows)
    assert read_law_points(tmp_path / "points.jsonl").num_tokens.tolist() == reached


def test_known_points_need_no_probes(tmp_path, shared_data):
    points = shared_data / "law_points" / "smollm2_medquad.jsonl"
    done = fit_law("--points", points, "--num_probes", 0, "--output_dir", tmp_path / "law", "--use_cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "log_parabola    linear       6   0.982  0.0176" in done.stdout
    assert (tmp_path / "law" / "law.json").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"eval_file": "missing.jsonl"}, "missing.jsonl"),
        ({"num_tokens": 10**9}, "10"),
        ({"num_probes": 2, "num_tokens": 600, "form": "paper"}, "needs at least 8 law points, got 6"),
    ],
)
def test_bad_input_is_one_error_and_no_law(scored, tiny_model_dir, changed, message):
    done = fit_law(*options(scored, tiny_model_dir, **changed), cwd=scored.parent)
    assert done.returncode == 2 and message in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
    assert not (scored.parent / "law" / "law.json").exists()


def test_a_dataset_that_was_never_scored_says_how(tmp_path, tiny_model_dir):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "fever"}\n')
    (tmp_path / "held_out.jsonl").write_text('{"text": "cough"}\n')
    done = fit_law(*options(rows, tiny_model_dir), cwd=tmp_path)
    assert done.returncode == 2 and "dataset.map(score_ppl, batched=True)" in done.stderr


@pytest.mark.slow
def test_one_probe_by_its_index_then_the_rest_then_only_the_fit(scored, tiny_model_dir):
    """A job array's way: a process trains its own probe into a file of its own; the fit lists what is missing."""
    folder = scored.parent / "law"
    few = {"num_probes": 4, "form": "no_interaction", "space": "linear"}
    one = fit_law(*options(scored, tiny_model_dir, **few, probe_index=2), cwd=scored.parent)
    assert one.returncode == 0, one.stderr[-3000:]
    assert one.stdout.count("train_runtime") == 1 and not (folder / "points.jsonl").exists()
    assert len((folder / "probes" / "probe-01" / "points.jsonl").read_text().splitlines()) == 3

    early = fit_law(*options(scored, tiny_model_dir, **few), "--fit_only", cwd=scored.parent)
    last = early.stderr.splitlines()[-1]
    assert early.returncode == 2 and "3 of 4 probes are missing" in last and not (folder / "law.json").exists()
    assert "0 (random), 1 (probe-00), 3 (probe-02)" in last

    rest = fit_law(*options(scored, tiny_model_dir, **few), cwd=scored.parent)
    assert rest.returncode == 0, rest.stderr[-3000:]
    assert rest.stdout.count("train_runtime") == 3 and (folder / "law.json").exists()
    points = (folder / "points.jsonl").read_text()
    runs = [json.loads(line)["run"] for line in points.splitlines()]
    assert len(runs) == 12 and set(runs) == {"random", "probe-00", "probe-01", "probe-02"}

    (folder / "law.json").unlink()
    call(*options(scored, tiny_model_dir, **few), "--fit_only")
    assert (folder / "law.json").exists() and (folder / "points.jsonl").read_text() == points


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"probe_index": 6}, "numbered from 0 to 5"),
        ({"total_tokens": 5000}, "leave --num_tokens, --ladder out"),
        ({"probe_index": 2, "fit_only": True}, "leave one of the two out"),
        ({"ladder": 600, "num_tokens": 1200}, "last rung of --ladder, 600 tokens, and --num_tokens is 1,200"),
        ({"budget": 10**9}, "--budget 1,000,000,000 is more than the .* tokens of the scored chunks"),
        ({"max_length": 12}, "chunks are longer than --max_length 12 tokens .*score shorter chunks"),
        ({"license": "mit"}, "are about a push"),
        ({"max_forgetting": 0.02}, "measure the general loss: add --general_eval_file"),
        (
            {"max_forgetting": 0.02, "general_eval_file": "general.jsonl", "load_in_4bit": True},
            "of a quantized model needs its own general loss: --base_general_loss",
        ),
    ],
)
def test_options_that_contradict_each_other(scored, tiny_model_dir, changed, message):
    with pytest.raises(ValueError, match=message):
        call(*options(scored, tiny_model_dir, **changed))
    assert not (scored.parent / "law" / "probes").exists()


def test_chunks_that_lose_a_token_or_two_are_told_and_trained_on(capsys):
    from datasets import Dataset

    from fitting.options import check_corpus

    chunks = Dataset.from_dict({"num_tokens": [128] * 90 + [130] * 10})
    check_corpus(chunks, None, 128)
    said = "10 of 100 chunks are longer than --max_length 128 tokens (up to 130) and lose 20 of 12,820 tokens."
    assert said in capsys.readouterr().out
    for max_length in (None, 130):
        check_corpus(chunks, 12_820, max_length)
    assert not capsys.readouterr().out
    with pytest.raises(ValueError, match="100 of 100 chunks are longer"):
        check_corpus(chunks, None, 120)
    with pytest.raises(ValueError, match="--budget 12,821 is more than"):
        check_corpus(chunks, 12_821, None)


@pytest.mark.parametrize("option", ["budget", "max_forgetting"])
def test_options_about_an_optimum_need_a_corpus(tmp_path, option):
    with pytest.raises(ValueError, match=f"--{option} is about the optimum on a corpus"):
        call("--points", "points.jsonl", "--num_probes", 0, f"--{option}", 1, "--output_dir", tmp_path, "--use_cpu")


def test_the_score_columns_are_those_that_the_chunks_have():
    from datasets import Dataset

    from fitting.options import score_columns

    both = Dataset.from_dict({"perplexity_ratio": [1.0], "perplexity": [2.0]})
    default = SimpleNamespace(column=None)
    assert score_columns(default, both) == ["perplexity", "perplexity_ratio"]
    assert score_columns(default, both.select_columns("perplexity")) == score_columns(default, None) == ["perplexity"]
    assert score_columns(SimpleNamespace(column=["ifd"]), both) == ["ifd"]


def test_runs_of_another_folder_are_other_runs(capsys):
    from fitting.options import apart

    ours = [{"run": "random", "loss": 3.0}, {"run": "probe-00", "loss": 2.9}]
    theirs = [{"run": "random", "loss": 3.1}, {"run": "elsewhere", "loss": 2.8}]
    assert [row["run"] for row in apart(theirs, ours, "a/points.jsonl")] == ["random of a/points.jsonl", "elsewhere"]
    assert "Runs of a/points.jsonl that are named as ones here are called after it: random." in capsys.readouterr().out
    assert apart(theirs, [], "a/points.jsonl") == theirs and not capsys.readouterr().out
    again = [*ours, {"run": "random", "loss": 9.0}]
    assert [row["run"] for row in apart(again, ours, "copy.jsonl")] == ["random of copy.jsonl"]
    assert f"{len(ours)} of {len(again)} law points of copy.jsonl are those of this folder" in capsys.readouterr().out


def test_chunks_without_one_of_several_scores_are_left_out_and_counted(capsys):
    from datasets import Dataset

    from fitting.options import only_scored

    scores = {"perplexity": [2.0, None, 4.0, 5.0], "my_score": [1.0, 2.0, float("inf"), 3.0]}
    rows = Dataset.from_dict(scores)
    assert only_scored(rows, ["perplexity", "my_score"])["perplexity"][:] == [2.0, 5.0]
    assert "2 of 4 chunks lack one of perplexity, my_score and are left out." in capsys.readouterr().out
    assert only_scored(rows, ["perplexity"]) is rows and only_scored(rows, ["perplexity", "other"]) is rows
    assert not capsys.readouterr().out


def test_rungs_that_fall_into_one_step_are_told_and_the_probe_is_done(scored, tiny_model_dir):
    wide = {"per_device_train_batch_size": 16, "num_probes": 5, "form": "data_only", "space": "linear"}
    with pytest.warns(UserWarning, match="random has 2 law points of 3 rungs: several fell into one training step"):
        call(*options(scored, tiny_model_dir, **wide))
    points = (scored.parent / "law" / "points.jsonl").read_bytes()
    call(*options(scored, tiny_model_dir, **wide), "--fit_only")
    assert (scored.parent / "law" / "points.jsonl").read_bytes() == points

    # but one that lost a point since is trained again
    (scored.parent / "law" / "points.jsonl").unlink()
    append_law_points(scored.parent / "law" / "points.jsonl", [json.loads(row) for row in points.splitlines()[:-1]])
    with pytest.raises(ValueError, match="1 of 5 probes are missing"):
        call(*options(scored, tiny_model_dir, **wide), "--fit_only")


def test_known_points_on_a_corpus_say_where_to_go(tmp_path, shared_data, capsys):
    """The optimum with its intervals, what random would need, what other budgets gain, and whether probes suffice."""
    from datasets import Dataset

    nll = np.random.default_rng(0).normal(3.0, 0.42, 3000)
    corpus = tmp_path / "scored.parquet"
    Dataset.from_dict({"text": ["x"] * 3000, "perplexity": np.exp(nll), "num_tokens": [128] * 3000}).to_parquet(corpus)
    points = shared_data / "law_points" / "smollm2_medquad.jsonl"
    known = ["--points", points, "--num_probes", 0, "--dataset_name", corpus, "--use_cpu", "--bf16", False]
    call(*known, "--output_dir", tmp_path / "law", "--budget", 32768)
    printed = capsys.readouterr().out
    for part in (
        "parameter      value   95 % interval",
        "best landscape (interior): m 3.5",
        "above 0 with probability",
        "within the noise",
        "times as many",
        "ends at",
        "probes of 327,680 tokens in all",
    ):
        assert part in printed, part
    assert (tmp_path / "law" / "law_surface.png").exists()

    # A bound holds for all that is said: a row of the table at the budget is the optimum
    rows = [json.loads(line) for line in points.read_text().splitlines()]
    forgets = [row | {"general_loss": 3.0 + 0.1 * row["log_mu"] + 0.02 * np.log(row["num_tokens"])} for row in rows]
    bound = ["--points", write_jsonl(tmp_path / "forgets.jsonl", forgets), "--budget", 32768]
    bound += ["--max_forgetting", 0.1, "--base_general_loss", 3.43]
    call(*known, *bound, "--output_dir", tmp_path / "law")
    bounded = capsys.readouterr().out
    gain, row = re.search(r"\ngain (\d\.\d+)", bounded)[1], re.search(r" 32,768 .*%   (-?\d\.\d+)", bounded)[1]
    assert gain == row and "at most 3.5300 was allowed" in bounded
    assert gain != re.search(r"\ngain (\d\.\d+)", printed)[1]

    # What is known of an earlier law does not stay beside one without an optimum
    with pytest.raises(ValueError, match="the least that is predicted"):
        call(*known, "--output_dir", tmp_path / "law", "--max_forgetting", 0.001, "--base_general_loss", 3.4)
    assert (tmp_path / "law" / "law.json").exists() and not list((tmp_path / "law").glob("*.png"))

    bound = ["--max_forgetting", 0.001, "--base_general_loss", 3.634]
    with pytest.raises(ValueError, match=r"the least that is predicted is 3\.6"):
        call(*known, *bound, "--output_dir", tmp_path / "bounded")
    assert (tmp_path / "bounded" / "law.json").exists(), "the law is good all the same"


def test_probes_of_another_column_record_all_columns_and_the_random_one_has_the_corpus_own_moments(tmp_path):
    """Four corpora of 3,000 chunks: each probe where the design says, a random subset inside what the probes cover."""
    from datasets import Dataset

    from fitting.probe_runs import choose_probes
    from hf_ppl_select import PerplexityLandscape
    from hf_ppl_select.law.trust import hull_of_probes
    from hf_ppl_select.probes.design import design_probes
    from hf_ppl_select.probes.plan import ProbePlan

    for seed in range(4):
        rng = np.random.default_rng(seed)
        nll, tokens = rng.normal(3.5, 0.5, 3000), rng.integers(40, 129, 3000)
        scores = {"perplexity": np.exp(nll), "ngram_ratio": np.exp(0.4 * (nll - 3.5) + rng.normal(0, 0.4, 3000))}
        dataset = Dataset.from_dict({**scores, "num_tokens": tokens})
        for column, space in (("perplexity", "log"), ("perplexity", "linear"), ("ngram_ratio", "log")):
            landscape = PerplexityLandscape.from_dataset(dataset, column=column)
            probes = design_probes(landscape, num_runs=6, tokens_per_run=16_384, space=space)
            chosen = choose_probes(ProbePlan(tuple(probes), 16_384, (4096, 16_384)), dataset, seed)
            prefix, suffix = "log_" * (space == "log"), "" if column == "perplexity" else f"_{column}"
            found = np.array([[p[-1][f"{prefix}{name}{suffix}"] for name in ("mu", "sigma")] for _, p in chosen])
            meant = np.array([(probe.mu, probe.sigma) for probe in probes])
            assert np.all(np.abs(found[:, 0] - meant[:, 0]) < 0.02 * meant[:, 1])
            assert np.all(np.abs(found[:, 1] / meant[:, 1] - 1) < 0.02)
            assert hull_of_probes(*found.T, space).contains(*landscape.moments(space))
            for subset, points in chosen:
                assert 16_384 - 128 < points[-1]["num_tokens"] == sum(subset["num_tokens"]) <= 16_384
                assert points[-1]["mu"] == pytest.approx(np.mean(subset["perplexity"]))
                assert points[-1]["mu_ngram_ratio"] == pytest.approx(np.mean(subset["ngram_ratio"]))


@pytest.mark.parametrize("ruled_by", ["ngram_ratio", "both"])
def test_of_several_columns_the_law_takes_what_predicts_best(tmp_path, capsys, ruled_by):
    """Losses made from one column's moments, or both's: the law is of that column, or of the pair."""
    from datasets import Dataset

    from hf_ppl_select import ScalingLaw

    rng = np.random.default_rng(0)
    scores = {"perplexity": np.exp(rng.normal(3.0, 0.4, 3000)), "ngram_ratio": np.exp(rng.normal(0.5, 0.4, 3000))}
    corpus = tmp_path / "scored.parquet"
    Dataset.from_dict({"text": ["x"] * 3000, **scores, "num_tokens": [128] * 3000}).to_parquet(corpus)
    points = []
    for k in range(14):
        m, r = rng.normal(3.0, 0.25), rng.normal(0.5, 0.25)
        for num_tokens in (8192, 16384, 32768):
            excess = 0.4 * (r - 0.8) ** 2 + (0.4 * (m - 3.2) ** 2 if ruled_by == "both" else 0.0)
            loss = 1.5 + np.exp(excess + 1.5 - 0.12 * np.log(num_tokens)) + rng.normal(0, 1e-4)
            moments = {
                "mu": np.exp(m),
                "sigma": 5.0 + rng.random(),
                "log_mu": m,
                "log_sigma": 0.3 + 0.05 * rng.random(),
            }
            other = {f"{name}_ngram_ratio": value for name, value in moments.items()}
            other |= {"mu_ngram_ratio": np.exp(r), "log_mu_ngram_ratio": r}
            points.append({"run": f"run-{k}", **moments, **other, "num_tokens": num_tokens, "loss": loss})
    (tmp_path / "points.jsonl").write_text("".join(json.dumps(row) + "\n" for row in points))
    known = ["--points", tmp_path / "points.jsonl", "--num_probes", 0, "--dataset_name", corpus]
    call(
        *known, "--score", "perplexity", "ngram_ratio", "--use_cpu", "--bf16", False, "--output_dir", tmp_path / "law"
    )
    law = ScalingLaw.load(tmp_path / "law" / "law.json")
    assert law.column == ("ngram_ratio" if ruled_by == "ngram_ratio" else ("perplexity", "ngram_ratio"))
    printed = capsys.readouterr().out
    assert "perplexity and ngram_ratio" in printed and printed.count("<- chosen") == 1 and "best landscape" in printed
    assert law.params["E"] == pytest.approx(1.5, abs=0.15)


def test_probes_take_turns_in_their_columns(tmp_path):
    from types import SimpleNamespace

    from datasets import Dataset

    from fitting.probe_runs import choose_probes, design_runs
    from hf_ppl_select import PerplexityLandscape
    from hf_ppl_select.law.trust import hull_of_probes

    rng = np.random.default_rng(0)
    columns = ["perplexity", "ngram_ratio"]
    scores = {"perplexity": np.exp(rng.normal(3.0, 0.4, 3000)), "ngram_ratio": np.exp(rng.normal(0.5, 0.4, 3000))}
    dataset = Dataset.from_dict({**scores, "num_tokens": [100] * 3000})
    asked = {"column": columns, "num_probes": 8, "num_tokens": 16_384, "ladder": None, "total_tokens": None}
    plan = design_runs(SimpleNamespace(**asked, probe_space="log"), dataset, seed=0)
    assert [probe.run for probe in plan.probes] == ["random", *(f"probe-{k:02d}" for k in range(7))]
    assert [probe.column for probe in plan.probes] == ["perplexity", *columns, *columns, *columns, "perplexity"]
    last = [points[-1] for _, points in choose_probes(plan, dataset, seed=0)]
    for column in columns:
        suffix = "" if column == "perplexity" else f"_{column}"
        found = np.array([[point[f"log_{name}{suffix}"] for name in ("mu", "sigma")] for point in last])
        mu, sigma = PerplexityLandscape.from_dataset(dataset, column=column).moments("log")
        assert abs(found[0, 0] - mu) < 0.05 * sigma and abs(found[0, 1] / sigma - 1) < 0.05, "the random one"
        assert hull_of_probes(*found.T, "log").contains(mu, sigma)
        for probe, (m, s) in zip(plan.probes[1:], found[1:]):
            if probe.column == column:
                assert abs(m - probe.mu) < 0.02 * sigma and abs(s / probe.sigma - 1) < 0.02


@pytest.mark.slow
def test_probes_side_by_side_are_those_one_by_one(scored, tiny_model_dir):
    few = {"num_probes": 4, "form": "no_interaction", "space": "linear"}
    points = {}
    for workers in (1, 2):
        folder = scored.parent / f"law-{workers}"
        call(*options(scored, tiny_model_dir, **few, num_workers=workers, output_dir=folder))
        points[workers] = [json.loads(line) for line in (folder / "points.jsonl").read_text().splitlines()]
    assert len(points[1]) == 12
    for one, other in zip(*points.values(), strict=True):
        rounded = {"loss": 0, "checksum": ""}  # other threads, other last digits
        assert one | rounded == other | rounded and one["loss"] == pytest.approx(other["loss"], abs=1e-4)
