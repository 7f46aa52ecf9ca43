"""``zim-medical predict``: prompts in, a label and a soft volume out, in the input's grid."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from zim._progress import progress_on_stderr
from zim.commandline import Report, UsageError, apply_runtime, positive_int, timed
from zim.commands.outputs import output_folder
from zim.errors import OutputError
from zim.name_flags import add_model_flag
from zim_medical.options import NOTICE, threshold_of

if TYPE_CHECKING:
    from zim_medical.segment import Input, Segmentation

#: about the longer side of the overlay, in pixels
SHOWN_SIDE = 600
AXIS_NAMES = ("axial", "coronal", "sagittal")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``zim-medical predict``."""
    parser.epilog = f"Without --output, results go to the current folder. {NOTICE}"
    parser.add_argument("volume", metavar="VOLUME", help="NIfTI, DICOM folder or file, PNG, TIFF")
    parser.add_argument(
        "--points", nargs="+", action="extend", type=_point, metavar="X,Y,Z[,LABEL]",
        help="clicks; LABEL 1 is on the object (default), 0 is not; in pictures X,Y[,LABEL]",
    )  # fmt: skip
    parser.add_argument(
        "--box", type=_box, metavar="X0,Y0,Z0,X1,Y1,Z1",
        help="opposite corners; every slice between them is prompted; in pictures X0,Y0,X1,Y1",
    )  # fmt: skip
    parser.add_argument(
        "--space", choices=("voxel", "mm"), default="voxel",
        help="prompts in voxel indices of the file, or in mm (scanner RAS+, as NIfTI has it)",
    )  # fmt: skip
    parser.add_argument("--axis", choices=AXIS_NAMES, default="axial", help="slices [axial]")
    parser.add_argument(
        "--window", default="auto", metavar="NAME",
        help="ct, mr, minmax, protocol or LO,HI [auto: from the DICOM modality, else minmax]",
    )  # fmt: skip
    parser.add_argument(
        "--propagate", type=positive_int, metavar="N",
        help="hand the answer's box on to up to N slices on either side",
    )  # fmt: skip
    add_model_flag(parser, rivals=True)
    parser.add_argument("--threshold", type=float, metavar="A", help="label where above [0.3]")


def run(args: argparse.Namespace) -> Report:
    """Segment one volume."""
    if not args.points and args.box is None:
        raise UsageError("no prompt; give --points X,Y,Z or --box X0,Y0,Z0,X1,Y1,Z1")
    threshold = threshold_of(args.model, 0.3) if args.threshold is None else args.threshold
    if not 0 <= threshold < 1:
        raise UsageError(f"--threshold {threshold}; expected 0 <= A < 1")
    path, folder = Path(args.volume).expanduser(), output_folder(args.output)
    report = Report(model=args.model)
    paths = _paths(path, folder)
    existing = next((p for p in paths.values() if p.exists()), None)
    # an interrupted run leaves only some of them; the others are written below
    if args.skip_existing and all(p.exists() for p in paths.values()):
        report.outputs = {kind: str(p) for kind, p in paths.items()}
        report.lines = list(report.outputs.values())
        return report
    if existing is not None and not (args.overwrite or args.skip_existing):
        raise OutputError(f"{existing} exists; use --overwrite or --skip-existing")
    with timed(report.seconds, "start"):
        apply_runtime(args)
        from zim.segmenters import load_segmenter
        from zim_medical import segment

    with timed(report.seconds, "read"):
        source = segment.open_input(path)
        flat = source.volume.plane_only
        if flat and args.space == "mm":
            raise UsageError("--space mm: a picture has no place in mm; give pixels")
        points = [_in_space(p, flat, "--points", (2, 3), (3, 4)) for p in args.points or ()]
        clicks = [_labelled(p, 2 if flat else 3) for p in points]
        box = args.box
        if box is not None:
            _in_space(box, flat, "--box", (4,), (6,))
            box = (*box[:2], 0.0, *box[2:], 0.0) if flat else box
        axis = segment.AXES["axial" if flat else args.axis]
        prompts = segment.slice_prompts(source.volume, axis, clicks, box, args.space)
    with timed(report.seconds, "load"):
        segmenter = load_segmenter(args.model, device=args.device, dtype=args.dtype)
    with timed(report.seconds, "segment"), progress_on_stderr():
        result = segment.segment(
            source,
            axis,
            prompts,
            segmenter,
            norm=args.window,
            threshold=threshold,
            propagate=args.propagate or 0,
        )
    with timed(report.seconds, "write"):
        missing = {k for k, p in paths.items() if args.overwrite or not p.exists()}
        _write(paths, missing, folder, source, axis, result, threshold)
    label = result.soft > threshold
    size = source.volume.voxel_mm3
    report.outputs = {kind: str(p) for kind, p in paths.items()}
    report.metrics = {
        "voxels": int(label.sum()),
        "millilitres": None if size is None else round(float(label.sum() * size / 1000), 4),
        "slices": len(result.slices),
        "blank_slices": len(result.blank),
    }
    window = source.norm if args.window == "auto" else args.window
    report.extra = {"notice": NOTICE, "threshold": threshold, "window": window}
    sys.stderr.write(f"zim-medical predict: {NOTICE} window {window}, label > {threshold:g}\n")
    if not label.any():
        sys.stderr.write(
            f"zim-medical predict: nothing is above {threshold:g}, so the label is empty; give a "
            "closer box or a lower --threshold\n"
        )
    if result.blank:
        sys.stderr.write(
            f"zim-medical predict: {len(result.blank)} of {len(result.slices)} slices are of one "
            "grey value; nothing is labelled there\n"
        )
    report.lines = list(report.outputs.values())
    return report


