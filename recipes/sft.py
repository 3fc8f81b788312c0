"""
Supervised fine-tuning on prompt/completion or messages rows with TRL's SFTTrainer. Every option of SFTConfig and
ModelConfig passes through.

# Full training; of prompt and completion, only the completion's tokens count in the loss
```bash
python recipes/sft.py --config recipes/configs/sft_full.yaml
```

# LoRA
```bash
python recipes/sft.py --config recipes/configs/sft_lora.yaml
```

# On messages, where only the assistant's tokens count
```bash
python recipes/sft.py \
    --model_name_or_path Qwen/Qwen3-0.6B \
    --dataset_name conversations.jsonl \
    --assistant_only_loss \
    --eval_file held_out_conversations.jsonl \
    --output_dir outputs/sft_messages
```

`output_dir` gets the model (with LoRA: the adapter), the tokenizer and metrics.json. Add `--use_cpu` where there is no
GPU.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class SftArguments:
    dataset_name: str = field(
        metadata={
            "help": "What to train on: a Hub dataset, a folder written by `save_to_disk`, or a .parquet, .jsonl or "
            ".csv file, with the columns `prompt` and `completion`, or `messages`."
        }
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    dataset_train_split: str = field(default="train", metadata={"help": "Split to train on, e.g. train[1000:]."})
    dataset_test_split: str | None = field(
        default=None,
        metadata={"help": "Held-out split of the same dataset, instead of `eval_file`, e.g. train[:1000]."},
    )
    prompt_column: str = field(default="prompt", metadata={"help": "The column to take as the prompt."})
    completion_column: str = field(default="completion", metadata={"help": "The column to take as the completion."})
    prompt_template: str | None = field(
        default=None,
        metadata={
            "help": "What to write around each prompt of text, e.g. 'Question: {prompt}', before the completion."
        },
    )
    eval_file: str | None = field(
        default=None,
        metadata={"help": "Held-out rows of the same kind: logs domain_loss, domain_perplexity, ... of the answers."},
    )
    general_eval_file: str | None = field(
        default=None, metadata={"help": "Held-out general text, in column `text`: logs general_loss, ..."}
    )
    perplexity_steps: int | None = field(
        default=None,
        metadata={"help": "Measure held-out rows every so many steps, besides step 0, evaluations and the last step."},
    )


def main(script_args, training_args, model_args):
    from importlib.util import find_spec

    from trl import get_peft_config, get_quantization_config, get_training_chat_template

    from cpu_trainer import sft_trainer_class
    from hf_ppl_select.saving import save_json
    from hf_ppl_select.sources import load_answers, load_texts
    from trainer_callbacks import PerplexityCallback, TokensPerSecondCallback

    # What can be wrong is found before the model loads
    if model_args.model_name_or_path is None:
        raise ValueError("there is no model; pass --model_name_or_path, e.g. HuggingFaceTB/SmolLM2-135M.")
    if model_args.use_peft and find_spec("peft") is None:
        raise ValueError("--use_peft needs the peft library; install it with: pip install 'hf-ppl-select[peft]'")
    source = (script_args.dataset_name, script_args.dataset_config)
    names = ("prompt_column", "completion_column", "prompt_template")
    columns = {name: getattr(script_args, name) for name in names}
    rows, num_empty = load_answers(*source, script_args.dataset_train_split, **columns)
    held_out = {}
    if script_args.eval_file is not None:
        held_out["domain"], _ = load_answers(script_args.eval_file, **columns)
    elif script_args.dataset_test_split is not None:
        held_out["domain"], _ = load_answers(*source, script_args.dataset_test_split, **columns)
    if script_args.general_eval_file is not None:
        held_out["general"], _ = load_texts(script_args.general_eval_file)

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
        train_dataset=rows,
        eval_dataset=held_out.get("domain") if training_args.eval_strategy != "no" else None,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    TokensPerSecondCallback.replace_bar_of(trainer)
    if held_out:
        # To count the assistant's tokens of messages, the chat template must mark them.
        template = get_training_chat_template(trainer.processing_class) if "messages" in rows.column_names else None
        steps = script_args.perplexity_steps
        trainer.add_callback(PerplexityCallback(trainer, held_out, chat_template=template, every_n_steps=steps))
    result = trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)

    trainer.save_model(training_args.output_dir)
    if trainer.is_world_process_zero():
        metrics = {
            "model": model_args.model_name_or_path,
            "dataset": script_args.dataset_name,
            "num_rows": len(rows),
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

    description = __doc__.strip().partition(".")[0] + "."
    return TrlParser((SftArguments, SFTConfig, ModelConfig), description=description, allow_abbrev=False)


if __name__ == "__main__":
    from command_line import parse_options, run

    options = parse_options(make_parser())
    run(lambda: main(*options))
