"""How every recipe reads its options and says what is wrong: in one line, with an exit code that is not 0."""

from __future__ import annotations

import argparse
import errno
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from hf_ppl_select.command import as_typed
from hf_ppl_select.data.credentials import hide_credentials
from hf_ppl_select.data.strict import in_a_line

from .config_file import check_config

OUR_FOLDERS = ("hf_ppl_select", "trainer_callbacks", "recipes")
_ADVICE = {
    errno.EEXIST: "a file is in the way of a folder: name another place",
    errno.ENOTDIR: "a file is in the way of a folder: name another place",
    errno.EBUSY: "it is in use, or a mount point: name a folder inside it",
    errno.EROFS: "the disk is read-only: name another place",
    errno.EACCES: "it may not be written or read: name another place, or change its permissions",
    errno.EDQUOT: "the quota is used up: free some space, and run it again",
}
_FULL = ("No space left on device", "PytorchStreamWriter failed writing", "basic_ios::clear: iostream error")
USAGE = "%(prog)s [--config FILE] [--option value ...]"


def answer_help(options: type, docstring: str, *, and_trl: bool = False) -> None:
    """Answer `--help` at once from a recipe's own options: importing TRL for it takes seconds. `--help_all` does.

    Args:
        options: the dataclass of the recipe's own options.
        docstring: the recipe's, which is printed above them.
        and_trl: the recipe takes the options of TRL's SFTConfig and ModelConfig, too.
    """
    if "--help_all" in sys.argv[1:]:
        sys.argv[1:] = ["--help"]
        return
    if not {"-h", "--help"} & set(sys.argv[1:]):
        return
    epilog = "--config FILE reads options from YAML; those on the command line win."
    if and_trl:
        epilog = (
            "Besides, every option of TRL's SFTConfig and ModelConfig, such as --model_name_or_path,\n"
            f"--learning_rate, --max_length, --use_peft or --output_dir; --help_all lists them.\n{epilog}"
        )
    parser = argparse.ArgumentParser(
        usage=USAGE,
        description=as_typed(docstring.strip()),
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    hints = get_type_hints(options)
    for option in fields(options):
        hint, about = hints[option.name], option.metadata.get("help", "")
        default = option.default if option.default_factory is MISSING else option.default_factory()
        if default is MISSING:
            about += " (required)"
        elif default is not False and default not in (None, []):
            about += f" (default: {default!r})".replace("%", "%%")
        if hint is bool:
            shape = {"action": "store_true"}
        elif get_origin(hint) is Literal:
            shape = {"choices": get_args(hint)}
        else:
            kind = next(name for name in ("int", "float", "str") if name in str(hint))
            shape = {"metavar": kind.upper(), "nargs": "+" if "list" in str(hint) else None}
        parser.add_argument(f"--{option.name}", *option.metadata.get("aliases", ()), help=about, **shape)
    parser.print_help()
    parser.exit()


def parse_options(parser: Any, args: list[str] | None = None) -> tuple:
    """The dataclasses of a `TrlParser`, from the command line and `--config FILE`; an unknown option or key fails."""
    given = sys.argv[1:] if args is None else args
    if given[-1:] == ["--config"]:
        parser.exit(2, f"{parser.prog}: error: --config needs a YAML file.\n")
    parser.usage = USAGE  # not hundreds of them before each error
    parser.error = lambda message: type(parser).error(parser, in_a_line(hide_credentials(message)))
    try:
        if "--config" in given:
            check_config(given[given.index("--config") + 1], parser.dataclass_types)
        return parser.parse_args_and_config(args=args)
    except (OSError, ValueError, TypeError) as error:
        parser.exit(2, f"{parser.prog}: error: {in_a_line(hide_credentials(str(error)))}\n")


def run(main: Callable[[], Any]) -> None:
    """Call `main`. Of errors that our own code raises, and of files that are not there, the message is all one needs.

    Other errors keep their traceback, since it may take one to understand them. Credentials are hidden in either.
    Ctrl-C and SIGTERM end it in one line, too, with the exit codes of shells; what was half written is removed.
    """
    sys.excepthook = show_error
    name = Path(sys.argv[0]).name
    try:
        with _told_to_end():
            main()
    except Terminated:
        print(f"{name}: terminated.", file=sys.stderr)
        sys.exit(128 + signal.SIGTERM)
    except KeyboardInterrupt:
        print(f"{name}: interrupted.", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except Exception as error:  # tokenizers raise nothing more special for a full disk
        if (message := in_one_line(error)) is None:
            raise
        print(f"{name}: error: {hide_credentials(message)}", file=sys.stderr)
        sys.exit(2)


class Terminated(KeyboardInterrupt):
    """SIGTERM came: whoever waits for the end of this process would kill it next."""


@contextmanager
def _told_to_end() -> Iterator[None]:
    """SIGTERM as an exception, so that what is half written is removed. One of several processes dies at once, as it
    does without us: it may wait for the others in a call that no exception ends.
    """
    alone = "RANK" not in os.environ and threading.current_thread() is threading.main_thread()
    if not alone or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    own = os.getpid()

    def end(number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_DFL)  # a second one does not wait
        if os.getpid() == own:
            raise Terminated
        os.kill(os.getpid(), number)  # of a fork, like the loader of batches

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def in_one_line(error: Exception) -> str | None:
    """What an error comes to, if that is all one needs; None where it may take the traceback to understand it."""
    said, chain = str(error), list(_with_causes(error))
    if any(text in str(one) for one in chain for text in _FULL):
        names = [one.filename for one in chain if getattr(one, "filename", None)]
        where = f" for {names[0]}" if names else ""
        return f"the disk is full{where}; free some space and run it again, it goes on from what is whole."
    if isinstance(error, OSError) and error.errno in _ADVICE:
        return f"{error.strerror}{f': {error.filename}' if error.filename else ''}; {_ADVICE[error.errno]}."
    if "Read-only file system (os error" in said:  # of safetensors and tokenizers
        return f"{said}; {_ADVICE[errno.EROFS]}."
    if isinstance(error, UnicodeEncodeError):
        half = error.object[error.start]
        return f"a text holds half a character ({half!r}), which no file takes; write the text anew as UTF-8."
    ours = any(folder.name in OUR_FOLDERS for folder in list(_raised_in(error).parents)[:3])
    if isinstance(error, OSError) or (ours and isinstance(error, (ValueError, KeyError, TypeError, ImportError))):
        return str(error.args[0]) if isinstance(error, KeyError) else said
    return None


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    """It, what it was raised from, and what went wrong before: a writer that cannot close says little itself."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _raised_in(error: Exception) -> Path:
    """The file; of an error in a worker of a pool, that of the worker, whose traceback comes as text."""
    if type(error.__cause__).__name__ == "_RemoteTraceback" and (
        files := re.findall(r'^ +File "(.+)", line \d+', str(error.__cause__), re.MULTILINE)
    ):
        return Path(files[-1])
    return Path(traceback.extract_tb(error.__traceback__)[-1].filename)


def show_error(kind: type[BaseException], error: BaseException, where: Any) -> None:
    """The traceback as Python shows it, without credentials."""
    sys.stderr.write(hide_credentials("".join(traceback.format_exception(kind, error, where))))
