r"""
Does it pay? Many corpora drawn anew, on each of them probes, laws and every way to choose, and what each one bought.

```bash
make study-small                                              # on two cores, without the Hub
python recipes/study.py --config recipes/configs/study.yaml   # a GPU
python recipes/study.py --config recipes/configs/study.yaml --report_only  # tables and figure from the records
```

plan.json, with a hash, is written before the first run: corpora, arms, seeds, budgets, the primary comparisons and
what would count as failure. Everything that is measured is a line in records/, with the nll of each held-out text;
killed, the same command goes on from there. The report is made of the records alone.
"""

from pathlib import Path

import deduplicate
import score
import sft
from command_line import parse_options
from studying.plan import StudyArguments, check_columns, write_plan


def main(args):
    from studying.report import write_report

    folder = Path(args.output_dir)
    if not args.report_only:
        from hf_ppl_select.data.saving import one_at_a_time
        from hf_ppl_select.likelihood.model_identity import resolve_revision
        from quickstart_steps.offline_model import offline_model
        from studying.draw import run_draw
        from studying.pool import Pool
        from training.side_by_side import run_side_by_side

        check_columns(args)
        model = args.model or str(offline_model())
        weights = resolve_revision(model)
        plan = write_plan(folder, args, weights)
        print(f"The plan is in {folder / 'plan.json'}: sha256 {plan}", flush=True)
        recipes = {
            "deduplicated": (deduplicate.make_parser, deduplicate.main),
            "scored": (score.make_parser, score.main),
            "reference": (sft.make_parser, sft.main),  # of answers; of texts score.py trains it
        }
        draws = folder / "draws"
        tasks = [
            (Pool(draws / f"{corpus}-{seed}", corpus, seed, model, weights, plan, recipes, args), folder / "records")
            for corpus, seed in args.draws()
        ]
        arms = [len(args.arms_of(corpus)) for corpus, _ in args.draws()]
        sizes = [n * args.num_tokens + args.num_probes * args.probe_tokens for n in arms]
        with one_at_a_time(folder):  # a second copy of this command finds all done
            run_side_by_side(run_draw, tasks, args.num_workers, sizes=sizes, description="Draws")
    report = write_report(folder)
    print(f"\n{report.read_text(encoding='utf-8')}\n{report}")


def make_parser():
    from trl import TrlParser

    return TrlParser(StudyArguments, description=__doc__.strip().partition("\n")[0], allow_abbrev=False)


if __name__ == "__main__":
    from command_line import answer_help, run

    answer_help(StudyArguments, __doc__)
    run(lambda: main(*parse_options(make_parser())))
