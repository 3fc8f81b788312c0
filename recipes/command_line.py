"""How every recipe reads its options and says what is wrong: in one line, with an exit code that is not 0."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

OUR_FOLDERS = ("hf_ppl_select", "trainer_callbacks", "recipes")


def help_without_trl(options: type, docstring: str) -> None:
    """Answer `--help` with a recipe's own options at once; importing TRL's takes seconds: `--help_all` lists them too.

    Args:
        options: the dataclass of the recipe's own options.
        docstring: the recipe's, which is printed above them.
    """
    if "--help_all" in sys.argv[1:]:
        sys.argv[1:] = ["--help"]
    elif {"-h", "--help"} & set(sys.argv[1:]):
        from trl import TrlParser

        parser = TrlParser(
            options,
            description=docstring.strip(),
            epilog="Besides, every option of TRL's SFTConfig and ModelConfig, such as --model_name_or_path,\n"
            "--learning_rate, --max_length, --use_peft or --output_dir; --help_all lists them.\n"
            "--config FILE reads options from YAML.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.print_help()
        parser.exit()


def parse_options(parser: Any, args: list[str] | None = None) -> tuple:
    """The dataclasses of a `TrlParser`, from the command line and `--config FILE`; an unknown option or key fails."""
    if (sys.argv[1:] if args is None else args)[-1:] == ["--config"]:
        parser.exit(2, f"{parser.prog}: error: --config needs a YAML file.\n")
    parser.usage = "%(prog)s [--config FILE] [--option value ...]"  # not hundreds of them before each error
    try:
        return parser.parse_args_and_config(args=args)
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")


def run(main: Callable[[], Any]) -> None:
    """Call `main`. Of errors that our own code raises, and of files that are not there, the message is all one needs.

    Other errors keep their traceback, since it may take one to understand them.
    """
    try:
        main()
    except (ValueError, KeyError, TypeError, OSError, ImportError) as error:
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        ours = any(folder.name in OUR_FOLDERS for folder in list(raised_in.parents)[:3])
        if not ours and not isinstance(error, OSError):
            raise
        message = error.args[0] if isinstance(error, KeyError) else error
        print(f"{Path(sys.argv[0]).name}: error: {message}", file=sys.stderr)
        sys.exit(2)
