"""What a run folder was made with, held against the flags of a later command."""

from __future__ import annotations

import argparse
from pathlib import Path

from zim.commandline import UsageError
from zim.errors import ConfigError
from zim_sa3d.field_note import FILE, read_note
from zim_sa3d.folders import folder_name
from zim_sa3d.readers import find_scene
from zim_sa3d.scene import Scene


def refuse_other(args: argparse.Namespace, folder: Path, scene: Scene) -> None:
    """Refuse flags that ask for another scene or field than the folder holds.

    Flags that were not given are None; what older folders do not record is not compared.

    Args:
        args: flags of the scene and the radiance field.
        folder: of the run.
        scene: prepared in it.

    Raises:
        UsageError: a flag says something else than what was done.
        CheckpointError: the field's note is needed and cannot be read.
    """
    if args.scene and scene.source and not _same_scene(args.scene, args.data, scene.source):
        _refuse(args, folder, f"--scene {scene.source}", f"--scene {args.scene}")
    if args.factor and scene.source and args.factor != scene.factor:
        was = f"--factor {scene.factor}" if scene.factor else "no --factor"
        _refuse(args, folder, was, f"--factor {args.factor}")
    given = {key: getattr(args, key) for key in ("backend", "method", "steps", "load_config")}
    given["backend"] = None if args.backend == "auto" else args.backend
    if not any(given.values()) or not (folder / FILE).is_file():
        return
    note = read_note(folder)
    note["load_config"] = _run_file(str(note.get("config", "")))
    for key, value in given.items():
        if value is None or key not in note:
            continue
        if key == "load_config":
            value = _run_file(str(value))
        if value != note[key]:
            flag = f"--{key.replace('_', '-')}"
            was = f"{flag} {note[key]}" if note[key] else f"no {flag}"
            _refuse(args, folder, was, f"{flag} {value}")


def _refuse(args: argparse.Namespace, folder: Path, was: str, now: str) -> None:
    anew = "--overwrite" if args.scene else "--scene SCENE --overwrite"
    raise UsageError(
        f"{folder} was made with {was}, now {now} is given; leave it out to go on, give another "
        f"--output, or {anew} to start again"
    )


def _same_scene(given: str, data: str | None, source: str) -> bool:
    """Tell whether a scene is the one that was prepared, which may have moved since then."""
    if "synthetic" in (given, source):
        return given == source
    try:
        found = str(find_scene(given, Path(data).expanduser() if data else None))
    except ConfigError:  # gone, and not needed any more
        found = given
    if Path(found).is_dir() and Path(source).is_dir():
        return Path(found).samefile(source)
    return folder_name(found) == folder_name(source)


def _run_file(path: str) -> str:
    """Return the absolute path of a run of nerfstudio, given by its file or folder."""
    if not path:
        return ""
    whole = Path(path).expanduser().resolve()
    return str(whole / "config.yml" if whole.is_dir() else whole)
