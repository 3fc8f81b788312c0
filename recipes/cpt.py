"""
Continual pre-training on text with TRL's SFTTrainer. Every option of SFTConfig and ModelConfig passes through.

# Full training
```bash
python recipes/cpt.py --config recipes/configs/cpt_full.yaml
```

# LoRA
```bash
python recipes/cpt.py --config recipes/configs/cpt_lora.yaml
```

# On a selected subset, measured on held-out text while it trains; options on the command line win over the file
```bash
python recipes/cpt.py \
    --config recipes/configs/cpt_full.yaml \
    --dataset_name outputs/subset \
    --dataset_text_field text \
    --dataset_train_split train \
    --eval_file held_out_medical.jsonl \
    --general_eval_file held_out_general.txt \
    --output_dir outputs/cpt_subset
```

Rows are packed into sequences of `max_length` tokens, and `bfd_split` drops no token. `output_dir` gets the model
(with LoRA: the adapter), the tokenizer and metrics.json. Add `--use_cpu` where there is no GPU.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class CptArguments:
    dataset_name: str = field(
        metadata={
            "help": "What to train on: a Hub dataset, a folder written by `save_to_disk`, or a .parquet, .jsonl, .csv "
            "or .txt file. The text is in the column that `dataset_text_field` names."
        }
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    dataset_train_split: str = field(default="train", metadata={"help": "Split to train on, e.g. train[1000:]."})
    dataset_test_split: str | None = field(
        default=None,
        metadata={"help": "Held-out split of the same dataset, instead of `eval_file`, e.g. train[:1000]."},
    )
    eval_file: str | None = field(
        default=None,
        metadata={"help": "Held-out domain text, named like a dataset: logs domain_loss, domain_perplexity, ..."},
    )
    general_eval_file: str | None = field(
        default=None, metadata={"help": "Held-out general text: logs general_loss, general_forgetting, ..."}
    )
    perplexity_steps: int | None = field(
        default=None,
        metadata={"help": "Measure held-out text every so many steps, besides step 0, evaluations and the last step."},
    )


def main(script_args, training_args, model_args):
    from importlib.util import find_spec

    from trl import get_peft_config, get_quantization_config

    from cpu_trainer import sft_trainer_class
    from hf_ppl_select.saving import save_json
    from hf_ppl_select.sources import load_texts
    from trainer_callbacks import PerplexityCallback, TokensPerSecondCallback

    # What can be wrong is found before the model loads
    if model_args.model_name_or_path is None:
        raise ValueError("there is no model; pass --model_name_or_path, e.g. HuggingFaceTB/SmolLM2-135M.")
    if model_args.use_peft and find_spec("peft") is None:
        raise ValueError("--use_peft needs the peft library; install it with: pip install 'hf-ppl-select[peft]'")
    source = (script_args.dataset_name, training_args.dataset_text_field, script_args.dataset_config)
    texts, num_empty = load_texts(*source, script_args.dataset_train_split)
    held_out = {}
    if script_args.eval_file is not None:
        held_out["domain"], _ = load_texts(script_args.eval_file, training_args.dataset_text_field)
    elif script_args.dataset_test_split is not None:
        held_out["domain"], _ = load_texts(*source, script_args.dataset_test_split)
    if script_args.general_eval_file is not None:
        held_out["general"], _ = load_texts(script_args.general_eval_file, training_args.dataset_text_field)

    training_args.dataset_text_field = "text"  # what load_texts calls it
    if training_args.include_num_input_tokens_seen == "no":
        # Packed rows have no padding, but their EOS tokens may be the padding token.
        training_args.include_num_input_tokens_seen = "all" if training_args.packing else "non_padding"
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
    } | (training_args.model_init_kwargs or {})

    trainer = sft_trainer_class(training_args)(
        model=model_args.model_name_or_path,
        args=training_args,
        train_dataset=texts,
        eval_dataset=held_out.get("domain") if training_args.eval_strategy != "no" else None,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    TokensPerSecondCallback.replace_bar_of(trainer)
    if held_out:
        trainer.add_callback(PerplexityCallback(trainer, held_out, every_n_steps=script_args.perplexity_steps))
    result = trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)

    trainer.save_model(training_args.output_dir)
    if trainer.is_world_process_zero():
        metrics = {
            "model": model_args.model_name_or_path,
            "dataset": script_args.dataset_name,
            "num_rows": len(texts),
            "num_empty_rows": num_empty,
            "num_tokens": trainer.state.num_input_tokens_seen,
            "train": result.metrics,
            "log_history": trainer.state.log_history,
        }
        metrics = json.loads(json.dumps(metrics), parse_constant=lambda name: None)  # JSON has no NaN: null
        save_json(Path(training_args.output_dir, "metrics.json"), metrics, kind="training_metrics", version=1)
        print(f"Saved the model and metrics.json to {training_args.output_dir}.")
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=script_args.dataset_name)


def make_parser():
    from trl import ModelConfig, SFTConfig, TrlParser

    description = __doc__.strip().partition("\n")[0]
    parser = TrlParser((CptArguments, SFTConfig, ModelConfig), description=description, allow_abbrev=False)
    parser.set_defaults_with_config(packing=True, packing_strategy="bfd_split")
    return parser


if __name__ == "__main__":
    from command_line import parse_options, run

    options = parse_options(make_parser())
    run(lambda: main(*options))
