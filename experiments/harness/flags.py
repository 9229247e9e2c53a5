"""Flags from a dataclass by tyro, every complaint in one line with what there is instead."""

import contextlib
import dataclasses
import difflib
import io
import itertools
import math
import pathlib
import typing
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

import tyro

PROG = "python -m experiments"
LOST_AFTER = "Of several processes: seconds without a sign of one until the others end."


class Mistake(Exception):
    """What the user got wrong, in one line; ends the program with status 2."""

    def __init__(self, said: object):
        super().__init__(" ".join(str(said).split()))


def known(name: str, among: Iterable[str], what: str, hint: str = "") -> None:
    """Raises a `Mistake` that says what there is, unless `name` is among it."""
    among = list(among)
    if name in among:
        return
    close = difflib.get_close_matches(name, among, n=1)
    guess = f"; did you mean {close[0]}?" if close else ""
    hint = hint or f"there {'is' if len(among) == 1 else 'are'}: {', '.join(among)}"
    raise Mistake(f"unknown {what} {name}{guess} ({hint})")


def positive(name: str, value: float | None) -> None:
    """Raises a `Mistake` unless a time that was given is positive, and one that clocks can wait."""
    if value is None:
        return
    if not 0.0 < value < math.inf:
        raise Mistake(f"{name} must be positive, got {value:g}")
    if value > 1e6:
        raise Mistake(f"{name} must be at most 1,000,000, got {value:g}")


def parse(kind: Any, args: Sequence[str], command: str) -> Any:
    """Parses flags into a dataclass.

    Args:
        kind: The dataclass; tyro makes a flag of every field.
        args: What was typed after the command.
        command: The command, for messages and help.

    Raises:
        Mistake: for whatever does not fit.
        SystemExit: after printing the help that was asked for.
    """
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            flags, unknown = tyro.cli(
                kind,
                prog=f"{PROG} {command}",
                args=list(args),
                return_unknown_args=True,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as stop:
        if stop.code in (0, None):  # --help
            raise
        raise Mistake(_one_line(complaint.getvalue())) from None
    except ValueError as error:  # raised by the configuration itself
        raise Mistake(error) from None
    for token in unknown:
        if token.startswith("-"):
            flag = token.partition("=")[0].replace("_", "-")
            known(flag, _flags(kind), "flag", f"{PROG} {command} --help lists them")
        raise Mistake(f"{token!r} is one argument too many; see {PROG} {command} --help")
    return flags


def parse_run(name: str, package: Any, args: Sequence[str], folder: pathlib.Path) -> Any:
    """Parses `--preset`, `--out`, `--minutes`, `--lost-after` and the experiment's own flags.

    Args:
        name: The experiment.
        package: Its package, with SUMMARY, Config and PRESETS; flags override the preset's values.
        args: What was typed after the name.
        folder: Where runs of it are kept, for the help.

    Returns:
        A record with `preset`, `out`, `minutes`, `lost_after` and `config`.

    Raises:
        Mistake: for whatever does not fit.
        SystemExit: after printing the help that was asked for.
    """
    preset = "smoke"
    for index, arg in enumerate(args):
        if arg == "--preset" and index + 1 < len(args):
            preset = args[index + 1]
        elif arg.startswith("--preset="):
            preset = arg.removeprefix("--preset=")
    known(preset, package.PRESETS, "preset")

    def flag(kind: Any, said: str, **options: Any) -> Any:
        return Annotated[kind, tyro.conf.arg(help=said, **options)]

    choice = Literal[tuple(package.PRESETS)]  # pyright: ignore[reportInvalidTypeForm]
    where = f"Run folder, instead of {folder}/<date-time>."
    fields = [
        ("preset", flag(choice, "Sets the defaults below."), preset),
        ("out", flag(pathlib.Path | None, where, metavar="DIR", help_behavior_hint=""), None),
        ("minutes", flag(float | None, "Stop after so long, saved, to be resumed."), None),
        ("lost_after", flag(float, LOST_AFTER), 15.0),
        ("config", Annotated[package.Config, tyro.conf.arg(name="")], package.PRESETS[preset]),
    ]
    kind = dataclasses.make_dataclass("RunFlags", fields)
    kind.__doc__ = package.SUMMARY
    return parse(kind, args, f"run {name}")


def deciding(args: Sequence[str]) -> list[str]:
    """The flags that decide the figures: where they are written and how long it takes do not."""
    kept = list(args)
    for flag in ("--out", "--minutes", "--lost-after"):
        kept = [arg for arg in kept if not arg.startswith(f"{flag}=")]
        if flag in kept:
            del kept[kept.index(flag) : kept.index(flag) + 2]
    return kept


def _flags(kind: Any, prefix: str = "--") -> list[str]:
    """The long flags that a dataclass offers, nested ones with a dot."""
    found = []
    for name, hint in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            # `config` is the experiment's own; its flags stand without a prefix.
            found += _flags(hint, prefix if name == "config" else f"{prefix}{name}.")
        else:
            found.append(prefix + name.replace("_", "-"))
    return found


def _one_line(box: str) -> str:
    """The complaint inside tyro's box: between its title and the first rule or empty line."""
    lines = [line.strip(" │╭╮╰╯─|+-") for line in box.splitlines()[1:]]
    said = itertools.takewhile(bool, itertools.dropwhile(lambda line: not line, lines))
    return " ".join(said) or "these arguments do not fit"
