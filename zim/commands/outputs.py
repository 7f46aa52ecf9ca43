"""Where the files of ``zim matte`` go: names, collisions and existing files, decided up front.

Nothing is computed before it is known that the result can be written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from zim.commandline import UsageError
from zim.errors import OutputError

FORMATS = ("rgba", "alpha", "composite", "overlay")
#: suffixes that make ``--output`` a file rather than a folder
FILE_SUFFIXES = (".png", ".webp", ".jpg", ".jpeg", ".tif", ".tiff")
#: suffixes of pictures that are not written; nobody means a folder by these
_OTHER_PICTURES = tuple(
    f".{name}"
    for name in (
        *("apng", "avif", "bmp", "dds", "dib", "exr", "gif", "hdr", "heic", "heif", "ico", "j2k"),
        *("jfif", "jp2", "jpe", "jxl", "pbm", "pcx", "pgm", "pnm", "ppm", "psd", "svg", "tga"),
    )
)


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
) -> Plan:
    """Decide what is written where.

    Args:
        output: ``--output``: a folder, a file (known by its suffix), ``-`` or None for the
            current folder.
        results: everything that will be made.
        formats: ``--format``; by default ``rgba`` and ``alpha``, and ``composite`` when a
            background is given; only one of them when the output is a single file.
        background: ``--background``.

    Raises:
        UsageError: a picture format that is not written, several results for one file, two
            results for one name, a background that nothing uses.
    """
    if background is not None and formats is not None and "composite" not in formats:
        raise UsageError("--background is for --format composite; add it or leave out --format")
    to_stdout = output == "-"
    path = None if output is None or to_stdout else Path(output).expanduser()
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
    if single and len(results) * len(chosen) != 1:
        raise UsageError(
            f"--output {output} is one file, and {len(results) * len(chosen)} results would be "
            "written; give a folder"
        )
    if to_stdout:
        return Plan(chosen, {results[0]: {}}, to_stdout=True)
    if is_file and path is not None:
        if chosen == ("rgba",) and path.suffix.lower() in (".jpg", ".jpeg"):
            raise UsageError(f"--output {output}: JPEG has no transparency; use .png or .webp")
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


def pending(paths: dict[str, Path], *, overwrite: bool, skip_existing: bool) -> dict[str, Path]:
    """Return what still has to be written.

    Raises:
        OutputError: a file exists and neither flag says what to do, or it is a folder.
    """
    left: dict[str, Path] = {}
    for kind, path in paths.items():
        if path.is_dir():
            raise OutputError(f"{path} is a folder; a file of that name was to be written")
        if path.exists() and not overwrite:
            if skip_existing:
                continue
            raise OutputError(f"{path} exists; use --overwrite or --skip-existing")
        left[kind] = path
    return left
