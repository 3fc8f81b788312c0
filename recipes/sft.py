r"""
Supervised fine-tuning on prompt/completion or messages rows with TRL's SFTTrainer. Every option of SFTConfig and
ModelConfig passes through.

# Full training, or LoRA; of prompt and completion, only the completion's tokens count in the loss
```bash
python recipes/sft.py --config recipes/configs/sft_full.yaml
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

# On those answers of a scored dataset that a law predicts to be best
```bash
python recipes/sft.py \
    --config recipes/configs/sft_full.yaml \
    --dataset_name outputs/scored_answers \
    --dataset_train_split train \
    --law outputs/law/law.json \
    --num_tokens 1_000_000 \
    --eval_file held_out_answers.jsonl \
    --output_dir outputs/sft_selected
```

Rows longer than `max_length` are counted and reported before training. `output_dir` gets the model (with LoRA: the
adapter), the tokenizer, a model card and metrics.json. Add `--use_cpu` where there is no GPU; see cpt.py for several
processes, interruptions and replay.
"""

from dataclasses import dataclass, field

from hf_ppl_select.data.load import load_answers, load_texts
from select_subset import select_on_the_way_in
from training.options import TrainingRunArguments, check_options


@dataclass
class SftArguments(TrainingRunArguments):
    """The dataset has the columns `prompt` and `completion`, texts or lists of messages, or `messages`; with messages
    also `tools` and `chat_template_kwargs` for the chat template.
    """

    prompt_column: str = field(default="prompt", metadata={"help": "The column to take as the prompt."})
    completion_column: str = field(default="completion", metadata={"help": "The column to take as the completion."})
    prompt_template: str | None = field(
        default=None,
        metadata={
            "help": "What to write around each prompt of text, e.g. 'Question: {prompt}', before the completion."
        },
    )


def main(script_args, training_args, model_args):
    # What can be wrong is found before the model loads
    check_options(script_args, training_args, model_args)

    from trl import get_peft_config, get_quantization_config, get_training_chat_template
    from trl.chat_template_utils import has_generation_markers

    from training.card import CardFacts
    from training.run import add_callbacks, load_replay, train_and_finish
    from training.trainer import RecipeTrainer

    # Load the rows to train on and those to measure on
    source = (script_args.dataset_name, script_args.dataset_config)
    names = ("prompt_column", "completion_column", "prompt_template")
    columns = {name: getattr(script_args, name) for name in names}
    held_out = {}
    if script_args.eval_file is not None:
        held_out["domain"], _ = load_answers(script_args.eval_file, **columns)
    elif script_args.dataset_test_split is not None:
        held_out["domain"], _ = load_answers(*source, script_args.dataset_test_split, **columns)
    if script_args.general_eval_file is not None:
        held_out["general"], _ = load_texts(script_args.general_eval_file)
    replay = load_replay(script_args)
    subset = select_on_the_way_in(script_args, training_args)
    if subset is not None:
        rows, num_empty = load_answers(str(subset), **columns)
    else:
        rows, num_empty = load_answers(*source, script_args.dataset_train_split, **columns)

    # Train
    trainer = RecipeTrainer(
        model=model_args.model_name_or_path,
        args=training_args,
        train_dataset=rows,
        eval_dataset=held_out.get("domain") if training_args.eval_strategy != "no" else None,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
        replay=replay,
        card_facts=CardFacts.of("sft", script_args, model_args),
    )
    # Measured under the chat template that is trained with; to count the assistant's tokens, it must mark them
    template, tokenizer = trainer.chat_template, trainer.processing_class
    chats = any("messages" in rows.column_names for rows in held_out.values())
    if chats and template is None and not has_generation_markers(tokenizer.chat_template or ""):
        template = get_training_chat_template(tokenizer)
    add_callbacks(trainer, held_out, chat_template=template, every_n_steps=script_args.perplexity_steps)
    train_and_finish(trainer, script_args, num_empty, subset)  # and save, and push


def make_parser():
    from trl import ModelConfig, SFTConfig, TrlParser

    description = __doc__.strip().partition(".")[0] + "."
    return TrlParser((SftArguments, SFTConfig, ModelConfig), description=description, allow_abbrev=False)


if __name__ == "__main__":
    from command_line import answer_help, parse_options, run

    answer_help(SftArguments, __doc__, and_trl=True)
    run(lambda: main(*parse_options(make_parser())))
