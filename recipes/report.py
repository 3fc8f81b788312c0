r"""
Compare finished runs: base, random, selected, ...; one table with intervals, paired tests, tokens and time.

```bash
python recipes/report.py \
    --runs random=outputs/cpt-random-0,outputs/cpt-random-1,outputs/cpt-random-2 \
           selected=outputs/cpt-selected-0,outputs/cpt-selected-1,outputs/cpt-selected-2 \
    --baseline random \
    --output_dir outputs/report
```

A folder is the `--output_dir` of cpt.py or sft.py, with metrics.json, held_out.json (if held-out text was measured)
and, if run_benchmarks.py was told `--output <folder>/benchmarks.json`, benchmarks. The base model's held-out losses
are those of step 0; for its benchmarks add a group, `base=outputs/base`. Runs of one group differ in their `--seed`.
"""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class ReportArguments:
    runs: list[str] = field(metadata={"help": "Groups of runs, each as name=folder,folder,..."})
    baseline: str | None = field(
        default=None, metadata={"help": "Group that others are compared with; default: random, else the first."}
    )
    output_dir: str = field(default="outputs/report", metadata={"help": "Folder for report.md and report.png."})


def main(args):
    from comparing.plot import plot_differences
    from comparing.run_comparison import differences
    from comparing.run_records import read_groups
    from comparing.tables import caveats, cost_table, differences_table, intervals_cover, paired_tests, values_table
    from hf_ppl_select.data.saving import write_atomically

    groups = read_groups(args.runs)
    baseline = args.baseline or ("random" if "random" in groups else next(name for name in groups if name != "base"))
    if baseline not in groups:
        raise ValueError(f"there is no group {baseline!r} to compare with; the groups are {', '.join(groups)}.")
    if len(groups) < 2:
        raise ValueError("there is one group of runs and nothing to compare it with; give two, or measure the base.")
    rows = differences(groups, baseline)

    folder = Path(args.output_dir)
    sections = ["# Comparison of runs", cost_table(groups), *caveats(groups, baseline)]
    if rows:
        about = intervals_cover(groups)
        sections += ["## What was measured", values_table(groups, [measure for measure, _ in rows])]
        sections += [f"## Difference from {baseline}", differences_table(groups, rows, baseline), about]
        few = [row for row in rows if row[0].kind == "loss" or len(row[0].names) > 1] if len(rows) > 24 else rows
        plot_differences((few or rows)[:24], baseline, about.partition(". ")[0] + ".", folder / "report.png")
        sections.append("![differences](report.png)")
    sections += paired_tests(groups, baseline)
    write_atomically(folder / "report.md", "\n\n".join(sections) + "\n")
    print("\n\n".join(sections))
    print(f"\nSaved to {folder / 'report.md'}.")


def make_parser():
    from trl import TrlParser

    return TrlParser(ReportArguments, description=__doc__.strip().partition(";")[0] + ".", allow_abbrev=False)


if __name__ == "__main__":
    from command_line import answer_help, parse_options, run

    answer_help(ReportArguments, __doc__)
    run(lambda: main(*parse_options(make_parser())))
