"""One GPU in two minutes: encoder, decoder, automatic mattes and training, beside other code.

    python benchmarks/gpu.py --output gpu.json --commit "$COMMIT"
    python benchmarks/gpu.py --quick                               # miniatures, on any machine

Sections, each on its own (``--sections encoder,training``; ``ceiling`` always comes first):

- ceiling: what a bf16 matrix product and a copy reach on this card, which shares refer to;
- encoder: ViT-B's image encoder, tensor to embedding: as the product runs it, compiled, by every
  form of attention; ``segment-anything`` with the same weights and transformers' ``SamModel``;
- decoder: ViT-B and ``nano``, boxes on one picture to stride-2 logits;
- automatic: a photograph searched with a grid of clicks, beside ``SamAutomaticMaskGenerator``;
- training: steps of ``zim-train matte`` on a batch that is already on the card.

What fails is recorded where its numbers would be, and the rest runs. A section starts nothing new
once its time is up (``LIMITS``). The report is rewritten after every section. Times are medians;
floating-point operations are the model's, two per multiplication, without the filling of windows,
recomputing or the longer products of a form of attention; training counts three forward passes.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gc
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import automatic as searching
import decoder as decoding
import encoder as encoding
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

import zim
from zim.api import choose_device, choose_dtype
from zim.benchmarking import hardware, hardware_line, markdown_table, provenance, sample_times
from zim.config import PRESETS, MaskedAttentionConfig, ViTConfig, ZimConfig
from zim.images import load_image
from zim.model.attention import fastest_form
from zim.output import atomic_write
from zim.testing import TINY_NANO, disc, meta_sam, tiny_model

Row = dict[str, Any]

#: seconds after which a section starts nothing new, and what ``--patience`` multiplies
LIMITS = {"ceiling": 10, "encoder": 60, "decoder": 15, "automatic": 25, "training": 25}
_PHOTO = Path(__file__).parents[1] / "examples" / "rabbit.jpg"
#: what the encoder section measures, what matters most first: code, type, attention, compiled,
#: batches. All are compared with the first.
CASES = (
    ("segment-anything", "float32", "its own", False, (1, 4)),
    ("zim", "float32", "auto", False, (1, 4)),
    ("zim", "bfloat16", "auto", False, (1, 4, 16, 32)),
    ("zim", "bfloat16", "flex", False, (1, 16)),
    ("transformers", "bfloat16", "its own", False, (1, 4, 16)),
    ("segment-anything", "bfloat16", "its own", False, (1, 4, 16)),
    ("zim", "bfloat16", "auto", True, (1, 16)),
    ("zim", "bfloat16", "reference", False, (1, 16)),
    ("transformers", "float32", "its own", False, (1, 4)),
    ("zim", "bfloat16", "auto", True, (4, 32)),
)


@dataclass
class Section:
    """What a section measures with, and its rows."""

    device: torch.device
    quick: bool
    until: float
    ceiling: float | None  # TFLOP/s in bf16
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def dtype(self) -> torch.dtype:
        """The type the product computes in on a card."""
        return torch.bfloat16 if self.quick else choose_dtype("auto", self.device)

    def left(self) -> float:
        """Return the seconds that are left."""
        return self.until - time.perf_counter()

    def attempt(self, about: Row, measure: Callable[[], Row]) -> bool:
        """Add a row, with what was measured or why it was not; True if it was."""
        row = dict(about)
        try:
            row |= measure() if self.left() > 0 else {"skipped": "out of time"}
        except Exception as error:
            row["error"] = one_line(error)
        if "error" in row:
            free(self.device)
        self.rows.append(row)
        sys.stderr.write(f"  {row}\n")
        return not {"error", "skipped"} & set(row)

    def timed(self, work: Callable[[], object], items: int = 1, flops: float = 0.0) -> Row:
        """Time something: as often as half a second allows, three to twenty times.

        Args:
            work: what to time; runs of its own come first, since a compiled encoder is compiled in
                the first and recorded in the second.
            items: how many things it does.
            flops: how many operations each of them takes; 0 where nobody counted.
        """
        device, before = str(self.device), 0
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        first = sample_times(work, warmup=0, repeats=1, device=device)[0]
        repeats = 1
        if not self.quick:
            again = sample_times(work, warmup=1, repeats=1, device=device)[0]
            repeats = min(20, max(3, int(0.5 / again)))
        times = sample_times(work, warmup=0 if self.quick else 1, repeats=repeats, device=device)
        seconds = float(np.median(times))
        row: Row = {"ms": 1e3 * seconds, "min_ms": 1e3 * min(times), "repeats": repeats}
        row |= {"first_s": first, "per_second": items / seconds}
        if flops:
            rate = items * flops / seconds / 1e12
            row |= {"tflops": rate, "share": rate / self.ceiling if self.ceiling else None}
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated()
            row |= {"before_mib": before / 2**20, "peak_mib": peak / 2**20}
        return row


def main() -> None:
    """Run the sections, print a table of each, write JSON after each."""
    args = _arguments()
    device = choose_device(args.device)
    if args.quick and device.type == "cpu":
        torch.set_num_threads(1)  # whatever else the machine does
    report: Row = {**provenance(), "hardware": hardware(), "quick": args.quick}
    report |= {"commit": args.commit or report["commit"], "cuda": torch.version.cuda}
    report |= {"cudnn": torch.backends.cudnn.version(), "sections": {}}
    print(hardware_line(report["hardware"]))
    section: Section | None = None
    for name in ["ceiling", *(s for s in args.sections if s != "ceiling")]:
        sys.stderr.write(f"{name}\n")
        start = time.perf_counter()
        patience = args.patience * (20 if args.quick else 1)
        peak = section.ceiling if section else None
        section = Section(device, args.quick, start + patience * LIMITS[name], peak)
        found: Row = {}
        try:
            SECTIONS[name](section)
        except Exception as error:
            found["error"] = one_line(error)
        free(device)
        found |= {"seconds": time.perf_counter() - start, "notes": section.notes}
        report["sections"][name] = found | {"rows": section.rows}
        print("\n".join(["", f"{name}, {found['seconds']:.0f} s", "", *_table(section.rows)]))
        print("\n".join(["", *section.notes, found.get("error", "")]).rstrip(), flush=True)
        if args.output:
            atomic_write(args.output, f"{json.dumps(report, indent=2)}\n".encode())


def ceiling(section: Section) -> None:
    """Find out what the card can do: a product of square matrices, a copy."""
    side, size = (256, 1 << 20) if section.quick else (8192, 1 << 31)
    a, b = torch.randn(2, side, side, device=section.device, dtype=torch.bfloat16)
    source = torch.zeros(size, dtype=torch.uint8, device=section.device)
    product, target = torch.empty_like(a), torch.empty_like(source)

    def multiply() -> None:
        for _ in range(10):
            torch.mm(a, b, out=product)

    def copy_all() -> None:
        for _ in range(10):
            target.copy_(source)

    about: Row = {"what": f"10 bf16 products of side {side}"}
    if section.attempt(about, lambda: section.timed(multiply, 10, 2.0 * side**3)):
        section.ceiling = section.rows[0]["tflops"]
    if section.attempt({"what": f"10 copies of {size} bytes"}, lambda: section.timed(copy_all, 10)):
        row = section.rows[1]
        row["gb_per_s"] = 2 * size * row["per_second"] / 1e9  # read and written


def encoder(section: Section) -> None:
    """Time image encoders, and compare embeddings with the first case's."""
    config = PRESETS["vit_b"]
    if section.quick:
        config = ZimConfig("quick", encoding._QUICK, image_size=256)
    config = replace(config, attention=MaskedAttentionConfig(mode="none"))
    flops, device = forward_flops(config)[0], section.device
    ours = zim.build(config, seed=0).eval()
    encoding.randomise(ours)
    graphs = copy.deepcopy(ours).to(device, torch.bfloat16).compile_encoder()
    pictures = torch.randn(32, 3, *[config.image_size] * 2, generator=torch.manual_seed(0))
    pictures = pictures.to(device)
    peers = _peers(section, ours, config)
    expected: list[torch.Tensor] = []

    def measure(case: Row) -> Row:
        code, batch, kind = case["code"], case["batch"], getattr(torch, case["dtype"])
        x, run = pictures[:batch].to(kind), peers.get(code)
        if code == "zim":
            model = graphs if case["compiled"] else ours
            model.image_encoder.attention = case["attention"]
            x, run = x.contiguous(memory_format=torch.channels_last), model._embed  # as the product
        else:
            model = peers[code]
        model.to(device, kind)
        assert run is not None
        with torch.inference_mode(), quick_stance(section):
            row = section.timed(lambda: run(x), batch, flops)
            got = run(x)
        if code == "transformers":  # its weights are others
            return row
        got = got[:1].float()
        expected.append(got)
        error, size = got - expected[0], expected[0]
        row["difference"] = (error.abs().max() / size.abs().max()).item()
        return row | {"rms": (error.norm() / size.norm()).item()}

    for code, dtype, attention, compiled, batches in CASES:
        about: Row = {"code": code, "dtype": dtype, "attention": attention, "compiled": compiled}
        for batch in (1, 3)[: len(batches)] if section.quick else batches:
            case = about | {"batch": batch}
            if code == "zim" or code in peers:
                section.attempt(case, lambda case=case: measure(case))
    torch.compiler.reset()
    timed = [row for row in section.rows if "ms" in row]
    peer = {r["batch"]: r["ms"] for r in timed if (r["code"], r["dtype"]) == CASES[0][:2]}
    for row in timed:
        if row["batch"] in peer:
            row["times_peer"] = peer[row["batch"]] / row["ms"]


