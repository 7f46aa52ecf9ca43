"""Promptable image matting: a click, a box or a mask in, a soft matte out."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from zim.commandline import Command, run_program
from zim.commands import auto, batch, bench, doctor, evaluate, export, matte, models, serve

COMMANDS = (
    Command(
        "matte",
        "cut out of images: clicks, boxes, scribbles or a mask in, mattes out",
        matte.configure,
        matte.run,
    ),
    Command("models", "list the models: what they are, licence, size, where", None, models.run),
    Command("doctor", "check this installation and say what is wrong", None, doctor.run),
    Command("batch", "mattes for a long list of images, resumable", batch.configure, batch.run),
    Command(
        "auto",
        "mattes of everything in an image, without prompts",
        auto.configure,
        auto.run,
    ),
    Command("eval", "score models on a data set", evaluate.configure, evaluate.run),
    Command("bench", "measure speed and memory on this machine", bench.configure, bench.run),
    Command(
        "export",
        "write a model as ONNX, in the layout of the official release",
        export.configure,
        export.run,
    ),
    Command("serve", "browser interface and HTTP service", serve.configure, serve.run),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    return run_program("zim", __doc__ or "", COMMANDS, list(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    raise SystemExit(main())
