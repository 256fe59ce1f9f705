"""The entry point: ``lalp <command>``, and how any command ends."""

import importlib
import os
import sys
from collections.abc import Callable, Sequence

from lalp_jax import __version__
from lalp_jax.errors import LalpError

COMMANDS = {
    "score": "score several teachers' answers with a student",
    "select": "score what is not scored yet, then select",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command by its name."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["--version"]:
        print(__version__)
        return 0
    if not arguments or arguments[0] not in COMMANDS:
        listed = "\n".join(f"  {name:8} {about}" for name, about in COMMANDS.items())
        print(f"usage: lalp COMMAND [--help] …\n\n{listed}", file=sys.stdout if "--help" in arguments else sys.stderr)
        return 0 if "--help" in arguments else 2
    return run_command(arguments[0], arguments[1:])


def run_command(name: str, argv: Sequence[str] | None = None) -> int:
    """Runs one command; errors that the user can mend are printed alone.

    Returns:
      0 on success, 2 for such an error, 130 when interrupted.
    """
    # Before TensorFlow or transformers are imported: their notices are not the user's.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    command: Callable[[Sequence[str] | None], None] = importlib.import_module(f"lalp_jax.commands.{name}").main
    try:
        command(argv)
    except LalpError as error:
        print(f"lalp {name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"lalp {name}: interrupted; start it again to go on", file=sys.stderr)
        return 130
    return 0
