"""``zim auto``: mattes of everything in images, in folders as SAM's ``amg.py`` writes them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zim._progress import progress_on_stderr, track
from zim.commandline import Report, UsageError, apply_runtime, positive_int, timed
from zim.commands.auto_names import OVERLAY, SHEET, is_result
from zim.commands.outputs import Inputs, Result, output_folder
from zim.errors import ImageError, OutputError, ZimError
from zim.folders import SUFFIXES, pictures_in
from zim.items import failed_item, report_items
from zim.name_flags import add_model_flag

if TYPE_CHECKING:
    from zim.automatic import ZimAutomaticMaskGenerator
    from zim.commands.auto_files import Target

#: what is taken from a folder
#: overlays on a folder's contact sheet
SHEET_ROWS, SHEET_COLUMNS = 4, 4

#: flags that are parameters of the generator under the same names
SEARCH: tuple[tuple[str, Any, str], ...] = (
    ("points-per-side", positive_int, "clicks along each side [32; 16 for nano]"),
    ("points-per-batch", positive_int, "clicks decoded at once [what fits into memory]"),
    ("pred-iou-thresh", float, "least predicted quality of an answer [0.7; 0.4 for nano]"),
    ("stability-score-thresh", float, "least stability of an answer [0.9; 0.8 for nano]"),
    ("stability-score-offset", float, "how far stability moves the threshold [0.1]"),
    ("box-nms-thresh", float, "IoU of boxes above which one is a duplicate [0.7]"),
    ("crop-n-layers", int, "also search crops, layer i has 2**i x 2**i of them [0]"),
    ("crop-nms-thresh", float, "as --box-nms-thresh, between crops [0.7]"),
    ("crop-overlap-ratio", float, "overlap of crops as a share of the short side [0.341]"),
    ("crop-n-points-downscale-factor", positive_int, "clicks thin out by this per layer [1]"),
    ("min-mask-region-area", int, "fill holes and drop islands of fewer pixels [0]"),
    ("mask-threshold", float, "alpha above which a pixel belongs to a mask [0.5]"),
    (
        "outline-contrast-thresh",
        float,
        "least difference in colour along an outline, CIE76, 0 takes all; nano only [2]",
    ),
    ("max-masks", positive_int, "keep only so many, best first [all]"),
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``zim auto``."""
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE|DIR",
        help="pictures, - is stdin; a folder's results go to <output>/<its name>, with sheet.jpg",
    )
    add_model_flag(parser)
    parser.add_argument(
        "--rle",
        action="store_true",
        help="write masks as COCO run lengths into <stem>.json instead of PNG files and a table",
    )
    parser.add_argument(
        "--bits", type=int, choices=(8, 16), default=8, help="depth of the mattes [8]"
    )
    group = parser.add_argument_group("search, as in SAM's generator")
    for name, kind, text in SEARCH:
        group.add_argument(f"--{name}", type=kind, metavar="N", help=text)


def run(args: argparse.Namespace) -> Report:
    """Matte everything in every image; a bad image never stops the others."""
    if args.images.count("-") > 1:
        raise UsageError("stdin (-) can be one image only")
    output = output_folder(args.output)
    inputs = _inputs(args.images, output)
    images = [image for image, _ in inputs]
    stems = _stems(inputs)
    from zim.commands.auto_files import Target

    report = Report(model=args.model, items=[])
    todo: list[tuple[str, Target]] = []
    read = Inputs(images)
    for (image, folder), stem in zip(inputs, stems, strict=True):
        target = Target(folder, stem, args.rle)
        existing = target.existing()
        if existing is None or args.overwrite:
            try:
                for path in (target.overlay, target.table):
                    read.spare(path)
                read.spare_folder(target.folder)
            except OutputError as error:
                _fail(report, image, error)
                continue
            todo.append((image, target))
        elif args.skip_existing:
            _add(report, image, target, skipped=True)
        else:
            _fail(
                report,
                image,
                OutputError(f"{existing} exists; use --overwrite or --skip-existing"),
            )
    if todo:
        with timed(report.seconds, "start"):
            apply_runtime(args)
            generator = _generator(args)
        with progress_on_stderr():
            for image, target in track(todo, "images"):
                _one_image(args, generator, image, target, report)
        changed = {target.output for _, target in todo} - {output}
        if changed:
            with timed(report.seconds, "sheet"):
                _sheets(report, inputs, changed, read)
    report_items(report, report.items or [], images)
    return report


