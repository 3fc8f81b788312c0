"""The study's numbers against closed forms and by hand; its records; and docs/study is what its records give."""

import json
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from studying.plan import ARMS, StudyArguments, write_plan
from studying.records import Records
from studying.report import benchmarks_table, write_report
from studying.results import Mean, Study

DOCS = Path(__file__).resolve().parents[2] / "docs"
ROOT_OF_TWO = {"tokens_of_texts": {"domain": [50, 50], "general": [100]}, "trusted_tokens": 7}


def losses(domain, general=3.0):
    """A rung's likelihoods: the first text is 0.1 nats a token harder than the second."""
    return {"domain": [50 * (domain + 0.05), 50 * (domain - 0.05)], "general": [100 * general]}


def make_study(folder, arms_by_draw, arms=("random raw", "random", "oracle", "law"), **options):
    """A study whose draws of `dirty` measured these arms: by draw, their losses or whole records."""
    named = {"dataset_name": "d.jsonl", "num_tokens": 1000, "probe_tokens": 250, "random_times": [0.5, 1.0, 2.0]}
    named |= {"batch_size": 1, "chunk_length": 8}
    args = StudyArguments(corpora=["dirty"], num_seeds=[len(arms_by_draw)], arms=list(arms), **(named | options))
    plan = write_plan(folder, args, "weights")
    for seed, measured in enumerate(arms_by_draw):
        records = Records(folder / "records" / f"dirty-{seed}.jsonl", plan)
        about = {"characters": {"clean": 3, "dirt": 1}, "deduplicated": {"kinds": {"clean": 1}, "num_tokens": 9}}
        records.add("base", ROOT_OF_TWO | about | {"rungs": [{"num_tokens": 0, **losses(4.0)}]})
        for arm, found in measured.items():
            if not isinstance(found, dict):
                found = {"rungs": [{"num_tokens": 990, **losses(found)}], "kinds": {"clean": 1}}
            records.add(f"arm {arm}", found)
        records.add("done", {"seconds": 1.0})
    return Study(folder)


def raw(*curve):
    return {"rungs": [{"num_tokens": tokens, **losses(loss)} for tokens, loss in curve], "kinds": {"clean": 1}}


def test_a_mean_has_students_interval():
    values = [0.1, -0.2, 0.4, 0.3]
    found, right = Mean.of(values), stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert found.value == pytest.approx(np.mean(values)) and (found.low, found.high) == pytest.approx(tuple(right))
    assert found.num == 4 and found.std == pytest.approx(np.std(values, ddof=1))
    one = Mean.of([0.5])
    assert one.value == 0.5 and np.isnan([one.low, one.high]).all()


def test_runs_to_tell_are_those_of_a_power_calculation():
    """So many draws give a t interval that excludes 0 in about four of five studies."""
    found = Mean(0.02, 0, 0, 0.05, 8)
    assert found.runs_to_tell == 52, "as G*Power has it for a paired t test of 0.4 standard deviations"
    drawn = np.random.default_rng(0).normal(0.02, 0.05, (2000, found.runs_to_tell))
    told = np.mean([stats.ttest_1samp(one, 0).pvalue < 0.05 for one in drawn])
    assert told == pytest.approx(0.8, abs=0.04)
    assert Mean(0.0, 0, 0, 0.1, 4).runs_to_tell == np.inf and Mean(0.1, 0, 0, 0.0, 4).runs_to_tell == 2
    assert Mean(-0.030, 0, 0, 0.020, 4).runs_to_tell == 6, "few draws need more than the normal distribution says"


def test_differences_are_within_draws(tmp_path):
    draws = [{"random raw": 3.0 + d, "random": 2.9 + d, "oracle": 2.7 + d, "law": law + d} for d, law in
             ((0.0, 2.75), (1.0, 2.65))]  # fmt: skip
    study = make_study(tmp_path, draws)
    found = study.difference("dirty", "law", "random raw")
    assert found.value == pytest.approx(-0.3) and found.std == pytest.approx(np.std([-0.25, -0.35], ddof=1))
    assert study.mean("dirty", "law").std == pytest.approx(np.std([2.75, 3.65], ddof=1)), "draws differ by far more"
    assert study.oracle_share("dirty", "law") == pytest.approx(0.3 / 0.3)
    assert study.difference("dirty", "law", "base", "general").value == pytest.approx(0)
    assert study.kinds("dirty")["documents"] == {"clean": 0.75, "dirt": 0.25}