def _paths(path: Path, folder: Path) -> dict[str, Path]:
    # the name that was given, not that of what a link leads to; "." and ".." have none
    stem = path.name if path.name not in ("", "..") else path.resolve().name
    if path.is_file():
        stem = stem.removesuffix(".gz").rsplit(".", 1)[0]
    return {
        "mask": folder / f"{stem}.label.nii.gz",
        "alpha": folder / f"{stem}.soft.nii.gz",
        "overlay": folder / f"{stem}.overlay.png",
    }


def _write(
    paths: dict[str, Path],
    kinds: set[str],
    folder: Path,
    source: Input,
    axis: int,
    result: Segmentation,
    threshold: float,
) -> None:
    import cv2
    import numpy as np

    from zim import viz
    from zim.output import save_rgb
    from zim_medical.volumes import plane_spacing, stretch, write_like

    volume = source.volume
    folder.mkdir(parents=True, exist_ok=True)
    if "mask" in kinds:
        write_like(paths["mask"], (result.soft > threshold).astype(np.uint8), volume)
    if "alpha" in kinds:
        write_like(paths["alpha"], result.soft, volume)
    if "overlay" not in kinds:
        return
    picture, matte, prompt = result.shown
    # slices are often too small to be looked at, and their pixels are no squares
    high, wide = stretch(plane_spacing(volume.spacing, volume.turn(), axis))
    scale = max(1, round(SHOWN_SIDE / max(matte.shape[0] * high, matte.shape[1] * wide)))
    fx, fy = scale * wide, scale * high
    large = [
        cv2.resize(p, None, fx=fx, fy=fy, interpolation=cv2.INTER_CUBIC) for p in (picture, matte)
    ]
    points = [((x + 0.5) * fx, (y + 0.5) * fy, label) for x, y, label in prompt.points]
    box = None
    if prompt.box is not None:
        x0, y0, x1, y1 = prompt.box
        box = (x0 * fx, y0 * fy, (x1 + 1) * fx - 1, (y1 + 1) * fy - 1)
    drawn = viz.overlay(
        np.asarray(large[0], np.uint8),
        np.asarray(large[1], np.float32),
        points=points or None,
        boxes=box,
    )
    save_rgb(paths["overlay"], drawn)


def _in_space(
    values: tuple[float, ...],
    flat: bool,
    flag: str,
    picture: tuple[int, ...],
    solid: tuple[int, ...],
) -> tuple[float, ...]:
    expected = picture if flat else solid
    if len(values) not in expected:
        kind = "a picture" if flat else "a volume"
        raise UsageError(
            f"{flag} has {len(values)} numbers; {kind} takes {' or '.join(map(str, expected))}"
        )
    return values


def _labelled(values: tuple[float, ...], dimensions: int) -> tuple[float, float, float, float]:
    label = values[dimensions] if len(values) > dimensions else 1.0
    if label not in (0, 1):
        raise UsageError(f"label {label:g} is unknown; expected 1 (object) or 0 (background)")
    x, y = values[:2]
    return x, y, values[2] if dimensions == 3 else 0.0, label


def _point(text: str) -> tuple[float, ...]:
    return _numbers(text, (2, 3, 4), "X,Y,Z[,LABEL]")


def _box(text: str) -> tuple[float, ...]:
    return _numbers(text, (4, 6), "X0,Y0,Z0,X1,Y1,Z1 (in pictures X0,Y0,X1,Y1)")


def _numbers(text: str, counts: tuple[int, ...], form: str) -> tuple[float, ...]:
    import math

    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) not in counts or not all(map(math.isfinite, values)):
        hint = "; put VOLUME before --points" if Path(text).exists() else ""
        raise argparse.ArgumentTypeError(
            f"{text.strip()!r} is not {form} with finite numbers{hint}"
        )
    return values
