"""Settings as dataclasses: every field a flag, presets as instances, the paper's section beside.

No torch here: ``--help`` and ``--print-config`` need none of it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from zim.commandline import UsageError
from zim.errors import ConfigError, reason

Config = TypeVar("Config")


def setting(default: Any, about: str, paper: str = "") -> Any:
    """Declare a field with its help text and, where the paper states it, the section.

    Args:
        default: of the field.
        about: what it does, for ``--help``.
        paper: where the paper gives the number, for example ``"Sec. 5.1"``; empty where it is ours.
    """
    return dataclasses.field(default=default, metadata={"about": about, "paper": paper})


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

    Raises:
        UsageError: the file cannot be read or holds an unknown key or a wrong type.
    """
    fields = {f.name for f in dataclasses.fields(cls)}  # pyright: ignore[reportArgumentType]
    config = base
    if getattr(args, "config", None):
        config = replace(base, read_config(Path(args.config)), str(args.config))
    given = {k: v for k, v in vars(args).items() if k in fields and k not in ("preset", "config")}
    try:
        return dataclasses.replace(config, **given)  # pyright: ignore[reportArgumentType]
    except ConfigError as error:
        raise UsageError(str(error)) from error


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
