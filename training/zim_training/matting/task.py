"""What the loop needs to train ZIM: batches with prompts, the loss of Eq. 1 to 3, evaluation."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import zim
from zim import metrics
from zim.config import ZimConfig, get_config
from zim.cues import compute_cues
from zim.errors import ConfigError
from zim.framing import Window
from zim.geometry import Frame
from zim.predictor import ZimPredictor
from zim.prompts import mask_box
from zim_training.loop import Reader, parameter_groups, step_rng
from zim_training.losses import matte_loss
from zim_training.matting.config import TrainConfig
from zim_training.matting.corrections import correct, deepest, lone_clicks
from zim_training.matting.prompting import (
    box_prompt,
    padded,
    people_prompt,
    point_prompt,
)
from zim_training.matting.source import Picture, Source, StreamedSource, draw_mattes

#: a picture in the frame, h x w x 3 uint8, and for each of its mattes alpha, prompt and cues
View = tuple[np.ndarray, list[dict[str, np.ndarray]]]

#: scores that decide which average is best
RANKED = ("box_mse", "point_mse", "middle_mse")

FREEZABLE = ("image_encoder", "prompt_encoder")


def build_model(config: TrainConfig) -> zim.Zim:
    """Build or load the network a run starts from.

    Raises:
        ConfigError: switches that the loaded weights do not fit, or an unknown part to freeze.
        CheckpointError: the weights are not there.
    """
    if config.init in ("none", "sam") or config.init.startswith("sam:"):
        network = _switched(get_config(config.model), config)
        model = zim.build(network, seed=config.seed)
        if config.init != "none":
            from zim.weights import load_sam

            load_sam(model, sam_weights(config))
    else:
        model = zim.load(config.init, device="cpu", dtype="float32")
        if not isinstance(model, zim.Zim):
            raise ConfigError(f"{config.init} is an exported model and cannot be trained")
        wanted = _switched(model.config, config)
        if wanted != model.config:
            fresh = zim.Zim(wanted)
            missing = fresh.load_state_dict(model.state_dict(), strict=False).missing_keys
            if missing:
                raise ConfigError(f"{config.init} has no weights for the switches asked for")
            model = fresh
    for part in filter(None, config.freeze.split(",")):
        if part not in FREEZABLE:
            raise ConfigError(f"--freeze {part!r}: expected {' or '.join(FREEZABLE)}")
        getattr(model, part).requires_grad_(False)
    return model


def sam_weights(config: TrainConfig) -> Path:
    """Return where SAM's weights are: as given by ``sam:PATH``, or in ``ZIM_HOME``.

    Raises:
        ConfigError: they are not there; says what to fetch.
    """
    from zim.weights.registry import zim_home

    default = zim_home() / "models" / f"sam_{config.model}.pth"
    path = Path(config.init.partition(":")[2]) if ":" in config.init else default
    if not path.exists():
        raise ConfigError(
            f"no SAM weights at {path}; fetch sam_{config.model} (Apache-2.0, segment-anything or "
            "facebook/sam-vit-base on the hub) and give --init sam:PATH, or --init none"
        )
    return path


def _switched(network: ZimConfig, config: TrainConfig) -> ZimConfig:
    """Apply the switches of the paper's ablations."""
    attention: dict[str, Any] = {}
    if config.sigma:
        attention["sigma"] = config.sigma
    if config.attention:
        attention["mode"] = config.attention
    if config.side:
        attention["side"] = config.side
    changes: dict[str, Any] = {}
    if attention:
        changes["attention"] = dataclasses.replace(network.attention, **attention)
    if config.decoder:
        changes["decoder"] = dataclasses.replace(
            network.decoder,
            pixel_decoder=config.decoder,  # pyright: ignore[reportArgumentType]
        )
    return dataclasses.replace(network, **changes)