def test_an_arm_that_chose_the_same_shares_the_run(tmp_path):
    shared = {"same_as": "law ratio", "predicted": {"250": {"law": 3.0}, "990": {"law": 2.5}}, "kinds": {"clean": 1}}
    chosen = raw((240, 3.1), (990, 2.6)) | {"predicted": {"250": {"law": 3.0}, "990": {"law": 2.5}}}
    study = make_study(tmp_path, [{"law ratio": chosen, "law": shared | {"interval": [2.4, 2.55]}}],
                       ["law ratio", "law"])  # fmt: skip
    assert study.mean("dirty", "law").value == study.mean("dirty", "law ratio").value == pytest.approx(2.6)
    assert study.unseen_errors("dirty", "probe")["law"].value == pytest.approx(0.1), "counted once"
    assert study.unseen_errors("dirty", "budget")["law"].value == pytest.approx(0.1)
    assert study.covered("dirty") == (0, 1)


@pytest.mark.parametrize(
    ("law", "times"),
    [
        (2.5, 1.0),  # just what random raw has at the budget
        (2.25, 2**0.5),  # half-way in loss is half-way in the logarithm of the tokens
        (2.0, 2.0),
        (1.9, np.inf),  # never
        (3.5, 0.5),  # before its first measurement
    ],
)
def test_tokens_that_random_takes(law, times, tmp_path):
    curve = raw((500, 3.0), (1000, 2.5), (2000, 2.0))
    study = make_study(tmp_path, [{"random raw": curve, "law": law}])
    assert study.tokens_of_random("dirty", "law") == [pytest.approx(times)]


def test_a_loss_that_rises_again_counts_at_its_best(tmp_path):
    study = make_study(tmp_path, [{"random raw": raw((500, 3.0), (1000, 2.4), (2000, 2.6)), "law": 2.4}])
    assert study.tokens_of_random("dirty", "law") == [pytest.approx(1.0)]


def test_what_was_not_measured_is_not_met(tmp_path):
    from studying.report import must_show

    short = make_study(tmp_path / "short", [{"random raw": raw((500, 3.0), (1000, 2.5)), "law": 2.0}],
                       random_times=[0.5, 1.0])  # fmt: skip
    (line,) = [line for line in must_show(short).splitlines() if "2.5 times the tokens" in line]
    assert line.endswith("| times: more than 1, not measured |  |")
    curve = raw((1000, 2.5), (2000, 2.4), (3000, 2.3))
    long = make_study(tmp_path / "long", [{"random raw": curve, "law": 2.0}], random_times=[1.0, 2.0, 3.0])
    (line,) = [line for line in must_show(long).splitlines() if "2.5 times the tokens" in line]
    assert line.endswith("| times: more than 3. 60 % or more: 1 of 1 draws | yes |")
    no_raw = make_study(tmp_path / "no_raw", [{"random": 2.5, "oracle": 2.4, "law": 2.3}] * 2)
    assert "oracle's gain" not in must_show(no_raw) and "law minus random: below 0 | -0.200" in must_show(no_raw)
    report = write_report(tmp_path / "no_raw").read_text()
    assert "| law | 2 | 2.300 | not measured | -0.200" in report and "nan" not in report


def test_an_arm_that_failed_is_no_arm(tmp_path):
    study = make_study(tmp_path, [{"random": 2.9, "law": {"problem": "out of reach"}}, {"random": 2.8, "law": 2.5}])
    assert [(draw.seed, what, why) for draw, what, why in study.problems()] == [(0, "arm law", "out of reach")]
    records = tmp_path / "records" / "dirty-1.jsonl"
    records.write_text(records.read_text()[:-9])
    assert "dirty 1, the draw: it is not finished" in write_report(tmp_path).read_text()
    assert study.mean("dirty", "law").num == 1 and study.difference("dirty", "law", "random").num == 1


