"""What one call of ``zim-inpaint`` has to do: pictures, and what was said about each."""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from zim.commandline import UsageError
from zim.commands.outputs import Result
from zim.commands.prompt_flags import object_prompts
from zim.errors import PromptError
from zim.folders import pictures_in
from zim.prompt_json import ObjectPrompt, read_entry, with_usual_names

_PROMPT = {"point", "bbox"}
_WORDS = ("matte", "object", "text")
_KEYS = {"image", *_WORDS, *_PROMPT}


@dataclass(frozen=True)
class Job:
    """One picture."""

    image: str
    prompts: tuple[ObjectPrompt, ...] = ()
    #: words that name the object
    words: str | None = None
    matte: str | None = None
    #: words for what to paint
    text: str | None = None
    #: why it cannot be done, found while reading the manifest
    error: str | None = None
    #: which of the manifest's lines about this picture it is, where there are several
    number: int | None = None

    @property
    def result(self) -> Result:
        """What names its files."""
        return Result(self.image, self.number)


def jobs(args: argparse.Namespace) -> list[Job]:
    """Return the pictures of the command line or of the manifest.

    Raises:
        UsageError: there is none.
        PromptError: the manifest is empty.
        OSError: it cannot be read.
    """
    removing = args.mode == "remove"
    words = args.object or (args.text if removing else None)
    text = None if removing else args.text
    if args.manifest:
        return _manifest(Path(args.manifest), words, text, removing)
    prompts: Sequence[ObjectPrompt] = () if args.matte else object_prompts(args)
    if words and prompts == [ObjectPrompt()]:  # nothing but words was said
        prompts = ()
    return [Job(image, tuple(prompts), words, args.matte, text) for image in _expanded(args.image)]


def _expanded(images: Sequence[str]) -> list[str]:
    """Replace folders by the pictures in them, sorted."""
    out: list[str] = []
    for name in images:
        folder = Path(name).expanduser()
        if name == "-" or not folder.is_dir():
            out.append(name)
            continue
        inside = [str(p) for p in pictures_in(folder)]
        if not inside:
            raise UsageError(f"--image {name}: no pictures in this folder")
        out += inside
    if out.count("-") > 1:
        raise UsageError("stdin (-) can be one image only")
    return list(dict.fromkeys(out))


def _manifest(path: Path, words: str | None, text: str | None, removing: bool) -> list[Job]:
    found: list[Job] = []
    lines = path.read_text(encoding="utf-8-sig", errors="replace").split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            why = f"not JSON ({' '.join(str(error).split())})"
            found.append(Job(where, error=f"{where}: {why}"))
            continue
        if not isinstance(row, dict) or not isinstance(row.get("image"), str) or not row["image"]:
            why = 'expected {"image": FILE, "point": [[x, y]], ...}'
            found.append(Job(where, error=f"{where}: {why}"))
            continue
        found.append(_job(row, where, path.parent, words, text, removing))
    if not found:
        raise PromptError(f"{path}: no lines; expected one JSON object per picture")
    return _numbered(found)


def _numbered(found: list[Job]) -> list[Job]:
    """Number the lines about one picture, whose results need names of their own."""
    files = [os.path.realpath(job.image) for job in found]
    lines, seen = Counter(files), Counter[str]()
    numbered: list[Job] = []
    for job, file in zip(found, files, strict=True):
        seen[file] += 1
        numbered.append(replace(job, number=seen[file]) if lines[file] > 1 else job)
    return numbered


def _job(
    row: dict[str, Any],
    where: str,
    folder: Path,
    words: str | None,
    text: str | None,
    removing: bool,
) -> Job:
    """Read one line; a line that asks for nonsense becomes a job that fails by itself."""
    image = str(row["image"])
    try:
        row = with_usual_names(row, where)
        unknown = sorted(set(row) - _KEYS)
        if unknown:
            raise PromptError(f"{where}: unknown key {unknown[0]!r}; known: {sorted(_KEYS)}")
        for key in _WORDS:
            if not isinstance(row.get(key), str | None):
                raise PromptError(f"{where}: {key} is {row[key]!r}; expected text")
            if row.get(key) == "":
                raise PromptError(f"{where}: {key} is empty; leave it out")
        for name in (image, row.get("matte") or ""):
            if name.startswith("~") and os.path.expanduser(name) == name:  # noqa: PTH111
                raise PromptError(f"{where}: {name}: there is no such home")
        asked = {key: value for key, value in row.items() if key in _PROMPT and value is not None}
        prompt = read_entry(asked, where) if asked else ObjectPrompt()
        if asked and prompt == ObjectPrompt():
            raise PromptError(f"{where}: its prompt is empty; leave it out")
        if row.get("matte") and (asked or row.get("object") or (removing and row.get("text"))):
            raise PromptError(
                f"{where}: its matte is used as it is; leave out the other ways to say which object"
            )
    except PromptError as error:
        return Job(_beside(image, folder), error=str(error))
    own = row.get("text")
    named = row.get("object") or (own if removing else None) or words
    matte = row.get("matte")
    spoken = named and prompt == ObjectPrompt()
    return Job(
        _beside(image, folder),
        () if matte or spoken else (prompt,),
        None if matte else named,
        _beside(matte, folder) if matte else None,
        None if removing else own or text,
    )


def _beside(name: str, folder: Path) -> str:
    """Return a path of the manifest, which may be relative to its folder."""
    path = Path(os.path.expanduser(name))  # noqa: PTH111 (a home of nobody is no error)
    return name if path.is_absolute() or path.exists() else str(folder / path)
