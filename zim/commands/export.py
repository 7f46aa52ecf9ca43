"""``zim export``: write a model as ONNX, in the layout of the official release."""

from __future__ import annotations

import argparse

from zim.commandline import Report, UsageError, apply_runtime, timed
from zim.commands.outputs import output_folder


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``zim export``."""
    parser.add_argument("model", metavar="MODEL", help="name or checkpoint, see zim models")
    group = parser.add_argument_group("graphs")
    group.add_argument(
        "--fp16", action="store_true", help="compute in float16; inputs and outputs stay float32"
    )
    group.add_argument(
        "--single",
        action="store_true",
        help="also write single.onnx: a uint8 picture of any size in, mattes of that size out",
    )
    group.add_argument(
        "--with-mask-input",
        action="store_true",
        help="let the decoder take a mask as a prompt; the official client cannot run it then",
    )
    group.add_argument("--opset", type=int, default=18, metavar="N", help="ONNX opset [18]")


def run(args: argparse.Namespace) -> Report:
    """Write ``encoder.onnx``, ``decoder.onnx`` and ``metadata.json`` into ``--output``."""
    if args.output in (None, "-"):
        raise UsageError("--output DIR is needed: the folder to write encoder.onnx and others to")
    if args.dtype not in ("auto", "float32", "float16"):
        raise UsageError(f"--dtype {args.dtype} cannot be exported; use float32 or --fp16")
    folder = output_folder(args.output)
    report = Report(model=args.model)
    if args.skip_existing and (folder / "metadata.json").is_file():
        report.extra["skipped"] = True
        report.lines.append(f"{folder} exists, left as it is")
        return report
    half = args.fp16 or args.dtype == "float16"

    from zim.api import load
    from zim.onnx.export import export_onnx
    from zim.weights import REGISTRY

    row = REGISTRY.get(args.model)
    with timed(report.seconds, "load"):
        apply_runtime(args)
        model = load(args.model, device="cpu", dtype="float32")
    with timed(report.seconds, "export"):
        paths = export_onnx(
            model,
            folder,
            half=half,
            single=args.single,
            mask_input=args.with_mask_input,
            opset=args.opset,
            licence=row.licence if row else "",
            overwrite=args.overwrite,
        )
    report.outputs = {kind: str(path) for kind, path in paths.items()}
    report.lines += report.outputs.values()
    report.extra["bytes"] = sum(p.stat().st_size for p in folder.iterdir())
    if model.config.cue_planes:
        report.extra["official_client"] = False
        report.lines.append(
            f"{model.config.name} needs the input `cues` (zim.cues); zim.load({str(folder)!r}) "
            "fills it, the official client cannot"
        )
    return report
