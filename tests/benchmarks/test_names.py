"""Names, groups and files of benchmarks; a limit draws by its seed."""

import pytest
from question_files import MEDQA, write_jsonl

from hf_ppl_select.benchmarks import (
    BENCHMARKS,
    GROUPS,
    own_benchmark,
    read_benchmarks,
    resolve_benchmarks,
)


def test_names_groups_and_files_resolve_once_each(own_file):
    names = [benchmark.name for benchmark in resolve_benchmarks(["medical", "medmcqa", str(own_file), "general"])]
    assert names == [*GROUPS["medical"], "mine", *GROUPS["general"]]
    assert all(
        BENCHMARKS[name].group == group.removeprefix("paper_") for group, names in GROUPS.items() for name in names
    )
    with pytest.raises(ValueError, match="No benchmarks to run"):
        resolve_benchmarks([])
    with pytest.raises(ValueError, match="Two benchmarks are called 'medmcqa'"):
        resolve_benchmarks(["medmcqa", own_benchmark(own_file, name="medmcqa")])


@pytest.mark.parametrize(
    ("typo", "near"), [("medqa", "medqa_4options"), ("pubmed_qa", "pubmedqa"), ("genral", "general")]
)
def test_typo_lists_near_names(typo, near):
    with pytest.raises(ValueError, match=f"no benchmark '{typo}'. Near names: .*{near}"):
        resolve_benchmarks([typo])


def test_limit_draws_with_the_seed_and_nests(tmp_path):
    rows = [{**MEDQA, "sent1": str(i)} for i in range(50)]
    write_jsonl(tmp_path / "medqa_4options.jsonl", rows)

    def drawn(limit, seed=0):
        [(_, _, questions)] = read_benchmarks("medqa_4options", data_dir=tmp_path, limit=limit, seed=seed)
        assert all(question.prompt.startswith(f"Question: {question.index}\n") for question in questions)
        return [question.index for question in questions]

    assert drawn(10) == drawn(10) == sorted(drawn(10))
    assert drawn(10) != drawn(10, seed=1)
    assert set(drawn(10)) < set(drawn(20))
    assert drawn(500) == drawn(None) == list(range(50))
    with pytest.raises(ValueError, match="limit must be a whole number"):
        drawn(0)