def _inputs(given: list[str], output: Path) -> list[tuple[str, Path]]:
    """Pair every picture with the folder its results go to; folders become their pictures."""
    inputs: list[tuple[str, Path]] = []
    for name in given:
        folder = Path(name).expanduser()
        if name == "-" or not folder.is_dir():
            inputs.append((name, output))
            continue
        found = [p for p in pictures_in(folder, deep=True) if not is_result(p)]
        if not found:
            raise ImageError(f"{folder} holds no pictures ({', '.join(SUFFIXES)})")
        inputs += [(str(p), output / folder.resolve().name) for p in found]
    return inputs


def _stems(inputs: list[tuple[str, Path]]) -> list[str]:
    """Name the folders of results; two pictures must not share one."""
    taken: dict[tuple[Path, str], str] = {}
    for image, folder in inputs:
        stem = Result(image).stem
        if (folder, stem) in taken:
            raise UsageError(
                f"{taken[folder, stem]} and {image} would both write {stem}; "
                "run them into different folders"
            )
        taken[folder, stem] = image
    return [stem for _, stem in taken]


def _sheets(
    report: Report, inputs: list[tuple[str, Path]], changed: set[Path], read: Inputs
) -> None:
    """Lay out overlays of every folder that was given, evenly chosen, on one sheet each."""
    from zim.images import load_image, save_rgb
    from zim.viz import contact_sheet

    for folder in sorted(changed):
        overlays = [folder / f"{Result(i).stem}{OVERLAY}" for i, f in inputs if f == folder]
        overlays = [path for path in overlays if path.is_file()]
        count = min(len(overlays), SHEET_ROWS * SHEET_COLUMNS)
        if not count:
            continue
        chosen = [overlays[k * len(overlays) // count] for k in range(count)]
        cells = [(load_image(p).rgb, p.name.removesuffix(OVERLAY)) for p in chosen]
        rows = [cells[k : k + SHEET_COLUMNS] for k in range(0, count, SHEET_COLUMNS)]
        if folder / SHEET in read:
            sys.stderr.write(f"zim auto: {folder / SHEET} is an input, so it stays\n")
            continue
        save_rgb(folder / SHEET, contact_sheet(rows))
        report.outputs[f"sheet_{folder.name}"] = str(folder / SHEET)
        report.lines.append(str(folder / SHEET))


def _generator(args: argparse.Namespace) -> ZimAutomaticMaskGenerator:
    from zim.api import load
    from zim.automatic import ZimAutomaticMaskGenerator

    asked = {name.replace("-", "_"): None for name, _, _ in SEARCH}
    options = {name: value for name in asked if (value := getattr(args, name)) is not None}
    return ZimAutomaticMaskGenerator(
        load(args.model, device=args.device, dtype=args.dtype),
        output_mode="coco_rle" if args.rle else "binary_mask",
        **options,
    )


def _one_image(
    args: argparse.Namespace,
    generator: ZimAutomaticMaskGenerator,
    image: str,
    target: Target,
    report: Report,
) -> None:
    from zim.commands.auto_files import write_results
    from zim.images import load_image

    try:
        with timed(report.seconds, "read"):
            rgb = load_image(image).rgb
        with timed(report.seconds, "search"):
            records = generator.generate(rgb)
        with timed(report.seconds, "write"):
            write_results(target, rgb, records, generator.rules.mask_threshold, args.bits)
        _add(report, image, target, masks=len(records))
        if not records:
            sys.stderr.write(
                f"zim auto: {image}: nothing passed the thresholds; try a lower "
                "--pred-iou-thresh, --stability-score-thresh or --outline-contrast-thresh\n"
            )
    except (ZimError, OSError) as error:
        _fail(report, image, error, args.debug)


def _add(
    report: Report, image: str, target: Target, *, masks: int | None = None, skipped: bool = False
) -> None:
    item: dict[str, Any] = {
        "input": image,
        "outputs": target.outputs(),
        "metrics": {} if masks is None else {"masks": masks},
        "error": None,
    }
    if skipped:
        item["skipped"] = True
    assert report.items is not None
    report.items.append(item)
    report.lines += target.outputs().values()


def _fail(report: Report, image: str, error: BaseException, debug: bool = False) -> None:
    assert report.items is not None
    report.items.append(failed_item("zim auto", image, error, debug=debug))
    report.failed = True
