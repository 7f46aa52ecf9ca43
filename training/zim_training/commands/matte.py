"""``zim-train matte``: train ZIM on shards, fine-tune on one's own pictures, or on nano's packs."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from zim.commandline import Report, UsageError, apply_runtime, timed
from zim_training.commands.common import printed, run_folder
from zim_training.matting.config import PRESETS, TrainConfig
from zim_training.options import add_flags, chosen

if TYPE_CHECKING:
    from zim_training.matte import MatteConfig

#: the settings' flags that training on packs takes, beside its own
PACK_FLAGS = ("init", "steps", "rate", "ema", "precision", "workers")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument(
        "--preset", choices=("nano", *PRESETS),
        help="settings to start from [nano for packs, finetune with --init, else default]",
    )  # fmt: skip
    parser.add_argument("--config", metavar="FILE", help="settings from a run's config.json")
    parser.add_argument("--print-config", action="store_true", help="show the settings and stop")
    parser.add_argument(
        "--data", metavar="DIR",
        help="SA1B-Matte shards; a folder with image/ and alpha/, a matting set or a manifest; "
        "or packs of zim-train data synth",
    )  # fmt: skip
    parser.add_argument("--minutes", type=float, default=60.0, help="packs: schedule length [60]")
    parser.add_argument("--scenes", type=int, default=6, help="packs: scenes per step [6]")
    parser.add_argument(
        "--stop-after", type=float, default=float("inf"), metavar="MINUTES",
        help="packs: stop for now after so long; --resume goes on",
    )  # fmt: skip
    parser.add_argument("--resume", action="store_true", help="packs: continue the run in --output")
    parser.add_argument(
        "--resident", action=argparse.BooleanOptionalAction,
        help="packs: keep scenes on the device, make batches there and vary them more; --workers "
        "does not apply then [on a GPU and with --compile]",
    )  # fmt: skip
    parser.add_argument(
        "--compile", action="store_true",
        help="packs: fuse kernels with torch.compile; worth it on a GPU, the first step takes a "
        "minute, which counts",
    )  # fmt: skip
    parser.add_argument(
        "--graphs", action="store_true",
        help="packs: with --compile, record the kernels as CUDA graphs, where starting them is "
        "what a GPU waits for; nothing on a CPU",
    )  # fmt: skip
    parser.add_argument(
        "--render", type=float, default=0.0, metavar="SHARE",
        help="packs: share of the scenes of every step that the device composes anew from the "
        "layers of zim-train data synth --layers; needs --resident, best on a GPU [0]",
    )  # fmt: skip
    parser.add_argument(
        "--recrop", type=float, default=0.0, metavar="SHARE",
        help="packs: of the pack's scenes, share the device cuts and asks anew; see --render [0]",
    )  # fmt: skip
    parser.add_argument("--max-steps", dest="steps", type=int, default=argparse.SUPPRESS,
                        metavar="N", help="the same as --steps")  # fmt: skip
    note = " (with --init it is finetune, for packs nano, if --preset names none)"
    add_flags(parser, PRESETS, "default", note=note, skip=("seed",))


def run(args: argparse.Namespace) -> Report:
    """Train, or continue a run that was cut off."""
    packs = args.data and (Path(args.data) / "train" / "pack.json").is_file()
    if packs or args.preset == "nano":
        return _run_packs(args)
    for name in ("render", "recrop"):
        if getattr(args, name):
            given = f"{args.data} holds none" if args.data else "--data DIR is missing"
            raise UsageError(f"--{name} is for packs (--preset nano); {given}")
    preset = args.preset or ("finetune" if hasattr(args, "init") else "default")
    config = chosen(args, TrainConfig, PRESETS[preset])
    if args.seed:
        config = dataclasses.replace(config, seed=args.seed)
    if args.print_config:
        return printed(config)
    if not args.data:
        raise UsageError("matte needs pictures: --data DIR (shards, or image/ and alpha/)")
    run_dir = run_folder(args, "matte")
    apply_runtime(args)
    from zim_training.loop import Loop
    from zim_training.matting.source import open_source
    from zim_training.matting.task import MatteTask

    source = open_source(Path(args.data), config.held_out, config.stream, config.eval_samples)
    task = MatteTask(config, source)
    report = Report(model=config.init if config.init != "none" else config.model)
    loop = Loop(task, config, run_dir, args.device)
    try:
        with timed(report.seconds, "train"):
            if loop.step == 0:
                report.metrics |= {f"start_{k}": v for k, v in loop.evaluate().items()}
            loop.fit()
    finally:
        loop.close()
    report.metrics |= loop.last_scores
    if loop.best.get("step") == 0:
        sys.stderr.write(
            "no step was better than the start on the held-out pictures: the export is the start; "
            "more pictures of one kind, or --no-keep-best\n"
        )
    report.metrics["steps"] = loop.step
    if source.train:  # a stream is not counted
        report.metrics["pictures"] = len(source.train)
    report.outputs = {"model": str(run_dir / "export"), "run": str(run_dir)}
    report.lines.append(str(run_dir / "export"))
    return report


def _run_packs(args: argparse.Namespace) -> Report:
    """Nano's recipe: small cue models from scratch, on packs, by the clock."""
    if args.print_config:
        return printed(_pack_config(args))
    if not args.output:
        raise UsageError("matte needs a run folder: --output RUN")
    if not args.data:
        raise UsageError("matte needs packs: --data DIR (make them with zim-train data synth DIR)")
    config = _pack_config(args)
    apply_runtime(args)
    from zim_training.matte import MatteTrainer

    run_dir, report = Path(args.output), Report(model=config.preset)
    trainer = MatteTrainer(config, Path(args.data), run_dir, args.resume, device=args.device)
    with timed(report.seconds, "train"):
        trainer.fit(args.stop_after)
    model = trainer.ema.model
    model.save_pretrained(run_dir / "export", half=True)  # pyright: ignore[reportCallIssue]
    report.outputs |= {"checkpoint": str(run_dir / "last.pt"), "model": str(run_dir / "export")}
    report.metrics["steps"] = trainer.step
    report.lines.append(str(run_dir / "export"))
    return report


