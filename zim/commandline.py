"""What every command of this project shares: common flags, exit codes, one-line errors, JSON.

A program is a list of :class:`Command`; each says its flags and has a function that does the work
and returns a :class:`Report`. Heavy packages are imported inside that function, so that ``--help``
stays instant. Exit codes: 0 done, 1 failed, 2 wrong usage. Results go to stdout, everything else
to stderr.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from zim import __version__
from zim.errors import OutputError, ZimError, one_line

DEVICES = "auto, cpu, cuda, cuda:N or mps"
_NEGATIVE = re.compile(r"-[\d.][\d.,eE+-]*")
DTYPES = ("auto", "float32", "bfloat16", "float16")


class UsageError(Exception):
    """Flags that contradict each other or cannot be understood; the command exits with 2."""


@dataclass
class Report:
    """What a command did, for people (``lines``) and for programs (everything else)."""

    outputs: dict[str, str] = field(default_factory=dict[str, str])
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    model: str | None = None
    metrics: dict[str, Any] = field(default_factory=dict[str, Any])
    #: one entry per image or object: input, outputs, metrics, error
    items: list[dict[str, Any]] | None = None
    #: further keys of the JSON object
    extra: dict[str, Any] = field(default_factory=dict[str, Any])
    #: printed to stdout when JSON was not asked for
    lines: list[str] = field(default_factory=list[str])
    failed: bool = False
    #: stdout already carries the result itself (``--output -``)
    stdout_taken: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object."""
        data: dict[str, Any] = {
            "outputs": self.outputs,
            "seconds": {stage: round(value, 4) for stage, value in self.seconds.items()},
            "model": self.model,
            "metrics": self.metrics,
        }
        if self.items is not None:
            data["items"] = self.items
        if self.failed:
            data["error"] = self._reason()
        return data | self.extra

    def _reason(self) -> str:
        """Say what failed where the command has not put it better into ``extra``."""
        items = self.items or []
        wrong = [item["error"] for item in items if item.get("error")]
        if not wrong:
            return "failed; stderr says why"
        return str(wrong[0]) if len(items) == 1 else f"{len(wrong)} of {len(items)} failed"


@dataclass(frozen=True)
class Command:
    """One subcommand: its name, a one-line summary, its flags and its work."""

    name: str
    summary: str
    #: adds the command's own flags; the common ones are added for it
    configure: Callable[[argparse.ArgumentParser], None] | None
    #: does the work
    run: Callable[[argparse.Namespace], Report]


class OneLineParser(argparse.ArgumentParser):
    """A parser whose usage errors are one line on stderr and exit code 2."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Turn off abbreviations: a flag that is misspelt should never mean another one."""
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)
        #: flags of other commands, and what takes their place here
        self.elsewhere: dict[str, str] = {}
        #: the parser whose flags are suggested; a program sets it to the chosen command's
        self.suggest_from: argparse.ArgumentParser = self

    def error(self, message: str) -> NoReturn:
        """Report a usage error on one line, with a suggestion where a flag looks misspelt."""
        unknown = re.match(r"unrecognized arguments: (--[\w-]+)", message)
        if unknown:
            known = [o for action in self.suggest_from._actions for o in action.option_strings]
            close = difflib.get_close_matches(unknown[1], known, n=1, cutoff=0.75)
            message = f"unknown option {unknown[1]}"
            if hint := _elsewhere(self.suggest_from).get(unknown[1]):
                message += f"; {hint}"
            elif close:
                message += f"; did you mean {close[0]}?"
        raise UsageError(" ".join(message.split()))


def _elsewhere(parser: argparse.ArgumentParser) -> dict[str, str]:
    return parser.elsewhere if isinstance(parser, OneLineParser) else {}