def _peers(section: Section, ours: zim.Zim, config: ZimConfig) -> dict[str, Any]:
    """Return the encoders of other packages that are installed, by the name of the package."""
    vit, size, peers = config.encoder, config.image_size, {}
    assert isinstance(vit, ViTConfig)
    package = encoding.segment_anything()
    if package is None:
        section.notes.append("segment-anything is not installed")
    else:
        sam: Any = meta_sam(package, vit, size)
        sam.image_encoder.load_state_dict(ours.image_encoder.state_dict())
        peers["segment-anything"] = sam.image_encoder
    try:
        from transformers import SamVisionConfig, SamVisionModel

        network = SamVisionConfig(
            hidden_size=vit.embed_dim,
            num_hidden_layers=vit.depth,
            num_attention_heads=vit.heads,
            global_attn_indexes=list(vit.global_blocks),
            window_size=vit.window,
            mlp_dim=int(vit.embed_dim * vit.mlp_ratio),
            image_size=size,
            initializer_range=0.02,  # 1e-10 by default, and zeros are multiplied faster
        )
        peers["transformers"] = SamVisionModel(network).eval()
    except Exception as error:
        section.notes.append(f"transformers' SamModel is left out: {one_line(error)}")
    auto = fastest_form(section.device, torch.bfloat16)
    section.notes.append(f"attention auto is {auto}; float32 without TF32")
    return peers


