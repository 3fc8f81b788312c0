"""How every recipe reads its options and says what is wrong: in one line, with an exit code that is not 0."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

OUR_FOLDERS = ("hf_ppl_select", "trainer_callbacks", "recipes")


def parse_options(parser: Any, args: list[str] | None = None) -> tuple:
    """The dataclasses of a `TrlParser`, from the command line and `--config FILE`; an unknown option or key fails."""
    if (sys.argv[1:] if args is None else args)[-1:] == ["--config"]:
        parser.exit(2, f"{parser.prog}: error: --config needs a YAML file.\n")
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
        ours = raised_in.parent.name in OUR_FOLDERS or raised_in.parent.parent.name in OUR_FOLDERS
        if not ours and not isinstance(error, OSError):
            raise
        message = error.args[0] if isinstance(error, KeyError) else error
        print(f"{Path(sys.argv[0]).name}: error: {message}", file=sys.stderr)
        sys.exit(2)
