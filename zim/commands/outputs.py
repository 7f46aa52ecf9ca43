"""Where the files of ``zim matte`` go: names, collisions and existing files, decided up front.

Nothing is computed before it is known that the result can be written.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from zim.commandline import UsageError
from zim.errors import OutputError

FORMATS = ("rgba", "alpha", "composite", "overlay")
#: suffixes that make ``--output`` a file rather than a folder
FILE_SUFFIXES = (".png", ".webp", ".jpg", ".jpeg", ".tif", ".tiff")
#: those that hold 16 bits, where --bits counts
_DEEP = {"rgba": (".png",), "alpha": (".png", ".tif", ".tiff")}
#: suffixes of pictures that are not written; nobody means a folder by these
_OTHER_PICTURES = tuple(
    f".{name}"
    for name in (
        *("apng", "avif", "bmp", "dds", "dib", "exr", "gif", "hdr", "heic", "heif", "ico", "j2k"),
        *("jfif", "jp2", "jpe", "jxl", "pbm", "pcx", "pgm", "pnm", "ppm", "psd", "svg", "tga"),
    )
)


#: other files that somebody may expect from ``--output`` where a folder is written
_OTHER_FILES = tuple(
    f".{name}"
    for name in (
        *("csv", "gz", "html", "json", "jsonl", "md", "mov", "mp4", "nii", "npy", "npz", "obj"),
        *("onnx", "pdf", "ply", "pt", "pth", "safetensors", "tar", "txt", "webm", "yaml", "zip"),
    )
)


def output_folder(output: str | None, default: str = ".") -> Path:
    """Return the folder that ``--output`` names, for commands that write several files.

    Args:
        output: ``--output``, or None.
        default: where files go without it.

    Raises:
        UsageError: it is stdout, a file, or has a file's suffix and is not there yet.
    """
    if output == "-":
        raise UsageError("--output - : several files are written; give a folder")
    given = str(output or default)
    path = Path(os.path.expanduser(given))  # noqa: PTH111 (a home of nobody is a name as any)
    taken = path if path.exists() and not path.is_dir() else _file_above(path)
    if taken is not None:
        raise UsageError(f"--output {given}: {taken} is a file; give a folder")
    named = output is None or given.endswith(("/", "\\")) or path.is_dir()
    if not named and path.suffix.lower() in (*FILE_SUFFIXES, *_OTHER_PICTURES, *_OTHER_FILES):
        raise UsageError(
            f"--output {given} looks like a file, and several are written; give a folder, or end "
            "its name with /"
        )
    return path


@dataclass(frozen=True)
class Result:
    """One object of one image, one of its candidates if several were asked for."""

    source: str
    object: int | None = None
    candidate: int | None = None

    @property
    def stem(self) -> str:
        """The name of the input without folder and suffix, numbered where there are several."""
        # Inputs may be typed with either separator; both classes read a bare name alike.
        name = "stdin" if self.source == "-" else PurePosixPath(self.source).name
        stem = PureWindowsPath(name).stem or name
        if self.object is not None:
            stem += f".{self.object}"
        if self.candidate is not None:
            stem += f".c{self.candidate}"
        return stem


@dataclass(frozen=True)
class Plan:
    """Formats and places of everything that will be written."""

    formats: tuple[str, ...]
    paths: dict[Result, dict[str, Path]]
    to_stdout: bool = False


def plan_outputs(
    output: str | None,
    results: Sequence[Result],
    formats: Sequence[str] | None,
    background: str | None,
    bits: int = 8,
) -> Plan:
    """Decide what is written where.

    Args:
        output: ``--output``: a folder, a file (known by its suffix), ``-`` or None for the
            current folder.
        results: everything that will be made.
        formats: ``--format``; by default ``rgba`` and ``alpha``, and ``composite`` when a
            background is given; only one of them when the output is a single file.
        background: ``--background``.
        bits: ``--bits``.

    Raises:
        UsageError: a picture format that is not written or not so deep, several results for one
            file, two results for one name, a background that nothing uses.
    """
    if background is not None and formats is not None and "composite" not in formats:
        raise UsageError("--background is for --format composite; add it or leave out --format")
    to_stdout = output == "-"
    path = None
    if output is not None and not to_stdout:
        path = Path(os.path.expanduser(output))  # noqa: PTH111
    suffix = ""
    if path is not None and not str(output).endswith(("/", "\\")) and not path.is_dir():
        suffix = path.suffix.lower()
    if suffix in _OTHER_PICTURES:
        raise UsageError(
            f"--output {output}: {suffix} files are not written; use {', '.join(FILE_SUFFIXES)}, "
            "or end the name of a folder with /"
        )
    is_file = suffix in FILE_SUFFIXES
    single = is_file or to_stdout
    if formats is None:
        if single:
            formats = ["rgba"] if background is None else ["composite"]
        else:
            formats = ["rgba", "alpha"] + ([] if background is None else ["composite"])
    chosen = tuple(dict.fromkeys(formats))
    if single and len(results) * len(chosen) > 1:
        raise UsageError(
            f"--output {output} is one file, and {len(results) * len(chosen)} results would be "
            "written; give a folder"
        )
    if not results:  # nothing could be understood
        return Plan(chosen, {})
    if to_stdout:
        return Plan(chosen, {results[0]: {}}, to_stdout=True)
    if is_file and path is not None:
        if chosen == ("rgba",) and path.suffix.lower() in (".jpg", ".jpeg"):
            raise UsageError(f"--output {output}: JPEG has no transparency; use .png or .webp")
        if bits == 16 and suffix not in _DEEP.get(chosen[0], (suffix,)):
            raise UsageError(f"--output {output}: {suffix} holds no 16-bit {chosen[0]}; use .png")
        return Plan(chosen, {results[0]: {chosen[0]: path}})
    folder = path or Path()
    paths: dict[Result, dict[str, Path]] = {}
    taken: dict[Path, str] = {}
    for result in results:
        paths[result] = {kind: folder / f"{result.stem}.{kind}.png" for kind in chosen}
        for target in paths[result].values():
            if target in taken:
                raise UsageError(
                    f"{taken[target]} and {result.source} would both write {target}; "
                    "run them into different folders"
                )
            taken[target] = result.source
    return Plan(chosen, paths)


class Inputs:
    """The files that a command reads, which it must not write over."""

    def __init__(self, names: Iterable[str | None]) -> None:
        """Look at files; what is none (stdin, a colour's name, a missing picture) is left out."""
        self._known: set[tuple[int, int]] = set()
        self._paths: list[Path] = []
        for name in names:
            with contextlib.suppress(OSError, ValueError, RuntimeError):
                if name and name != "-":
                    path = Path(name).expanduser()
                    self._known.add(_identity(path))
                    self._paths.append(path)

    @functools.cached_property
    def _folders(self) -> set[Path]:
        folders: set[Path] = set()
        for path in self._paths:
            with contextlib.suppress(OSError, ValueError, RuntimeError):
                folders.update(path.resolve().parents)
        return folders

    def __contains__(self, path: Path) -> bool:
        """Tell whether a path is one of them, under whatever name."""
        with contextlib.suppress(OSError, ValueError):
            return _identity(path) in self._known
        return False

    def spare(self, path: Path) -> None:
        """Refuse a path that is one of them.

        Raises:
            OutputError: it is.
        """
        if path in self:
            raise OutputError(f"{path} is an input and would be overwritten; change --output")

    def spare_folder(self, path: Path) -> None:
        """Refuse a folder of results that holds one of them, however deep.

        Raises:
            OutputError: it does.
        """
        if path.resolve() in self._folders:
            raise OutputError(f"{path} holds an input and would be overwritten; change --output")


def _identity(path: Path) -> tuple[int, int]:
    about = path.stat()
    return about.st_dev, about.st_ino


def _file_above(path: Path) -> Path | None:
    """Return the file that stands where one of a path's folders has to be, or None."""
    above = next((folder for folder in path.parents if folder.exists()), None)
    return None if above is None or above.is_dir() else above


def pending(
    paths: dict[str, Path], *, overwrite: bool, skip_existing: bool, inputs: Inputs
) -> dict[str, Path]:
    """Return what still has to be written.

    Args:
        paths: of one result.
        overwrite: existing files are replaced.
        skip_existing: existing files are left.
        inputs: what is read, which is not replaced.

    Raises:
        OutputError: a file exists and neither flag says what to do, it is a folder or an input, or
            what should be its folder is a file.
    """
    left: dict[str, Path] = {}
    for kind, path in paths.items():
        if path.is_dir():
            raise OutputError(f"{path} is a folder; a file of that name was to be written")
        if above := _file_above(path):
            raise OutputError(f"{above} is a file; --output takes a folder or a picture's name")
        if path.exists() and skip_existing and not overwrite:
            continue
        inputs.spare(path)
        if path.exists() and not overwrite:
            raise OutputError(f"{path} exists; use --overwrite or --skip-existing")
        left[kind] = path
    return left
