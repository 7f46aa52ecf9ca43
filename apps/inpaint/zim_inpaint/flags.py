"""Flags of ``zim-inpaint``; nothing here imports more than the standard library."""

from __future__ import annotations

import argparse
import math
import os

from zim.commandline import UsageError, positive_int
from zim.commands.prompt_flags import add_prompt_flags
from zim.name_flags import Names, add_model_flag, one_of

FORMATS = ("result", "alpha", "mask", "overlay")
#: ``zim_inpaint.backends.NAMES`` and ``api.MODES``, which a test compares with these
BACKENDS = ("auto", "patchmatch", "telea", "lama", "diffusers")
MODES = ("remove", "fill", "replace")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``zim-inpaint``."""
    parser.epilog = (
        "Without --output, results go to the current folder. zim-inpaint eval scores removals on "
        "COCO; see zim-inpaint eval --help."
    )
    # what is not behind a flag; check says where it belongs
    parser.add_argument("strays", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument(
        "--image",
        nargs="+",
        action="extend",
        metavar="FILE",
        help="pictures or folders of pictures, - is stdin",
    )
    parser.add_argument(
        "--manifest",
        metavar="FILE.jsonl",
        help='instead of --image: per line {"image": FILE, "points": [[x,y,label],...], '
        '"box": [x0,y0,x1,y1], "matte": FILE, "object": WORDS, "text": WORDS}',
    )
    parser.add_argument("--mode", choices=MODES, default="remove", help="what to do [remove]")
    parser.add_argument(
        "--text",
        metavar="WORDS",
        help="what to paint (fill, replace); in mode remove: what to remove, as --object",
    )
    add_prompt_flags(parser)
    group = parser.add_argument_group("more ways to say which object")
    group.add_argument("--object", metavar="WORDS", help="its name; needs a detector (grounded)")
    group.add_argument("--detector", metavar="NAME", help="which detector [its default]")
    group.add_argument("--matte", metavar="FILE", help="a finished matte or mask, used as it is")
    group.add_argument(
        "--resize-matte", action="store_true", help="scale --matte to the picture's size"
    )
    add_model_flag(group, rivals=True)
    group.add_argument("--refine", action="store_true", help="sharpen soft parts of the matte")
    group.add_argument(
        "--ends",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="remove, fill: add what the matte missed: thin ends, parts of other colours [on]",
    )
    group.add_argument(
        "--shadow",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="remove, fill: add the shadow that touches the object [on]",
    )

    group = parser.add_argument_group("what is repainted")
    group.add_argument("--background", metavar="COLOUR|FILE", help="for --mode replace")
    group.add_argument(
        "--cover",
        type=faint,
        default=0.02,
        metavar="A",
        help="repaint where the matte is above A (replace: below 1 - A), more than 0 and less than "
        "0.5 [0.02]",
    )
    group.add_argument(
        "--grow",
        type=pixels_or_auto,
        default="auto",
        metavar="PX",
        help="margin; auto follows the width of the matte's soft band [auto]",
    )
    group.add_argument(
        "--feather", type=amount, default=2.0, metavar="PX", help="ramp outside of the mask [2]"
    )
    group.add_argument(
        "--context",
        type=amount,
        default=0.5,
        metavar="SHARE",
        help="surroundings to look at, as a share of the hole's longer side [0.5]",
    )

    group = parser.add_argument_group("what paints")
    group.add_argument(
        "--backend",
        choices=BACKENDS,
        default="auto",
        help="auto: lama if its file is there, else patchmatch, else telea; downloads nothing",
    )
    group.add_argument("--work-size", type=positive_int, metavar="PX", help="longest side [512]")
    group.add_argument("--lama", metavar="FILE", help="big-lama.pt [ZIM_HOME/models/big-lama.pt]")
    group.add_argument(
        "--pipeline",
        default="sd15",
        metavar="NAME",
        help="for diffusers: sd15, sd2, sdxl, flux-fill, a hub id or a folder [sd15]",
    )
    group.add_argument("--negative", metavar="WORDS", help="what not to paint")
    group.add_argument("--steps", type=positive_int, metavar="N", help="of denoising [50]")
    group.add_argument(
        "--guidance", type=amount, metavar="G", help="how closely words are followed"
    )
    group.add_argument("--strength", type=share, metavar="S", help="share of the steps run [1]")
    group.add_argument(
        "--offload",
        choices=("none", "model", "sequential"),
        default="none",
        help="keep parts of the pipeline in main memory, on CUDA [none]",
    )
    group.add_argument("--offline", action="store_true", help="local files only; never download")
    parser.add_argument(
        "--format",
        action=Names,
        each=one_of(FORMATS),
        metavar="KIND",
        help=f"any of {', '.join(FORMATS)} [result alpha mask]; files are <stem>.<kind>.png",
    )


def check(args: argparse.Namespace) -> None:
    """Refuse flags that contradict each other, before anything is loaded.

    Raises:
        UsageError: saying which.
    """
    if args.strays:
        stray = args.strays[0]
        if os.path.isfile(stray):  # noqa: PTH113 (words may be too long for a Path)
            raise UsageError(f"{stray} is a file; give pictures with --image")
        raise UsageError(
            f"{stray} stands behind no flag; give pictures with --image, and put words that belong "
            "together in quotes"
        )
    if bool(args.image) == bool(args.manifest):
        raise UsageError("give pictures with --image FILE, or a list with --manifest FILE.jsonl")
    if args.output == "-":
        raise UsageError("--output - : several files are written; give a folder or a file name")
    if args.mode == "fill" and not (args.text or "").strip() and not args.manifest:
        raise UsageError("--mode fill needs --text, what to paint")
    if args.mode == "replace" and not args.text and not args.background and not args.manifest:
        raise UsageError("--mode replace needs --background COLOUR|FILE or --text WORDS")
    if args.background and args.mode != "replace":
        raise UsageError(f"--background is for --mode replace, not {args.mode}")
    prompted = args.points or args.box or args.scribble or args.mask or args.prompts
    if args.matte and (prompted or args.object):
        raise UsageError("--matte is used as it is; leave out the other ways to say which object")
    if args.manifest and (prompted or args.matte):
        raise UsageError(
            "with --manifest its lines say which object; leave out --matte, --points and the other "
            "prompts"
        )
    if args.mode == "remove" and args.text and args.object:
        raise UsageError("in mode remove --text means --object; give one of them")
    if args.object is not None and not args.object.strip():
        raise UsageError("--object is empty; expected words, or leave it out")
    for flag, why in _unused(args).items():
        raise UsageError(f"{flag} would do nothing: {why}; leave it out")
    spoken = args.mode == "fill" or (args.mode == "replace" and not args.background)
    if spoken and args.backend != "diffusers":
        raise UsageError(
            f"--mode {args.mode} paints what words say, and --backend {args.backend} takes none; "
            "use --backend diffusers"
        )


def _unused(args: argparse.Namespace) -> dict[str, str]:
    """Return the flags that the chosen mode and backend do not look at, each with the reason."""
    named = args.object or (args.mode == "remove" and args.text)
    unused: dict[str, str] = {}
    if args.resize_matte and not (args.matte or args.manifest):
        unused["--resize-matte"] = "there is no --matte"
    if args.detector is not None and not (named or args.manifest):
        unused["--detector"] = "there are no words for it, as in --object WORDS"
    if args.background:
        why = "--background is painted as it is"
        given = {"--text": args.text, "--backend": args.backend != "auto"}
        unused |= {flag: why for flag, value in given.items() if value}
    if args.mode == "replace":
        given = {"--grow": args.grow != "auto", "--feather": args.feather != 2}
        unused |= {flag: "the matte itself is the edge" for flag, value in given.items() if value}
    if args.lama is not None and args.backend not in ("auto", "lama"):
        unused["--lama"] = f"it is for --backend lama, not {args.backend}"
    if args.backend != "diffusers":
        given = {"--pipeline": args.pipeline != "sd15", "--offload": args.offload != "none"}
        names = ("negative", "steps", "guidance", "strength")
        given |= {f"--{name}": getattr(args, name) is not None for name in names}
        why = f"it is for --backend diffusers, not {args.backend}"
        unused |= {flag: why for flag, value in given.items() if value}
    return unused


def pixels_or_auto(text: str) -> int | str:
    """Parse ``auto`` or a number of pixels."""
    if text == "auto":
        return text
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(
            f"{text.strip()!r} is not auto or a whole number of pixels"
        )
    return int(text)


def amount(text: str) -> float:
    """Parse a finite number of at least 0."""
    value = _number(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text.strip()!r} is not a number of at least 0")
    return value


def share(text: str) -> float:
    """Parse a number above 0 and up to 1."""
    value = _number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text.strip()!r} is not a number above 0 and up to 1")
    return value


def faint(text: str) -> float:
    """Parse an alpha above 0 and below 0.5."""
    value = _number(text)
    if not 0 < value < 0.5:
        raise argparse.ArgumentTypeError(f"{text.strip()!r} is not a number above 0 and below 0.5")
    return value


def _number(text: str) -> float:
    """Parse a number; what is none fails every comparison."""
    try:
        return float(text)
    except ValueError:
        return math.nan