class MatteTask:
    """Trains a network on a source and scores it on held-out pictures."""

    def __init__(
        self,
        config: TrainConfig,
        source: Source | StreamedSource,
        network: zim.Zim | None = None,
    ) -> None:
        """Build the network, unless one is given."""
        torch.manual_seed(config.seed)
        self.config, self.source = config, source
        self.network = network or build_model(config)
        self.model: nn.Module = self.network
        self.size = self.network.config.image_size
        self._recomputes = False
        self.start = copy.deepcopy(self.network).requires_grad_(False) if config.hold else None

    @property
    def streams(self) -> bool:
        """Tell whether the source is read in order."""
        return isinstance(self.source, StreamedSource)

    @property
    def data_mark(self) -> str:
        """Return a hash of the pictures' names."""
        return self.source.mark

    def stream(self, reader: Reader) -> Iterator[dict[str, Tensor]]:
        """Make a reader's batches from a stream of shards: a view of every picture, in order."""
        assert isinstance(self.source, StreamedSource)
        most, skip = self.config.masks_per_image, reader.done * reader.count
        pictures = self.source.shards.read(reader.seed, reader.slot, reader.slots, skip)
        for number in reader.numbers:
            rng = np.random.default_rng((reader.seed, reader.slot, number))
            views = []
            for sample in itertools.islice(pictures, reader.count):
                tries = (draw_mattes(rng, sample, most) for _ in range(4))
                drawn = (self._view(rng, picture) for picture in tries)
                view = next((v for v in drawn if v), None)
                if view is None:  # small things only: go near one
                    view = self._view(rng, draw_mattes(rng, sample, 1), near=2.0)
                if view is None:
                    raise ConfigError(f"{sample.key}: no matte is large enough to be seen")
                views.append(view)
            yield self._batch(views, step_rng(reader.seed, number // reader.accumulate))

    def samples(
        self, rngs: Sequence[np.random.Generator], shared: np.random.Generator | None = None
    ) -> dict[str, Tensor]:
        """Draw a picture with a prompt for each of its mattes by every ``rng``.

        Whether there is a second round is drawn with ``shared``, or else with the first ``rng``.
        """
        return self._batch([self._draw(rng) for rng in rngs], shared or rngs[0])

    def _draw(self, rng: np.random.Generator) -> View:
        assert not isinstance(self.source, StreamedSource)
        for _ in range(50):
            number = self.source.train[int(rng.integers(len(self.source.train)))]
            picture = self.source.read(rng, number, self.config.masks_per_image)
            if view := self._view(rng, picture):
                return view
        raise ConfigError("no matte is large enough to be seen at this image size")

    def _batch(self, views: list[View], rng: np.random.Generator) -> dict[str, Tensor]:
        images = np.zeros((len(views), self.size, self.size, 3), np.uint8)
        for image, (rgb, _) in zip(images, views, strict=True):
            image[: rgb.shape[0], : rgb.shape[1]] = rgb
        rows = [row for _, some in views for row in some]
        owner = [k for k, (_, some) in enumerate(views) for _ in some]
        columns = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
        batch = {key: torch.from_numpy(values) for key, values in columns.items()}
        batch["image"] = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        batch["size"] = torch.tensor([rgb.shape[:2] for rgb, _ in views])
        batch["owner"] = torch.tensor(owner)
        if self.config.corrections:
            batch["again"] = torch.tensor(rng.random() < self.config.corrections)
        return batch

    def _view(self, rng: np.random.Generator, picture: Picture, near: float = 0.0) -> View | None:
        """Bring a picture into the frame, mirror and tint it, prompt for its mattes.

        Args:
            rng: source of randomness.
            picture: with mattes.
            near: cut out so many times the first matte's box; 0 leaves it to the network's framing.

        Returns:
            The view, or None where no matte is large enough to be seen.
        """
        rgb, alphas, others = picture.rgb, picture.alphas, picture.others
        if not alphas.any():
            return None
        framing = self.network.config.framing
        if near or (framing and rng.random() < 0.65):  # as the predictor's second look
            box = mask_box(alphas[0], min(0.1, 0.5 * float(alphas[0].max())))
            factor = near or framing * rng.uniform(1.0, 1.5)
            window = Window.around(box, (rgb.shape[0], rgb.shape[1]), factor)
            if window is not None:
                rgb = window.crop(rgb)
                alphas = np.stack([window.crop(a) for a in alphas[:1]])
                others = np.stack([window.crop(o) for o in others[:1]])
        frame = Frame((rgb.shape[0], rgb.shape[1]), self.size)
        shape = frame.scaled[::-1]
        rgb = frame.resize(np.ascontiguousarray(rgb))
        mirror = rng.random() < 0.5
        if mirror:
            rgb = rgb[:, ::-1]
        rgb = np.clip(rgb * rng.uniform(0.9, 1.1, 3), 0, 255).astype(np.uint8)
        rows = []
        for alpha, other in zip(alphas, others, strict=True):
            method = cv2.INTER_AREA if alpha.shape[0] > rgb.shape[0] else cv2.INTER_LINEAR
            small = np.asarray(cv2.resize(alpha, shape, interpolation=method))
            rest = np.asarray(cv2.resize(other.astype(np.uint8), shape)) > 0
            if mirror:
                small, rest = small[:, ::-1], rest[:, ::-1]
            if (small > 0.1).sum() < 12:
                continue
            if self.config.prompts == "people":
                points, labels = people_prompt(rng, small, rest, self.size)
            elif rng.random() < self.config.box:
                points, labels = box_prompt(rng, small, self.config.jitter)
            else:
                points, labels = point_prompt(rng, small, rest, self.config.single)
            full = np.zeros((1, self.size, self.size), np.float32)
            full[0, : small.shape[0], : small.shape[1]] = small
            row: dict[str, np.ndarray] = {"alpha": full}
            row["points"], row["labels"] = padded(points, labels)
            if self.network.config.cue_planes:
                row["cues"] = compute_cues(
                    rgb,
                    points[None],
                    labels[None],
                    self.size,
                    planes=self.network.config.cue_planes,
                )[0]
            rows.append(row)
        return (rgb, rows) if rows else None

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Token 0 answers every prompt; for lone clicks the best of tokens 1 to 3 learns too."""
        c = self.config
        self._hold_still()
        if c.checkpointing and not self._recomputes:
            # only now: the averaged copy of the network is made before, and must not call this one
            recompute_blocks(self.network)
            self._recomputes = True
        inside = _inside(batch["size"], self.size)
        images = self.network.preprocess(batch["image"]) * inside
        lone = lone_clicks(batch["labels"])
        mask = None
        if batch.get("again"):
            with torch.no_grad():
                self.network.eval()  # a first answer leaves no trace in running statistics
                before = self._answer(self.network, batch, images, None).logits[:, :1]
                self.network.train()
                self._hold_still()
            batch, mask, lone = correct(batch, before, self.network.config.cue_planes)
        out = self._answer(model, batch, images, mask)
        logits, alpha, valid = out.logits.float(), batch["alpha"], inside[batch["owner"]]
        if c.resolution == "full":
            logits = F.interpolate(logits, alpha.shape[-2:], mode="bilinear", align_corners=False)
        else:
            factor = alpha.shape[-1] // logits.shape[-1]
            alpha, valid = F.avg_pool2d(alpha, factor), F.avg_pool2d(valid, factor)
        weights: dict[str, Any] = {
            "gradient": c.gradient,
            "entropy": c.entropy,
            "overlap": c.overlap,
        }
        losses = matte_loss(logits, alpha, valid, **weights)
        first = losses[:, 0]
        rows = torch.nonzero((batch["labels"] == 2).any(1))[:, 0]
        if self.start is not None and len(rows):
            held = self._held(batch, images, mask, rows, alpha.shape[-1])
            still = matte_loss(logits[rows, :1], held, valid[rows], **weights)[:, 0]
            first = first.index_put((rows,), (1 - c.hold) * first[rows] + c.hold * still)
        owner = batch["owner"]
        total = by_picture(first, owner)
        if c.multimask:
            best = losses[:, 1:].min(1).values * lone
            total = total + c.multimask * by_picture(best, owner)
        else:  # keeps every parameter in the graph, which DDP counts on
            total = total + 0.0 * losses[:, 1:].sum()
        iou = out.iou.float()
        truth = _iou(logits.detach() > 0, alpha > 0.5, valid > 0)
        wrong = (iou - truth).abs().mean(1)
        total = total + (c.quality or 0.0) * by_picture(wrong, owner)
        with torch.no_grad():
            difference = (logits[:, :1].sigmoid() - alpha).abs() * valid
            l1 = difference.sum() / valid.sum()
        return total, {"l1": float(l1)}

    def _answer(
        self, model: nn.Module, batch: dict[str, Tensor], images: Tensor, mask: Tensor | None
    ) -> Any:
        return model(
            images, batch["points"], batch["labels"], mask_input=mask, cues=batch.get("cues"),
            image_index=batch["owner"],
        )  # fmt: skip

    @torch.no_grad()
    def _held(
        self,
        batch: dict[str, Tensor],
        images: Tensor,
        mask: Tensor | None,
        rows: Tensor,
        side: int,
    ) -> Tensor:
        """Answer some prompts with the weights of the start, ``rows 1 side side`` alphas."""
        assert self.start is not None
        self.start = self.start.to(images.device).eval()
        some = {k: batch[k][rows] for k in ("points", "labels", "cues") if k in batch}
        some["owner"] = torch.arange(len(rows), device=images.device)
        images, mask = images[batch["owner"][rows]], None if mask is None else mask[rows]
        logits = self._answer(self.start, some, images, mask).logits[:, :1].float()
        if logits.shape[-1] != side:
            logits = F.interpolate(logits, (side, side), mode="bilinear", align_corners=False)
        return logits.sigmoid()

    def _hold_still(self) -> None:
        """Put frozen parts, and batch norms on request, back into evaluation mode."""
        for part in filter(None, self.config.freeze.split(",")):
            getattr(self.network, part).eval()
        if self.config.freeze_norm:
            for module in self.network.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()

    def groups(self) -> list[dict[str, Any]]:
        """Return parameter groups; the pixel decoder may learn faster."""
        scales = {"mask_decoder.pixel_decoder.": self.config.new_rate}
        return parameter_groups(self.network, self.config.decay, scales)

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> tuple[dict[str, float], np.ndarray | None]:
        """Score a box, a click anywhere and one in the middle on held-out pictures."""
        assert isinstance(model, zim.Zim)
        predictor = ZimPredictor(model.eval())
        rows: dict[str, list[dict[str, float]]] = {kind: [] for kind in ("box", "point", "middle")}
        sheet = []
        for number in self.source.held_out[: self.config.eval_samples]:
            rng = np.random.default_rng((number, 5))
            picture = self.source.read(rng, number, 1)
            alpha = picture.alphas[0]
            predictor.set_image(picture.rgb)
            box, _ = box_prompt(rng, alpha, 0.0)
            click, labels = point_prompt(rng, alpha, picture.others[0], 1.0)
            middle = deepest(alpha > min(0.5, 0.5 * float(alpha.max())))
            prompts = {
                "box": {"box": box.reshape(4)},
                "point": {"points": click[labels == 1], "labels": [1]},
                "middle": {"points": [middle], "labels": [1]},
            }
            found = predictor.predict_batch(list(prompts.values()))[0][:, 0]
            if not np.isfinite(found).all():
                raise FloatingPointError("an answer on held-out pictures")
            answers = dict(zip(prompts, found, strict=True))
            for kind, answer in answers.items():
                rows[kind].append(
                    {
                        "mse": metrics.mse(answer, alpha),
                        "sad": metrics.sad(answer, alpha),
                        "grad": metrics.grad(answer, alpha),
                    }
                )
            if len(sheet) < 6:
                sheet.append(_row(picture.rgb, alpha, answers["box"], answers["point"]))
        scores = {
            f"{kind}_{key}": round(float(np.mean([r[key] for r in some])), 4)
            for kind, some in rows.items()
            for key in (some[0] if some else ())
        }
        return scores, np.vstack(sheet) if sheet else None

    def rank(self, scores: dict[str, float], first: dict[str, float]) -> float:
        """Rate scores against the first: the mean ratio of the errors by box and by clicks.

        A kind that grew counts four times: better clicks are no excuse for worse boxes.
        """
        ratios = [scores[k] / first[k] for k in RANKED if first.get(k)]
        return float(np.mean(ratios)) + 3 * max(0.0, max(ratios) - 1) if ratios else 1.0

    def export(self, model: nn.Module, folder: Path) -> None:
        """Write the averaged weights so that ``zim.load(folder)`` takes them."""
        assert isinstance(model, zim.Zim)
        model.save_pretrained(folder)

    def extra_state(self) -> dict[str, Any]:
        """Return the network's configuration, so that ``zim-train bundle`` can read the run."""
        return {"network": self.network.config.to_dict()}


def by_picture(values: Tensor, owner: Tensor) -> Tensor:
    """Average ``b`` values over every picture's prompts, then over the pictures, ``owner`` b int.

    Batches of as many pictures then weigh the same, however many mattes these have.
    """
    prompts = torch.bincount(owner)
    pictures = (prompts > 0).sum()
    return values.mean() if len(values) == pictures else (values / prompts[owner]).sum() / pictures


def recompute_blocks(network: zim.Zim) -> None:
    """Keep only the inputs of the encoder's blocks and compute the rest again going backwards."""
    for block in network.image_encoder.blocks:  # pyright: ignore
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)


def _inside(sizes: Tensor, side: int) -> Tensor:
    """Ones on the picture, zeros on the padding, ``b 1 S S``."""
    places = torch.arange(side, device=sizes.device)
    rows = places[None, :, None] < sizes[:, 0, None, None]
    columns = places[None, None, :] < sizes[:, 1, None, None]
    return (rows & columns)[:, None].float()


def _iou(predicted: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """IoU of binary masks ``b k h w`` and ``b 1 h w`` on the picture, ``b k``."""
    both = (predicted & truth & valid).sum((2, 3)).float()
    return both / ((predicted | truth) & valid).sum((2, 3)).clamp_min(1)


def _row(rgb: np.ndarray, *mattes: np.ndarray, side: int = 128) -> np.ndarray:
    """Show picture, truth and answers side by side, each in a square of ``side`` pixels."""
    out = np.full((side, side * (1 + len(mattes)), 3), 96, np.uint8)
    for k, plane in enumerate((rgb, *mattes)):
        height, width = plane.shape[:2]
        scale = side / max(height, width)
        size = (max(1, int(width * scale)), max(1, int(height * scale)))
        small = np.asarray(cv2.resize(plane, size, interpolation=cv2.INTER_AREA))
        if small.ndim == 2:
            small = np.dstack([(np.clip(small, 0, 1) * 255).astype(np.uint8)] * 3)
        out[: size[1], k * side : k * side + size[0]] = small
    return out
