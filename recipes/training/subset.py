"""Whether the subset that an earlier run of cpt.py or sft.py selected on the way in is what is asked for now."""

import json
from pathlib import Path


def check_same_selection(args):
    """Whether the subset in `output_dir` is what these options select: of the same budget, strategy, law and corpus.

    Raises:
        ValueError: naming what differs.
    """
    from hf_ppl_select import ScalingLaw
    from hf_ppl_select.data.load import load_rows
    from hf_ppl_select.selection.candidates import hash_columns, read_columns
    from hf_ppl_select.selection.predictions import describe_law
    from hf_ppl_select.selection.report import load_report

    path = Path(args.output_dir, "selection.json")
    report, law = load_report(path), ScalingLaw.load(args.law) if args.law else None
    options = report.get("options", {})
    columns = ("perplexity",) if law is None else (law.column,) if isinstance(law.column, str) else law.column
    scores = read_columns(
        load_rows(args.dataset_name, args.dataset_config, args.dataset_split), *columns, "num_tokens"
    )
    same = {name: options.get(name) == getattr(args, name) for name in ("num_tokens", "strategy", "seed")}
    same["law"] = report.get("law") == (law and json.loads(json.dumps(describe_law(law))))
    same["dataset_name"] = report.get("inputs", {}).get("sha256") == hash_columns(*scores)
    if changed := [f"--{name}" for name, equal in same.items() if not equal]:
        raise ValueError(
            f"{path} was selected with another {', '.join(changed)}, and the checkpoint was trained on it. Go "
            "back to those to continue; or start anew, with another --output_dir."
        )
