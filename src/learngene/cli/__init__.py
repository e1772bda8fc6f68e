"""The command line. A command imports inside what it needs, so that those without torch answer at once."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from typing import Annotated, Any

import typer

from learngene import __version__
from learngene.cli import (  # noqa: F401 - they register their commands
    experiments,
    genes,
    hub,
    models,
    plan,
    recipes,
    runs,
    ship,
)
from learngene.cli.app import app
from learngene.cli.examples import add_examples
from learngene.system.errors import InterruptedRun, LearngeneError
from learngene.system.machine_faults import machine_fault
from learngene.system.speech import LEVELS, Level, speech, spoken, tell

for _command in app.registered_commands:
    add_examples(_command)


@app.callback(invoke_without_command=True)
def _main(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="print the version")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks")] = False,
    log_level: Annotated[str, typer.Option(help="how much is told: debug, info, warning or error")] = "info",
) -> None:
    if version:
        print(f"learngene {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        if sys.argv[1:]:
            raise LearngeneError("give a command; see learngene --help")
        print(context.get_help())
        raise typer.Exit(2)


def main() -> None:
    """Runs the command line: exit code 0 if all went well, 2 with one line if the input was wrong."""
    debug = "--debug" in sys.argv
    with warnings.catch_warnings(), contextlib.ExitStack() as speaking:
        warnings.showwarning = _warn
        try:
            arguments, level = _level_of([argument for argument in sys.argv[1:] if argument != "--debug"])
            speaking.enter_context(spoken(level))
            code = app(arguments, prog_name="learngene", standalone_mode=False)
            sys.stdout.flush()
            sys.exit(code)
        except InterruptedRun as stop:
            _fail(f"stopped and saved at {stop.where}; the same command continues", 128 + stop.signal_number)
        except (SystemExit, BrokenPipeError) as end:
            if not isinstance(end, BrokenPipeError) and not isinstance(end.__context__, BrokenPipeError):
                raise
            # The reader went away, as `head` does. Typer makes an exit of it, and Python would complain at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        except Exception as error:
            if debug:
                raise
            if isinstance(error, LearngeneError):
                _fail(str(error), 2)
            if hasattr(error, "format_message"):  # typer's own: an unknown command or flag, a missing argument
                _usage(error)
            if line := machine_fault(error):
                _fail(line, 2)
            reason = " ".join(str(error)[:300].split())
            _fail(f"{type(error).__name__}: {reason} (a bug; --debug shows where)", 1)


def _level_of(arguments: list[str]) -> tuple[list[str], Level]:
    """What is left of the arguments without ``--log-level``, which may stand anywhere, and what that says."""
    rest, level = list(arguments), "info"
    for flag in [argument for argument in arguments if argument.partition("=")[0] == "--log-level"]:
        place = rest.index(flag)
        level = flag.partition("=")[2] if "=" in flag else "".join(rest[place + 1 : place + 2])
        del rest[place : place + (1 if "=" in flag else 2)]
    if chosen := next((known for known in LEVELS if known == level), None):
        return rest, chosen
    raise typer.BadParameter(f"{level!r} is not one of {', '.join(LEVELS)}", param_hint="--log-level")


def _warn(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """Prints a warning on one line; if it is not one of ours, with its kind."""
    if speech.level == "error":
        return
    kind = "" if category is UserWarning else f"{category.__name__}: "
    text = f"{kind}{' '.join(str(message).split())}"
    print(f"learngene: warning: {text}", file=sys.stderr)
    if speech.json:
        tell("warning", text=text)


def _usage(error: Any) -> None:
    """Prints one line after a wrong call, which is wrong before it is known whether its ``--json`` is a flag."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context else "learngene"
    _fail(f"{error.format_message().rstrip('.')}; see {path} --help", 2, told="--json" in sys.argv)


def _fail(text: str, code: int, *, told: bool = False) -> None:
    if os.environ.get("RANK", "0") == "0" or code == 1:
        for line in text.splitlines():  # one per fault, where there are several
            print(f"learngene: {' '.join(line.split())}", file=sys.stderr)
        if told or speech.json:
            tell("stopped" if code > 2 else "error", text=" ".join(text.split()), code=code)
    sys.exit(code)