def _pack_config(args: argparse.Namespace) -> MatteConfig:
    """Return the settings of a run on packs, which takes some of the flags only."""
    known = {f.name for f in dataclasses.fields(TrainConfig)} | {"config"}
    given = {key for key, value in vars(args).items() if key in known and value is not None}
    if strange := sorted(given - {*PACK_FLAGS, "preset", "seed"}):
        flags = ", ".join("--" + name.replace("_", "-") for name in strange)
        takes = ", ".join("--" + name for name in PACK_FLAGS)
        raise UsageError(
            f"training on packs (--preset nano) does not take {flags}; it takes {takes}, "
            "--minutes, --scenes, --stop-after, --resident, --compile, --graphs, --render, --recrop"
        )
    from zim.api import choose_device
    from zim_training.matte import MatteConfig

    init, resident = getattr(args, "init", "none"), args.resident
    if resident is None:
        resident = (
            args.compile
            or args.render > 0
            or args.recrop > 0
            or choose_device(args.device).type == "cuda"
        )
    return MatteConfig(
        preset=args.preset or "nano",
        minutes=args.minutes,
        steps=getattr(args, "steps", 0),
        scenes=args.scenes,
        rate=getattr(args, "rate", 1e-3),
        seed=args.seed,
        init="" if init == "none" else init,
        precision=getattr(args, "precision", "auto"),
        ema=getattr(args, "ema", 0.998),
        workers=getattr(args, "workers", 0),
        resident=resident,
        compile=args.compile,
        graphs=args.graphs,
        render=args.render,
        recrop=args.recrop,
    )