def add_common_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that every command takes."""
    group = parser.add_argument_group("common options")
    group.add_argument("--version", action="version", version=f"zim-toolkit {__version__}")
    group.add_argument(
        "--output", "-o", metavar="PATH", help="file or folder to write to; folders are created"
    )
    existing = group.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace existing files")
    existing.add_argument("--skip-existing", action="store_true", help="leave existing files")
    group.add_argument("--device", default="auto", metavar="NAME", help=f"{DEVICES} [auto]")
    group.add_argument("--dtype", default="auto", choices=DTYPES, help="numeric precision [auto]")
    group.add_argument(
        "--threads", type=thread_count, metavar="N", help="CPU threads [ZIM_THREADS, else all]"
    )
    group.add_argument("--seed", type=seed_number, default=0, metavar="N", help="random seed [0]")
    group.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    group.add_argument("--debug", action="store_true", help="show the full trace of an error")


def positive_int(text: str) -> int:
    """Parse a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def thread_count(text: str) -> int:
    """Parse a number of threads, 1 to 1024; very many end the process without a word."""
    count = positive_int(text)
    if count > 1024:
        raise argparse.ArgumentTypeError(f"{text!r} threads are too many; expected 1 to 1024")
    return count


def whole_number(text: str) -> int:
    """Parse a whole number of at least 0."""
    if not text.strip().isdecimal():
        raise argparse.ArgumentTypeError(f"{text.strip()!r} is not a whole number of at least 0")
    return int(text)


def seed_number(text: str) -> int:
    """Parse a seed: a whole number that torch takes, below 2**64."""
    seed = whole_number(text)
    if seed >= 2**64:
        raise argparse.ArgumentTypeError(f"{text.strip()!r} is no seed; expected less than 2**64")
    return seed


def port_number(text: str) -> int:
    """Parse a port, 1 to 65535."""
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port; expected 1 to 65535")
    return int(text)


