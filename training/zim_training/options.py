"""Settings as dataclasses: every field a flag, presets as instances, the paper's section beside.

No torch here: ``--help`` and ``--print-config`` need none of it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from zim.commandline import UsageError
from zim.errors import ConfigError, reason

Config = TypeVar("Config")


def setting(
    default: Any,
    about: str,
    paper: str = "",
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    multiple: int | None = None,
) -> Any:
    """Declare a field with its help text, its bounds and, where the paper states it, the section.

    Args:
        default: of the field.
        about: what it does, for ``--help``.
        paper: where the paper gives the number, for example ``"Sec. 5.1"``; empty where it is ours.
        low: least value.
        high: largest value.
        above: the value must be larger than this.
        multiple: the value must be a multiple of this.
    """
    metadata = {"about": about, "paper": paper, "low": low, "high": high, "above": above}
    return dataclasses.field(default=default, metadata=metadata | {"multiple": multiple})


def check_bounds(cls: Any, values: Mapping[str, Any]) -> None:
    """Hold values against the bounds of a settings class; fields that it has not are passed over.

    Raises:
        UsageError: a number is out of its bounds or not finite.
    """
    for field in dataclasses.fields(cls):
        value = values.get(field.name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        low, high, above, multiple = (
            field.metadata.get(name) for name in ("low", "high", "above", "multiple")
        )
        fits = math.isfinite(value) and (low is None or value >= low)
        fits = fits and (high is None or value <= high) and (above is None or value > above)
        if not fits or (multiple and value % multiple):
            words = [f"a multiple of {multiple}"] if multiple else []
            words += [f"more than {above:g}"] if above is not None else []
            words += [f"{low:g} or more"] if low is not None else []
            words += [f"at most {high:g}"] if high is not None else []
            flag = "--" + field.name.replace("_", "-")
            raise UsageError(f"{flag} {value}: expected {', '.join(words) or 'a finite number'}")


def add_flags(
    parser: argparse.ArgumentParser,
    presets: Mapping[str, Any],
    use: str,
    *,
    note: str = "",
    skip: tuple[str, ...] = (),
) -> None:
    """Give every field of a settings class a flag; a flag not given leaves the preset's value.

    Args:
        parser: of the command.
        presets: by name; all of one class.
        use: the preset whose values the help shows.
        note: when another preset is used, for the help.
        skip: fields without a flag.
    """
    parser.set_defaults(seed=None)  # --seed is a setting, too: given or not; see chosen
    group = parser.add_argument_group(
        "settings (a flag overrides the preset)",
        f"Values in brackets are those of the preset {use}{note}; --print-config shows those in "
        "force.",
    )
    config = presets[use]
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        if field.name in skip:
            continue
        about, value = field.metadata.get("about", ""), getattr(config, field.name)
        shown = {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)
        known = "; ".join(filter(None, (shown, field.metadata.get("paper"))))
        text = (f"{about} [{known}]" if known else about).replace("%", "%%")
        options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text}
        kind = hints[field.name]
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif typing.get_origin(kind) is Literal:
            options["choices"] = typing.get_args(kind)
        else:
            options |= {"type": kind, "metavar": {int: "N", float: "X"}.get(kind, "NAME")}
        group.add_argument("--" + field.name.replace("_", "-"), **options)


def add_config_flags(parser: argparse.ArgumentParser, presets: Mapping[str, Any], use: str) -> None:
    """Add ``--preset``, ``--config`` and ``--print-config``."""
    parser.add_argument(
        "--preset", default=use, choices=tuple(presets), help=f"settings to start from [{use}]"
    )
    parser.add_argument("--config", metavar="FILE", help="settings from a run's config.json")
    parser.add_argument("--print-config", action="store_true", help="show the settings and stop")


def chosen(args: argparse.Namespace, cls: type[Config], base: Config) -> Config:
    """Return the settings of a command line: preset, then ``--config``, then single flags.

    ``args.seed`` becomes the seed that is in force.

    Raises:
        UsageError: the file cannot be read or holds an unknown key or a wrong type, or a value is
            out of its bounds.
    """
    fields = {f.name for f in dataclasses.fields(cls)}  # pyright: ignore[reportArgumentType]
    config = base
    if getattr(args, "config", None):
        config = replace(base, read_config(Path(args.config)), str(args.config))
    given = {k: v for k, v in vars(args).items() if k in fields and k not in ("preset", "config")}
    if args.seed is None:
        given.pop("seed", None)
    try:
        config = dataclasses.replace(config, **given)  # pyright: ignore[reportArgumentType]
    except ConfigError as error:
        raise UsageError(str(error)) from error
    check_bounds(cls, vars(config))
    args.seed = config.seed  # pyright: ignore[reportAttributeAccessIssue]
    return config


def read_config(path: Path) -> dict[str, Any]:
    """Read a run's ``config.json``.

    Raises:
        UsageError: it is missing or no JSON object.
    """
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"--config {path} cannot be read ({reason(error)})") from error
    if not isinstance(data, dict):
        raise UsageError(f"--config {path} holds no JSON object")
    return data


def replace(base: Config, values: dict[str, Any], where: str) -> Config:
    """Replace fields by name; unknown names and wrong types are errors.

    Raises:
        UsageError: a name or a type does not fit.
    """
    hints = typing.get_type_hints(type(base))
    for name, value in values.items():
        if name not in hints:
            raise UsageError(f"{where}: unknown setting {name!r}; known: {', '.join(hints)}")
        kind, choices = hints[name], ()
        if typing.get_origin(kind) is Literal:
            choices = typing.get_args(kind)
            fits = value in choices
        elif kind is float:
            fits = isinstance(value, int | float) and not isinstance(value, bool)
        else:
            fits = type(value) is kind
        if not fits:
            wanted = ", ".join(choices) if choices else kind.__name__
            raise UsageError(f"{where}: {name} is {value!r}; expected {wanted}")
    return dataclasses.replace(base, **values)  # pyright: ignore


def describe(config: Any) -> list[str]:
    """List settings for people: value, meaning, and where the paper states it."""
    lines = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        paper = field.metadata.get("paper")
        note = field.metadata.get("about", "") + (f" ({paper})" if paper else "")
        lines.append(f"{field.name} = {value!r}".ljust(34) + f"  # {note}".rstrip())
    return lines