def decoder(section: Section) -> None:
    """Time decoding of boxes on one picture, and its memory."""
    device, kind = str(section.device), section.dtype
    vit = PRESETS["tiny" if section.quick else "vit_b"]
    if section.quick:
        small = tiny_model(TINY_NANO).to(device, kind)
    else:
        small = zim.load("nano", device=device, dtype="auto")
    for model in (decoding._without_blocks(vit, kind, device), small):
        config, side = model.config, model.config.image_size
        flops = sum(decoding.split_flops(config).values()) if not config.cue_planes else 0.0
        with torch.inference_mode():
            x = torch.randn(1, 3, side, side, device=device, dtype=kind)
            features = model.encode_image(x)
        for count in (1, 3) if section.quick else (1, 8, 64, 1024):
            for together in dict.fromkeys((min(count, 256), min(count, 64))):
                # 256 is the most that the automatic search decodes at a time
                work = _decodes(model, features, count, together)
                about = {"model": config.name, "prompts": count, "together": together}
                about["dtype"] = str(kind).removeprefix("torch.")
                if section.attempt(about, partial(section.timed, work, count, flops)):
                    break


def _decodes(model: Any, features: Any, count: int, together: int) -> Callable[[], None]:
    """Return what decodes so many boxes, some at a time."""
    side, planes, device = model.config.image_size, model.config.cue_planes, str(model.device)
    points, labels = decoding._boxes(count, side, device)
    cues = torch.rand(together, planes, side // 2, side // 2, device=device, dtype=model.dtype)

    @torch.inference_mode()
    def work() -> None:
        for some, kinds in zip(points.split(together), labels.split(together), strict=True):
            given = cues[: len(some)] if planes else None
            model.decode(features, some, kinds, cues=given, tokens=slice(0, 1))

    return work


def automatic(section: Section) -> None:
    """Search a photograph by a grid of clicks; every object's ``segmentation`` is read."""
    share, side = 0.3, 4 if section.quick else 32
    config, vit = PRESETS["vit_b"], PRESETS["vit_b"].encoder
    if section.quick:
        vit = searching._SMALL
        config = replace(config, encoder=vit, image_size=128)
    assert isinstance(vit, ViTConfig)
    rgb = load_image(_PHOTO).rgb
    package = searching._segment_anything()
    torch.manual_seed(0)
    sam = None if package is None else meta_sam(package, vit, config.image_size)
    model = searching._same_weights(config, sam).to(section.device, section.dtype)
    section.notes.append(
        f"Random weights, the same in both but for the pixel decoder (ZIM's costs seventy times "
        f"SAM's); pred_iou_thresh of each lets {share:.0%} of the clicks through, stability is not "
        "filtered, the rest are the packages' defaults."
    )

    def measure(name: str, clicks: int, repeats: int, generator: Any) -> None:
        def everything(image: np.ndarray) -> list[Any]:
            return [record["segmentation"] for record in generator.generate(image)]

        def work() -> Row:
            rows: list[Row] = []
            where, passing = section.device, f"{share:.0%}"
            searching._measure(rows, repeats, where, name, clicks, passing, rgb, everything)
            return rows[0]

        section.attempt({"generator": name, "clicks": clicks}, work)

    settings: Row = {"pred_iou_thresh": searching._quality(model, rgb, side, share)}
    settings["stability_score_thresh"] = 0.0
    name = f"zim {str(section.dtype).removeprefix('torch.')}"
    measure(name, side**2, 3, zim.ZimAutomaticMaskGenerator(model, side, **settings))
    if package is None or sam is None:
        section.notes.append("segment-anything is not installed")
        return
    sam = sam.to(section.device)
    settings["pred_iou_thresh"] = searching._sam_quality(package, sam, rgb, side, share)
    for number in (side // 4, side):  # the small grid tells whether there is time for the large one
        expected = 2 * 16 * section.rows[-1].get("seconds", 0.0)
        if number == side and expected > section.left():
            section.notes.append(f"no time for {side**2} clicks: about {expected:.0f} s")
            break
        theirs = package.SamAutomaticMaskGenerator(sam, points_per_side=number, **settings)
        measure("segment-anything float32", number**2, 1, theirs)


def training(section: Section) -> None:
    """Time training steps with and without recomputing, with the largest batch that fits."""
    from zim_training.loop import Loop
    from zim_training.matting.config import PRESETS as RECIPES
    from zim_training.matting.task import MatteTask

    name = "tiny" if section.quick else "vit_b"
    flops = 3 * forward_flops(PRESETS[name])[1]

    def steps(count: int, checkpointing: bool) -> Row:
        config = replace(RECIPES["paper"], model=name, init="none", batch=count, precision="bf16")
        config = replace(config, checkpointing=checkpointing)
        free(section.device)
        task = MatteTask(config, source=None)  # pyright: ignore[reportArgumentType]
        with tempfile.TemporaryDirectory() as folder:
            loop = Loop(task, config, Path(folder), section.device.type)
            batch = training_batch(task, count)
            batches = itertools.repeat({k: v.to(section.device) for k, v in batch.items()})
            row = section.timed(lambda: loop._one_step(batches), count, flops)
            loop.close()
        return row | {"precision": loop.accelerator.mixed_precision}

    for checkpointing in (False, True):
        for count in (2,) if section.quick else (16, 8, 4):
            about = {"model": name, "batch": count, "checkpointing": checkpointing}
            if section.attempt(about, lambda n=count, c=checkpointing: steps(n, c)):
                break


def training_batch(task: Any, count: int) -> dict[str, torch.Tensor]:
    """Make a batch as the task does, of noise with discs and their boxes and points in turns."""
    from zim_training.matting.prompting import box_prompt, padded, point_prompt

    rng, side, views = np.random.default_rng(0), task.size, []
    alpha, others = disc(side, side), np.zeros((side, side), bool)
    for k in range(count):
        box = k % 2 == 0
        prompt = box_prompt(rng, alpha, 0.1) if box else point_prompt(rng, alpha, others, 0.25)
        points, labels = padded(*prompt)
        rgb = rng.integers(256, size=(side, side, 3), dtype=np.uint8)
        views.append((rgb, [{"alpha": alpha[None], "points": points, "labels": labels}]))
    return task._batch(views, rng)


def forward_flops(config: ZimConfig) -> tuple[float, float]:
    """Count the operations of one picture's encoder, and of the network with one prompt.

    The blocks are counted by formula, on the cells that exist; the rest by torch, without data.
    """
    vit = config.encoder
    assert isinstance(vit, ViTConfig)
    side = config.image_size // vit.patch
    blocks = 0.0
    for number in range(vit.depth):
        reach = side if number in vit.global_blocks else vit.window
        linear = vit.embed_dim * (4 + 2 * vit.mlp_ratio)
        attention = 2 * reach**2 + 2 * reach  # scores, values; the two parts of the bias
        blocks += 2.0 * side**2 * vit.embed_dim * (linear + attention)
    model = decoding._without_blocks(config, torch.float32, "meta").train()
    x = torch.zeros(1, 3, config.image_size, config.image_size, device="meta")
    points, labels = (t[:1].to("meta") for t in decoding._boxes(1, config.image_size, "cpu"))
    totals = []
    for work in (lambda: model.image_encoder(x), lambda: model(x, points, labels)):
        with FlopCounterMode(display=False) as counter:
            work()
        totals.append(blocks + counter.get_total_flops())
    return totals[0], totals[1]


def quick_stance(section: Section) -> contextlib.AbstractContextManager[Any]:
    """Compile nothing in a check on a CPU, which would take longer than all the rest."""
    if section.quick and section.device.type == "cpu":
        return torch.compiler.set_stance("force_eager")
    return contextlib.nullcontext()


def free(device: torch.device) -> None:
    """Give back what a measurement, or the traceback of a failed one, still held."""
    gc.collect()
    if device.type == "cuda":
        with contextlib.suppress(RuntimeError):  # after a fault of the card nothing works
            torch.cuda.empty_cache()


def one_line(error: Exception) -> str:
    """Say in one line what went wrong."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _table(rows: list[Row]) -> list[str]:
    headings = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[row.get(key) for key in headings] for row in rows]
    shown = [[f"{v:.4g}" if isinstance(v, float) else v for v in row] for row in cells]
    return markdown_table(headings, shown) if rows else []


_WORKS = (ceiling, encoder, decoder, automatic, training)
SECTIONS = {work.__name__: work for work in _WORKS}


def _arguments() -> argparse.Namespace:
    def names(text: str) -> list[str]:
        found = text.split(",")
        if unknown := set(found) - set(SECTIONS):
            raise argparse.ArgumentTypeError(f"unknown section {', '.join(sorted(unknown))}")
        return found

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sections", type=names, default=list(SECTIONS), metavar="A,B")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--patience", type=float, default=1.0, help="times the sections' limits")
    parser.add_argument("--commit", help="what is measured, where there is no checkout")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--quick", action="store_true", help="miniatures, to check the script")
    return parser.parse_args()


if __name__ == "__main__":
    main()
