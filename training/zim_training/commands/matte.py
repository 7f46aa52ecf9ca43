"""``zim-train matte``: train ZIM on shards, fine-tune on one's own pictures, or on nano's packs."""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from zim._progress import progress_on_stderr
from zim.commandline import Report, UsageError, apply_runtime, timed
from zim.errors import OutputError
from zim_training.commands.common import alone, no_dtype, number, printed, run_folder
from zim_training.matting.config import PRESETS, TrainConfig
from zim_training.options import add_flags, check_bounds, chosen

if TYPE_CHECKING:
    from zim_training.matte import MatteConfig

#: the settings' flags that training on packs takes, beside its own
PACK_FLAGS = ("init", "steps", "rate", "ema", "precision", "workers")
#: flags for packs alone, and what they hold where they were not given
PACKS_ONLY = {
    "minutes": 60.0, "scenes": 6, "stop_after": math.inf, "resume": False, "resident": None,
    "compile": False, "graphs": False, "render": 0.0, "recrop": 0.0,
}  # fmt: skip


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
    parser.add_argument(
        "--minutes", type=number(float, 0, above=True), default=60.0, metavar="X",
        help="packs: schedule length [60]",
    )  # fmt: skip
    parser.add_argument(
        "--scenes", type=number(int, 1), default=6, metavar="N", help="packs: scenes per step [6]"
    )
    parser.add_argument(
        "--stop-after", type=number(float, 0), default=math.inf, metavar="MINUTES",
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
        "--render", type=number(float, 0, 1), default=0.0, metavar="SHARE",
        help="packs: share of the scenes of every step that the device composes anew from the "
        "layers of zim-train data synth --layers; needs --resident, best on a GPU [0]",
    )  # fmt: skip
    parser.add_argument(
        "--recrop", type=number(float, 0, 1), default=0.0, metavar="SHARE",
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
    for name, default in PACKS_ONLY.items():
        if getattr(args, name) != default:
            given = f"{args.data} holds none" if args.data else "--data DIR is missing"
            also = "; the same command again goes on" if name == "resume" else ""
            flag = "--" + name.replace("_", "-")
            raise UsageError(f"{flag} is for packs (--preset nano); {given}{also}")
    no_dtype(args, "training takes --precision")
    preset = args.preset or ("finetune" if hasattr(args, "init") else "default")
    config = chosen(args, TrainConfig, PRESETS[preset])
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
    found = task.network.config.name
    if hasattr(args, "model") and config.model != found:
        raise UsageError(
            f"--init {config.init} is a {found}; leave out --model {config.model} or --init"
        )
    report = Report(model=config.init if config.init != "none" else config.model)
    loop = Loop(task, config, run_dir, args.device, args.overwrite)
    try:
        with progress_on_stderr(), timed(report.seconds, "train"):
            if loop.step == 0:
                report.metrics |= {f"start_{k}": v for k, v in loop.evaluate().items()}
            loop.fit()
    finally:
        loop.close()
    report.metrics |= loop.last_scores
    if loop.main and loop.best.get("step") == 0:
        sys.stderr.write(
            "no step was better than the start on the held-out pictures: the export is the start; "
            "more pictures of one kind, or --no-keep-best\n"
        )
    report.metrics["steps"] = loop.step
    if source.train:  # a stream is not counted
        report.metrics["pictures"] = len(source.train)
    report.outputs = {"model": str(run_dir / "export"), "run": str(run_dir)}
    report.lines.append(str(run_dir / "export"))
    report.stdout_taken = not loop.main  # one process reports
    return report


def _run_packs(args: argparse.Namespace) -> Report:
    """Nano's recipe: small cue models from scratch, on packs, by the clock."""
    no_dtype(args, "training takes --precision")
    if args.print_config:
        return printed(_pack_config(args))
    run_folder(args, "matte")
    if not args.data:
        raise UsageError("matte needs packs: --data DIR (make them with zim-train data synth DIR)")
    alone("training on packs")
    config = _pack_config(args)
    run_dir, report = run_folder(args, "matte"), Report(model=config.preset)
    if (run_dir / "last.pt").exists() and not (args.resume or args.overwrite):
        raise OutputError(
            f"{run_dir} holds a run; go on with --resume, or start anew with --overwrite or "
            "another --output"
        )
    if args.resume and args.overwrite:
        raise UsageError("--resume goes on with a run that --overwrite removes; give one of them")
    apply_runtime(args)
    from zim_training.checkpoint import start_over
    from zim_training.matte import MatteTrainer

    trainer = MatteTrainer(config, Path(args.data), run_dir, args.resume, device=args.device)
    if args.overwrite:
        start_over(run_dir)
    if not args.resume:  # a start that was killed before it saved may have left lines
        (run_dir / "metrics.jsonl").unlink(missing_ok=True)
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
    if args.preset not in (None, "nano"):
        raise UsageError(
            f"{args.data} holds packs, which the preset nano trains on; leave out --preset "
            f"{args.preset}, or give shards or pictures"
        )
    known = {f.name for f in dataclasses.fields(TrainConfig)} | {"config"}
    given = {key for key, value in vars(args).items() if key in known and value is not None}
    if strange := sorted(given - {*PACK_FLAGS, "preset", "seed"}):
        flags = ", ".join("--" + name.replace("_", "-") for name in strange)
        takes = ", ".join("--" + name for name in PACK_FLAGS)
        raise UsageError(
            f"training on packs (--preset nano) does not take {flags}; it takes {takes}, "
            "--minutes, --scenes, --stop-after, --resident, --compile, --graphs, --render, --recrop"
        )
    values = {k: v for k, v in vars(args).items() if k in (*PACK_FLAGS, "seed")}
    if values.get("steps") == 0:  # the schedule runs on minutes
        del values["steps"]
    check_bounds(TrainConfig, values)
    args.seed = args.seed or 0
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
