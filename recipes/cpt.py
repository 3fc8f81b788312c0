r"""
Continual pre-training on text with TRL's SFTTrainer. Every option of SFTConfig and ModelConfig passes through.

# Full training, or LoRA
```bash
python recipes/cpt.py --config recipes/configs/cpt_full.yaml
python recipes/cpt.py --config recipes/configs/cpt_lora.yaml
```

# On the tokens of a scored corpus that a law predicts to be best, with general text replayed against forgetting
```bash
python recipes/cpt.py \
    --config recipes/configs/cpt_full.yaml \
    --dataset_name outputs/scored \
    --dataset_text_field text \
    --dataset_train_split train \
    --law outputs/law/law.json \
    --num_tokens 5_000_000 \
    --replay_dataset general.jsonl \
    --eval_file held_out_medical.jsonl \
    --general_eval_file held_out_general.txt \
    --output_dir outputs/cpt_selected
```

# In several processes, and on again after an interruption
```bash
accelerate launch --config_file recipes/configs/accelerate/ddp.yaml \
    recipes/cpt.py --config recipes/configs/cpt_full.yaml --resume_from_checkpoint true
```

Rows are packed into sequences of `max_length` tokens, and `bfd_split` drops no token. `output_dir` gets the model
(with LoRA: the adapter), the tokenizer, a model card and metrics.json. Add `--use_cpu` where there is no GPU.
"""

from dataclasses import dataclass

from hf_ppl_select.data.load import load_texts
from select_subset import select_on_the_way_in
from training.options import TrainingRunArguments, check_options


@dataclass
class CptArguments(TrainingRunArguments):
    """The text is in the column that `dataset_text_field` names."""


def main(script_args, training_args, model_args):
    # What can be wrong is found before the model loads
    check_options(script_args, training_args, model_args)

    from trl import get_peft_config, get_quantization_config

    from training.card import CardFacts
    from training.run import add_callbacks, load_replay, train_and_finish
    from training.trainer import RecipeTrainer

    # Load the text to train on and the text to measure on
    column = training_args.dataset_text_field
    source = (script_args.dataset_name, column, script_args.dataset_config)
    held_out = {}
    if script_args.eval_file is not None:
        held_out["domain"], _ = load_texts(script_args.eval_file, column)
    elif script_args.dataset_test_split is not None:
        held_out["domain"], _ = load_texts(*source, script_args.dataset_test_split)
    if script_args.general_eval_file is not None:
        held_out["general"], _ = load_texts(script_args.general_eval_file, column)
    replay = load_replay(script_args)
    subset = select_on_the_way_in(script_args, training_args)
    if subset is not None:
        texts, num_empty = load_texts(str(subset), column)
    else:
        texts, num_empty = load_texts(*source, script_args.dataset_train_split)
    training_args.dataset_text_field = "text"  # what load_texts calls it

    # Train
    trainer = RecipeTrainer(
        model=model_args.model_name_or_path,
        args=training_args,
        train_dataset=texts,
        eval_dataset=held_out.get("domain") if training_args.eval_strategy != "no" else None,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
        replay=replay,
        card_facts=CardFacts.of("cpt", script_args, model_args),
    )
    add_callbacks(trainer, held_out, every_n_steps=script_args.perplexity_steps)
    train_and_finish(trainer, script_args, num_empty, subset)  # and save, and push


def make_parser():
    from trl import ModelConfig, SFTConfig, TrlParser

    description = __doc__.strip().partition("\n")[0]
    parser = TrlParser((CptArguments, SFTConfig, ModelConfig), description=description, allow_abbrev=False)
    parser.set_defaults_with_config(packing=True, packing_strategy="bfd_split")
    return parser


if __name__ == "__main__":
    from command_line import answer_help, parse_options, run

    answer_help(CptArguments, __doc__, and_trl=True)
    run(lambda: main(*parse_options(make_parser())))