def fraction(text: str) -> float:
    """Parse a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Generator[None]:
    """Add the wall time of a block to ``seconds[stage]``."""
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start


def apply_runtime(args: argparse.Namespace) -> None:
    """Apply ``--threads`` (or ``ZIM_THREADS``) and ``--seed``; imports torch."""
    threads = args.threads
    if threads is None and os.environ.get("ZIM_THREADS"):
        try:
            threads = thread_count(os.environ["ZIM_THREADS"])
        except argparse.ArgumentTypeError as error:
            raise UsageError(f"ZIM_THREADS: {error}") from error
    import cv2
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
        cv2.setNumThreads(threads)
    torch.manual_seed(args.seed or 0)


def error_line(error: BaseException) -> str:
    """Describe an error on one line."""
    if isinstance(error, OSError) and not isinstance(error, ZimError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    return one_line(error)


def shield_negative_numbers(argv: Sequence[str]) -> list[str]:
    """Keep ``-5,10`` from being taken for an option: argparse lets words with a space pass."""
    return [f" {word}" if _NEGATIVE.fullmatch(word) else word for word in argv]


def run_program(prog: str, about: str, commands: Sequence[Command], argv: Sequence[str]) -> int:
    """Run a program with subcommands and return its exit code."""
    parser = OneLineParser(prog=prog, description=about)
    parser.add_argument("--version", action="version", version=f"zim-toolkit {__version__}")
    by_name: dict[str, argparse.ArgumentParser] = {}
    subparsers = parser.add_subparsers(metavar="COMMAND", parser_class=OneLineParser)
    for command in commands:
        sub = subparsers.add_parser(
            command.name, help=command.summary, description=f"{command.summary}."
        )
        by_name[command.name] = sub
        add_common_flags(sub)
        if command.configure:
            command.configure(sub)
    first = argv[0] if argv else None
    if not argv:
        parser.print_help(sys.stderr)
        return 2
    if first not in by_name and not str(first).startswith("-"):
        close = difflib.get_close_matches(str(first), by_name, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else f"; try {prog} --help"
        sys.stderr.write(f"{prog}: unknown command {first!r}{hint}\n")
        return 2
    parser.suggest_from = by_name.get(str(first), parser)
    chosen = next((c for c in commands if c.name == first), None)
    return _guarded(prog, lambda: parser.parse_args(shield_negative_numbers(argv)), chosen, argv)


def run_command(prog: str, command: Command, argv: Sequence[str]) -> int:
    """Run a program that has one command and no subcommands; return its exit code."""
    parser = OneLineParser(prog=prog, description=f"{command.summary}.")
    add_common_flags(parser)
    if command.configure:
        command.configure(parser)
    return _guarded(prog, lambda: parser.parse_args(shield_negative_numbers(argv)), command, argv)


def _guarded(
    prog: str,
    parse: Callable[[], argparse.Namespace],
    command: Command | None,
    argv: Sequence[str],
) -> int:
    """Parse, run, print; turn every failure into one line and an exit code."""
    name = f"{prog} {command.name}" if command and command.name != prog else prog
    as_json = "--json" in argv
    debug = "--debug" in argv
    try:
        args = parse()
        if command is None:
            raise UsageError(f"no command given; try {prog} --help")
        with _tidy_when_terminated(name):
            report = command.run(args)
        text = _report_text(report, as_json)
        code = 1 if report.failed else 0
    except SystemExit as done:  # --help, --version and SIGTERM
        text, code = "", done.code if isinstance(done.code, int) else 0
    except BrokenPipeError:
        return _leave_stdout()
    except KeyboardInterrupt:
        sys.stderr.write(f"{name}: interrupted\n")
        return 130
    except Exception as error:
        code = 2 if isinstance(error, UsageError) else 1
        text = _fail(name, error, as_json, debug)
    return _write_stdout(name, text, code, debug)


@contextmanager
def _tidy_when_terminated(name: str) -> Generator[None]:
    """Let what is half written be removed when the process is told to end, as Ctrl+C does."""

    def end(number: int, _: FrameType | None) -> NoReturn:
        if os.getpid() == process:  # not in what was forked
            sys.stderr.write(f"{name}: terminated\n")
        raise SystemExit(128 + number)

    process, ours = os.getpid(), threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _report_text(report: Report, as_json: bool) -> str:
    if report.stdout_taken:
        return ""
    if as_json:
        return json.dumps(report.to_dict(), default=str, allow_nan=False) + "\n"
    return "".join(f"{line}\n" for line in report.lines)


def _fail(name: str, error: Exception, as_json: bool, debug: bool) -> str:
    """Say on stderr what went wrong; return what belongs on stdout."""
    line = error_line(error)
    if not isinstance(error, (UsageError, ZimError, OSError)):
        # Nobody raised this on purpose: its type is part of what can be reported.
        kind = type(error).__name__
        line = f"unexpected error ({kind if line == kind else f'{kind}: {line}'})"
        if not debug:
            line += "; --debug shows the trace"
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    sys.stderr.write(f"{name}: {line}\n")
    return json.dumps(Report().to_dict() | {"error": line}) + "\n" if as_json else ""


def _write_stdout(name: str, text: str, code: int, debug: bool) -> int:
    """Write and flush what is left for stdout; return the exit code."""
    if sys.stdout is None:  # closed by the caller: >&-
        if text:
            sys.stderr.write(f"{name}: stdout is closed\n")
        return 1 if text and code == 0 else code
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        return _leave_stdout()
    except (OSError, ValueError) as error:  # full disk; closed, or a name it cannot encode
        if text or code == 0:
            if debug:
                traceback.print_exception(error, file=sys.stderr)
            sys.stderr.write(f"{name}: stdout cannot be written: {error_line(error)}\n")
        return max(code, _leave_stdout())
    return code


def _leave_stdout() -> int:
    """Nothing more can be written to stdout (``| head``, a full disk): drop what is buffered.

    Python flushes stdout once more at exit and would complain, so its file becomes the null device.
    """
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, sys.stdout.fileno())
    except (OSError, ValueError):  # not a file of the system, or closed
        pass
    finally:
        os.close(null)
    return 1


def write_report(report: Report, args: argparse.Namespace) -> None:
    """Write the JSON object to ``--output`` too, for commands that make no other file.

    Raises:
        OutputError: the file exists and ``--overwrite`` was not given, or cannot be written.
    """
    if args.output in (None, "-"):
        return
    path = Path(args.output).expanduser()
    if path.is_dir():
        path = path / "report.json"
    if path.exists() and not args.overwrite:
        if args.skip_existing:
            return
        raise OutputError(f"{path} exists; use --overwrite or --skip-existing")
    from zim.images import atomic_write

    report.outputs["report"] = str(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, (json.dumps(report.to_dict(), indent=2, default=str) + "\n").encode())
