"""The ``zim-grounded`` command: mattes from words."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from zim.commandline import Command, Report, fraction, positive_int, run_command
from zim.name_flags import Names, add_model_flag, one_of

#: kinds of results; JSON is always written
FORMATS = ("rgba", "alpha", "labels", "overlay")


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Without --output, results go to the current folder. zim-grounded eval scores words to "
        "mattes; see zim-grounded eval --help."
    )
    parser.add_argument(
        "phrases",
        nargs="*",
        metavar="PHRASE",
        help="what to find, \"the dog's fur\"; several: 'dog . red ball'",
    )
    parser.add_argument(
        "--image",
        nargs="+",
        action="extend",
        metavar="IMAGE",
        help="pictures or folders of pictures [a bundled picture with a dog]",
    )
    parser.add_argument(
        "--scribble",
        metavar="FILE",
        help="strokes on the object instead of words: JSON polylines or a painted picture; at "
        "most 24 points are taken, evenly along the strokes",
    )
    parser.add_argument(
        "--not",
        nargs="+",
        action="extend",
        dest="without",
        metavar="PHRASE",
        help="take what these phrases find out of the mattes",
    )
    add_model_flag(parser, rivals=True)
    parser.add_argument(
        "--format",
        action=Names,
        each=one_of(FORMATS),
        metavar="KIND",
        help=f"of {', '.join(FORMATS)} [all]",
    )
    parser.add_argument(
        "--boxes-only", action="store_true", help="stop after the boxes: write the JSON alone"
    )
    group = add_detector_flags(parser)
    group.add_argument(
        "--top", type=positive_int, metavar="N", help="keep the N best boxes of each phrase [all]"
    )
    group.add_argument(
        "--whole", action="store_true", help="do not look for parts inside their owners"
    )


def add_detector_flags(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the flags that choose and tune the detector, and return their group."""
    group = parser.add_argument_group("finding boxes")
    group.add_argument(
        "--detector",
        metavar="NAME",
        help="mini, gdino-tiny, gdino-base, mm-gdino-tiny, owlv2-base, groundingdino-py, boxes, "
        "a folder or a hub id [the bundled one, else gdino-tiny]",
    )
    group.add_argument(
        "--boxes",
        metavar="FILE",
        help='for --detector boxes: JSON [{"box": [x0,y0,x1,y1], "phrase": "dog", "score": 0.9}], '
        "or such a list per file name",
    )
    group.add_argument(
        "--threshold", type=fraction, metavar="S", help="least score of a box [the detector's own]"
    )
    group.add_argument(
        "--text-threshold",
        type=fraction,
        default=0.25,
        metavar="S",
        help="the JSON names the words of the phrase that score at least S in a box; which boxes "
        "are found does not depend on it [0.25]",
    )
    group.add_argument(
        "--nms",
        type=fraction,
        default=0.7,
        metavar="IOU",
        help="boxes of one phrase that overlap more are one [0.7]",
    )
    group.add_argument(
        "--max-boxes", type=positive_int, default=20, metavar="N", help="best per picture [20]"
    )
    group.add_argument(
        "--focus", metavar="WORD", help="rank boxes by this word of the phrase [its head noun]"
    )
    group.add_argument(
        "--separate", action="store_true", help="one pass per phrase, so that none sways another"
    )
    return group


def _run(args: argparse.Namespace) -> Report:
    from zim_grounded.work import run

    return run(args)


def _configure_eval(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Without --output, the table refmatte.csv goes to the current folder."
    parser.add_argument(
        "--refmatte",
        required=True,
        metavar="ROOT",
        help="folder of RefMatte-RW100: image, mask and the index of expressions",
    )
    parser.add_argument("--index", metavar="FILE", help="the index, if it has another name")
    add_model_flag(parser, rivals=True)
    parser.add_argument(
        "--true-boxes", action="store_true", help="leave the detector out: the mattes' own boxes"
    )
    add_detector_flags(parser)


def _run_eval(args: argparse.Namespace) -> Report:
    from zim_grounded.eval_command import run

    return run(args)


EVAL = Command("zim-grounded eval", "score words to mattes", _configure_eval, _run_eval)
COMMAND = Command("zim-grounded", "mattes from words or scribbles", _configure, _run)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["eval"]:
        return run_command("zim-grounded eval", EVAL, arguments[1:])
    return run_command("zim-grounded", COMMAND, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