def test_benchmarks_are_paired_by_question_and_draw(tmp_path):
    def measured(loss, bits, right):
        found = raw((990, loss))
        found["rungs"][0]["benchmarks"] = {"b": {"accuracy": right, "bits": bits, "num_bytes": [1, 3]}}
        return found

    draws = [{"law": measured(2.0, [1.0, 4.0], [1, 1]), "random": measured(2.0, [3.0, 6.0], [0, 0])},
             {"law": measured(2.0, [2.0, 4.0], [1, 1]), "random": measured(2.0, [2.0, 4.0], [1, 0])}]  # fmt: skip
    study = make_study(tmp_path, draws, ["random", "law"], benchmarks=["b"], benchmark_corpora=["dirty"])
    for draw in study.draws:
        draw.records.by_what["base"]["rungs"][0]["benchmarks"] = {
            "b": {"accuracy": [0, 0], "bits": [3.0, 6.0], "num_bytes": [1, 3]}
        }
    assert study.benchmark_mean("dirty", "law", "b", "accuracy") == pytest.approx(1)
    assert study.benchmark_mean("dirty", "law", "b", "bits") == pytest.approx(np.mean([5 / 4, 6 / 4]))
    found = study.benchmark_difference("dirty", "law", "random", "b", "accuracy")
    assert found.value == pytest.approx(0.75) and found.low < found.value < found.high
    bits = study.benchmark_difference("dirty", "law", "random", "b", "bits")
    assert bits.value == pytest.approx(-4 / 4 / 2), "bits per byte: a sum over a sum"
    assert "law minus base" in benchmarks_table(study, "dirty")

    # An arm that trains on has them where they were measured, and the table says so
    for draw in study.draws:
        draw.records.by_what["arm law"]["rungs"].append({"num_tokens": 3 * study.num_tokens, "domain": [9.0]})
    assert study.benchmark_mean("dirty", "law", "b", "accuracy") == pytest.approx(1)
    for draw in study.draws:
        draw.records.by_what["arm law"]["rungs"][0]["num_tokens"] = 3 * study.num_tokens
    assert "law, after 3.0 times the tokens, minus base" in benchmarks_table(study, "dirty")


def test_records_survive_a_kill_and_refuse_what_is_not_theirs(tmp_path):
    path = tmp_path / "records" / "dirty-0.jsonl"
    Records(path, "p").add("base", {"x": 1})
    with path.open("a") as file:
        file.write('{"what":"arm low","pl')  # killed in the middle of a line
    records = Records(path, "p")
    assert "base" in records and "arm low" not in records
    records.add("arm low", {"x": 2})
    assert [json.loads(line)["what"] for line in path.read_text().splitlines()] == ["base", "arm low"]
    with pytest.raises(ValueError, match="line 1 is of another plan"):
        Records(path, "q")
    path.with_suffix(".copy").write_bytes(path.read_bytes()[:-20])
    assert list(Records(path.with_suffix(".copy"), "p").by_what) == ["base"]
    lines = path.read_text()
    for changed, said in (
        (lines + "[1]\n", "line 3 is not a record"),
        (lines.replace('"x":2', '"x":3'), "line 2 is not what was written"),
        (lines.replace('"checksum"', '"checkrem"'), "line 1 .*checksum"),
        (lines.replace('"x":1', '"x":NaN'), "line 1 .*not finite"),
    ):
        path.write_text(changed)
        with pytest.raises(ValueError, match=rf"dirty-0\.jsonl, {said}"):
            Records(path, "p")


def test_flipped_bits_of_records_are_never_other_numbers(tmp_path):
    path = tmp_path / "dirty-0.jsonl"
    records = Records(path, "p")
    for what, loss in (("base", 12.5), ("arm low", 3.75), ("done", 1e-3)):
        records.add(what, {"rungs": [{"num_tokens": 90, "domain": [loss, loss / 3]}], "kinds": {"é": 9}})
    content, rng = path.read_bytes(), random.Random(0)
    for _ in range(500):
        changed = bytearray(content)
        changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        try:
            found = Records(path, "p").by_what
        except ValueError as error:
            assert "dirty-0.jsonl, line" in str(error) and "\n" not in str(error)
        else:  # the last end of line is gone, so the line is one that was cut short
            assert found == {what: records[what] for what in ("base", "arm low")} or found == records.by_what


