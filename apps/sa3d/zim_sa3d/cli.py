"""The ``zim-sa3d`` command: segment an object in a 3D scene from prompts in one view."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from zim.commandline import (
    Command,
    Report,
    UsageError,
    fraction,
    port_number,
    positive_int,
    run_command,
    run_program,
)
from zim.commands.prompt_flags import parse_box, parse_point
from zim.errors import ZimError
from zim.name_flags import Names, add_model_flag, add_models_flag
from zim_sa3d.presets import FACTOR, POINTS


def _amount(text: str) -> float:
    """Parse a finite number of at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"{text.strip()!r} is not a number of at least 0")
    return value


def _weight(text: str) -> float:
    """Parse a sample's weight, a number from 0 to below 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text.strip()!r} is not a number from 0 to below 1")
    return value


def _configure(
    parser: argparse.ArgumentParser, scene: str | None = None, *, ask_with: str = "points"
) -> None:
    parser.epilog = "Without --output, results go to runs/SCENE."
    # what is not behind a flag; _check says which flag it belongs to
    parser.add_argument("strays", nargs="*", help=argparse.SUPPRESS)
    group = parser.add_argument_group("scene")
    group.add_argument(
        "--scene",
        default=scene,
        metavar="NAME|FOLDER",
        help="synthetic (built in), an LLFF or 360 scene by name, or a folder with "
        f"transforms.json, poses_bounds.npy or COLMAP's sparse/0; presets: {', '.join(POINTS)} "
        f"[{scene or 'what the run folder, --output, holds'}]",
    )
    group.add_argument("--data", metavar="DIR", help="where scenes lie [ZIM_HOME/datasets]")
    group.add_argument(
        "--factor",
        type=positive_int,
        metavar="N",
        help=f"pictures are made N times smaller [{FACTOR}]",
    )
    group = parser.add_argument_group("radiance field")
    group.add_argument(
        "--backend",
        choices=("auto", "grid", "nerfstudio"),
        default="auto",
        help="grid: our voxels; auto: nerfstudio on a GPU where it is installed, else grid [auto]",
    )
    group.add_argument("--steps", type=positive_int, metavar="N", help="training steps")
    group.add_argument("--method", metavar="NAME", help="of nerfstudio [nerfacto]")
    group.add_argument(
        "--load-config",
        metavar="FILE",
        help="config.yml of a run that nerfstudio trained on this capture, instead of training "
        "(it can run code: only files you trust)",
    )
    group = parser.add_argument_group("prompt (pixels of the view at its working size)")
    group.add_argument("--view", metavar="N|NAME", help="where the prompt is [first training view]")
    group.add_argument(
        "--points",
        nargs="+",
        type=parse_point,
        metavar="X,Y[,LABEL]",
        help="clicks on the object: LABEL 1 is on it (default), 0 is not",
    )
    group.add_argument(
        "--box", type=parse_box, metavar="X0,Y0,X1,Y1", help="a box around the object"
    )
    group.add_argument("--prompts", metavar="FILE", help='JSON {"view", "point", "bbox"}')
    group.add_argument(
        "--object",
        metavar="NAME",
        help="of a synthetic scene: one click on it [ball]",
    )
    group = parser.add_argument_group("segmentation")
    add_model_flag(
        group, rivals=True, also=("oracle",), about="see zim models; oracle: true mattes"
    )
    group.add_argument(
        "--binarize",
        type=fraction,
        default=0.3,
        metavar="A",
        help="where a view's matte is above A is its mask, which votes in 3D [0.3]",
    )
    group.add_argument(
        "--num-prompts",
        type=positive_int,
        default=10,
        metavar="N",
        help="clicks at most in each other view, placed on the object so far [10]",
    )
    group.add_argument(
        "--penalty",
        "--lambda",
        type=_amount,
        default=1.0,
        metavar="L",
        help="a pixel outside a mask votes against what it shows L times as much as one inside "
        "votes for it [1]",
    )
    group.add_argument(
        "--first-view-penalty",
        type=_amount,
        default=5.0,
        metavar="L",
        help="the same for the view you prompt [5]",
    )
    group.add_argument(
        "--iou-gate",
        type=fraction,
        default=0.5,
        metavar="A",
        help="views whose mask overlaps the object so far by less (IoU) are left out [0.5]",
    )
    group.add_argument(
        "--min-weight",
        type=_weight,
        default=0.01,
        metavar="W",
        help="lighter samples do not vote [0.01; SA3D: 0.1]",
    )
    group.add_argument(
        "--score-weight",
        type=_weight,
        default=0.1,
        metavar="W",
        help="lighter samples are left out of the rendered score [0.1]",
    )
    group.add_argument(
        "--ask-with",
        choices=("points", "box", "both"),
        default=ask_with,
        help="how other views are prompted: SA3D's clicks, the box around the object so far, both "
        f"[{ask_with}]",
    )
    group.add_argument(
        "--passes", type=positive_int, default=1, metavar="N", help="rounds over all views [1]"
    )
    group.add_argument(
        "--source", choices=("photo", "render"), default="photo", help="what is segmented [photo]"
    )
    group.add_argument(
        "--readout",
        choices=("indicator", "score", "ratio"),
        default="indicator",
        help="which pixels the masks hold; indicator: those that show mostly voxels voted for; "
        "score: those whose votes add up to more than 0; ratio: those whose soft 3D matte is above "
        "0.5 [indicator]",
    )
    group.add_argument(
        "--keep-pieces", action="store_true", help="keep all pieces, not only the clicked one"
    )
    group.add_argument(
        "--gradient", action="store_true", help="step by automatic differentiation, not closed form"
    )


def _demo(parser: argparse.ArgumentParser) -> None:
    # a click of nano's may take a neighbour along in some views; the box keeps it to the object
    _configure(parser, "synthetic", ask_with="both")


def _eval_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--nvos", required=True, metavar="ROOT", help="folder of the NVOS labels")
    parser.add_argument(
        "--targets", action=Names, metavar="NAME", help="some of the eight [all there]"
    )
    add_models_flag(
        parser,
        rivals=True,
        also=("oracle",),
        default=None,
        about="several to compare, on the same fields",
    )
    _configure(parser, "nvos")
    parser.epilog = "Without --output, results go to runs/nvos."


def _eval(args: argparse.Namespace) -> Report:
    _check_strays(args)
    from zim_sa3d.nvos import evaluate

    return evaluate(args)


def run(args: argparse.Namespace) -> Report:
    """Prepare, train, segment, render and export; what is there already is used."""
    _check(args)
    from zim_sa3d.runs import Run

    work = Run(args)
    work.load_model()
    scene = work.scene()
    # a click that does not fit is told before anything is trained
    prompt = work.prompt(scene)
    work.segmenter(scene)
    field = work.field(scene)
    done = work.segment(scene, field, prompt)
    work.measure(scene, field, done.grid)
    work.write(scene, field, done.grid)
    return work.finish(scene, done)


def _prepare(args: argparse.Namespace) -> Report:
    _check(args)
    from zim_sa3d.runs import Run

    work = Run(args)
    return work.finish(work.scene())


def _train(args: argparse.Namespace) -> Report:
    _check(args)
    from zim_sa3d.runs import Run

    work = Run(args)
    scene = work.scene()
    work.field(scene)
    return work.finish(scene)


def _segment(args: argparse.Namespace) -> Report:
    _check(args)
    from zim_sa3d.runs import Run

    work = Run(args)
    work.load_model()
    scene = work.scene()
    # a click that does not fit is told before anything is trained
    prompt = work.prompt(scene)
    work.segmenter(scene)
    field = work.field(scene)
    done = work.segment(scene, field, prompt)
    work.measure(scene, field, done.grid)
    return work.finish(scene, done)


def _export(args: argparse.Namespace) -> Report:
    _check(args)
    from zim_sa3d.mask_grid import MaskGrid
    from zim_sa3d.runs import Run

    work = Run(args)
    scene = work.scene()
    # where nothing was segmented, that is told before anything is trained
    grid = MaskGrid.load(work.folder / "mask_grid.npz")
    field = work.field(scene)
    work.recall_object()
    work.measure(scene, field, grid)
    work.write(scene, field, grid)
    return work.finish(scene)


def _view_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("page")
    group.add_argument("--host", default="127.0.0.1", metavar="NAME", help="address [127.0.0.1]")
    group.add_argument("--port", type=port_number, default=8080, metavar="N", help="port [8080]")
    _configure(parser)


def _view(args: argparse.Namespace) -> Report:
    _check_strays(args)
    if args.scene is None:
        _check_run_folder(args)
    from zim_sa3d.view import serve

    return serve(args)


def _check(args: argparse.Namespace) -> None:
    """Refuse a call that names no scene, neither by --scene nor by a run folder that holds one."""
    _check_strays(args)
    if args.scene == "synthetic" and args.factor:
        raise UsageError("--factor: the built-in scene has one size, 256 x 256; leave it out")
    given = {"--points": args.points, "--box": args.box, "--view": args.view}
    if args.prompts and (also := [flag for flag, value in given.items() if value is not None]):
        raise UsageError(f"--prompts says it all; leave out {also[0]}, or --prompts")
    if args.scene is not None:
        return
    if args.output is None or not _holds_scene(Path(args.output).expanduser()):
        why = f" ({args.output} holds no scene)" if args.output else ""
        raise UsageError(f"the following arguments are required: --scene{why}")
    _check_overwrite(args)


def _check_strays(args: argparse.Namespace) -> None:
    """Refuse what stands behind no flag, and name the flag."""
    if args.strays:
        stray = args.strays[0]
        run = _holds_scene(Path(stray).expanduser())
        what = "the folder of a run with --output" if run else "the scene with --scene"
        raise UsageError(f"{stray} stands behind no flag; give {what} {stray}")


def _holds_scene(folder: Path) -> bool:
    """Tell whether a folder is that of a run whose scene is prepared."""
    return os.path.isfile(folder / "scene" / "transforms.json")  # noqa: PTH113 (too long a name)


def _check_overwrite(args: argparse.Namespace) -> None:
    """Refuse to replace a scene that nobody named."""
    if args.overwrite:
        raise UsageError("--overwrite would prepare the scene anew; name it with --scene")


def _check_run_folder(args: argparse.Namespace) -> None:
    """Refuse to show a run folder that is none: a mistyped name is no wish for an empty page."""
    if args.output is None:
        raise ZimError(
            "nothing to look at; give --output with the folder of a run, or a scene with --scene"
        )
    folder = Path(args.output).expanduser()
    if not _holds_scene(folder):
        what = "holds no scene" if folder.exists() else "does not exist"
        raise ZimError(
            f"{folder} {what}; give --output the folder of a run, make one with "
            f"zim-sa3d demo --output {folder}, or name a scene with --scene"
        )
    _check_overwrite(args)


ALL = Command(
    "zim-sa3d",
    "segment an object in a 3D scene from prompts in one view; steps on their own: prepare, train, "
    "segment, render, export; demo, view, eval",
    _configure,
    run,
)
COMMANDS = (
    Command("prepare", "bring a scene into the run folder", _configure, _prepare),
    Command("train", "train the radiance field", _configure, _train),
    Command("segment", "lift prompts of one view into 3D", _configure, _segment),
    Command(
        "render", "write masks, mattes, cut-outs of every view, and the object", _configure, _export
    ),
    Command("export", "the same as render", _configure, _export),
    Command("eval", "score on NVOS", _eval_flags, _eval),
    Command("demo", "the whole chain on the built-in scene", _demo, run),
    Command("view", "look at the object and click prompts in the browser", _view_flags, _view),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    named = words and not words[0].startswith("-")
    # a folder in the place of a command is a scene or a run without its flag
    stray = named and words[0] not in {c.name for c in COMMANDS} and os.path.isdir(words[0])  # noqa: PTH112
    if named and not stray:
        return run_program("zim-sa3d", ALL.summary, COMMANDS, words)
    return run_command("zim-sa3d", ALL, words)


if __name__ == "__main__":
    raise SystemExit(main())