def test_a_plan_is_kept(tmp_path):
    args = StudyArguments(num_seeds=[2])
    digest = write_plan(tmp_path, args, "weights")
    assert write_plan(tmp_path, StudyArguments(num_seeds=[2], num_workers=3, output_dir="x"), "weights") == digest
    for other, weights, said in ((StudyArguments(num_seeds=[3]), "weights", "num_seeds"), (args, "w", "the model")):
        with pytest.raises(ValueError, match=f"another plan: {said} changed"):
            write_plan(tmp_path, other, weights)
    (tmp_path / "d.jsonl").write_text('{"text": "a"}\n')
    args = StudyArguments(corpora=["clean"], dataset_name=str(tmp_path / "d.jsonl"))
    write_plan(tmp_path / "own", args, "weights")
    (tmp_path / "d.jsonl").write_text('{"text": "b"}\n')
    with pytest.raises(ValueError, match="another plan: the data changed"):
        write_plan(tmp_path / "own", args, "weights")

    for version in ("v1", "v2"):  # folders of one name
        (tmp_path / version / "corpus").mkdir(parents=True)
        (tmp_path / version / "corpus" / "rows.jsonl").write_text(json.dumps({"text": version}))
    first, second = (
        StudyArguments(corpora=["clean"], dataset_name=str(tmp_path / version / "corpus")) for version in ("v1", "v2")
    )
    write_plan(tmp_path / "folders", first, "weights")
    with pytest.raises(ValueError, match="another plan: the data changed"):
        write_plan(tmp_path / "folders", second, "weights")
    write_plan(tmp_path / "hub", StudyArguments(corpora=["clean"], dataset_name="one/corpus"), "weights")
    with pytest.raises(ValueError, match="another plan: dataset_name changed"):
        write_plan(tmp_path / "hub", StudyArguments(corpora=["clean"], dataset_name="two/corpus"), "weights")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"corpora": ["dirt"]}, "no corpus 'dirt'; there are dirty, clean, ontology"),
        ({"arms": ["best"]}, "no arm 'best'"),
        ({"corpora": ["clean"]}, "--dataset_name"),
        ({"arms": ["law, replay"]}, "--replay_dataset"),
        ({"num_seeds": [1, 2]}, "one for each of --corpora"),
        ({"random_times": [0.5]}, "must hold 1"),
        ({"random_times": [1.0, -2.0]}, "no number that is not above 0"),
        ({"num_tokens": 0}, "--num_tokens must be a whole number, at least 1, not 0"),
        ({"num_held_out": 0}, "--num_held_out must be a whole number"),
        ({"dirty": 1.5}, "--dirty must be a share"),
        ({"probe_tokens": 1500}, "Measured are 750, 1,500, 16,384 tokens, and a step trains on 1,024"),
        ({"random_times": [0.99, 1.0]}, "Measured are 16,220, 16,384 tokens"),
    ],
)
def test_options_that_cannot_be(options, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        StudyArguments(**options)


def test_a_missing_column_is_one_line(tmp_path, run_recipe):
    (tmp_path / "d.jsonl").write_text('{"body": "a"}\n')
    options = ("--corpora", "clean", "--dataset_name", tmp_path / "d.jsonl", "--output_dir", tmp_path / "out")
    code, _, said = run_recipe("study", *options)
    wanted = f"study.py: error: {tmp_path}/d.jsonl has no column 'text'; its columns are body."
    assert code == 2 and said.strip().splitlines()[-1] == wanted
    assert not (tmp_path / "out").exists(), "before anything is written"


def test_arms_and_draws():
    args = StudyArguments(corpora=["dirty", "clean"], num_seeds=[2, 1], dataset_name="d")
    assert args.arms_of("dirty") == [arm for arm in ARMS if arm not in ("law, replay", "ifd top quarter")]
    assert "oracle" not in args.arms_of("clean") and "ifd top quarter" in args.arms_of("answers")
    unprobed = StudyArguments(corpora=["dirty"], dataset_name="d", replay_dataset="r", num_probes=0).arms_of("dirty")
    assert unprobed[:3] == ["random raw", "random", "oracle"] and not [arm for arm in unprobed if "law" in arm]
    assert args.draws() == [("dirty", 0), ("clean", 0), ("dirty", 1)]


@pytest.mark.parametrize("name", ["study", "study/benchmarks", "study/answers"])
def test_the_reports_in_the_docs_are_what_the_records_give(name, tmp_path):
    folder = DOCS / name
    shutil.copytree(folder / "records", tmp_path / "records")
    shutil.copy(folder / "plan.json", tmp_path)
    assert write_report(tmp_path).read_text(encoding="utf-8") == (folder / "report.md").read_text(encoding="utf-8")
    pictures = sorted(path.name for path in folder.glob("*.png"))
    assert "study.png" in pictures and sorted(path.name for path in tmp_path.glob("*.png")) == pictures
    assert all((tmp_path / name).stat().st_size > 10_000 for name in pictures)


def test_what_the_pages_say_is_what_the_reports_say():
    """Each difference with its interval on top of README and in docs/study.md stands in the report of its study."""
    reports = {
        name: (DOCS / "study" / name / "report.md").read_text(encoding="utf-8").replace("-", "−")
        for name in (".", "benchmarks", "answers")
    }
    page = (DOCS / "study.md").read_text(encoding="utf-8").partition("## From nothing on two cores")[0]
    rest, _, answers = page.partition("## Fine-tuning on answers")
    main, _, benchmarks = rest.partition("## Benchmarks")
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8").partition("## Three commands")[0]
    for text, of, least in (
        (main, (".",), 14),
        (benchmarks, (".", "benchmarks"), 20),
        (answers, ("answers",), 6),
        (readme, (".",), 6),
    ):
        quoted = re.findall(r"[−+]\d\.\d{3}\s\[[−+]\d\.\d{3}, [−+]\d\.\d{3}\]", text)
        assert len(quoted) >= least
        assert not [one for one in quoted if not any(one.replace("\n", " ") in reports[name] for name in of)]
