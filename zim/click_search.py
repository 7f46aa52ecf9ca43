"""Ask a model about a grid of clicks and keep the good, stable, distinct answers.

This is the part of :mod:`zim.automatic` that works in the model's frame. Tokens are decoded for
every click; only clicks with an answer of good predicted quality are spent pixels on; stability,
boxes and duplicates are settled at stride 2.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zim._progress import track
from zim.config import ZimConfig
from zim.framing import Window, paste_low_res
from zim.geometry import Frame
from zim.masks import Box, Space, cut_by_crop, logit, mask_cells, nms, stability_score
from zim.model.mask_decoder import TokenState
from zim.model.matting import ZimNetwork
from zim.outline import outline_contrast
from zim.parallel import spread, workers
from zim.prompt_batch import pad_prompts
from zim.prompts import POSITIVE, Prompt
from zim.views import View, encode_views

#: bytes of low-res candidates kept before duplicates are thinned out
KEEP_BYTES = 1 << 29
#: most bytes for the maps of one batch on a CPU, and most clicks in one batch anywhere
BATCH_BYTES = 1 << 30
BATCH_LIMIT = 256
#: a second look has to agree with the first at least this much (IoU)
AGREEMENT = 0.6
#: ... and to be rated this much better than a click has to be: ``nano`` rates answers to the box of
#: a true object 0.2 to 0.3 higher, those to the box of a patch of something no higher
CLOSER_GAIN = 0.2


@dataclass(frozen=True)
class Rules:
    """What makes an answer good; see :class:`zim.automatic.ZimAutomaticMaskGenerator`."""

    pred_iou_thresh: float
    stability_score_thresh: float
    stability_score_offset: float
    space: Space
    mask_threshold: float
    box_nms_thresh: float
    tokens: slice
    points_per_batch: int | None = None
    outline_contrast_thresh: float = 0.0


@dataclass(eq=False)
class Candidate:
    """One mask token's answer to one click.

    Attributes:
        point: the click, 2 (x, y) in the picture's pixels.
        token: which of the asked mask tokens.
        iou: predicted quality.
        stability: see :func:`zim.masks.stability_score`.
        box: 4, what is above the threshold, in the picture's pixels, to half a model pixel.
        crop: part of the picture that the model's frame shows.
        logits: m x m at stride 2 of the model frame; None when thinned out, then made again.
        confirmed: whether a closer look found the same.
    """

    point: NDArray[np.float64]
    token: int
    iou: float
    stability: float
    box: NDArray[np.float64]
    crop: Box
    logits: Tensor | None
    confirmed: bool = False


class Look:
    """A part of a picture in the model's frame."""

    def __init__(self, model: ZimNetwork, rgb: NDArray[np.uint8], crop: Box) -> None:
        """Encode a crop of a picture H x W x 3."""
        x0, y0, x1, y1 = crop
        self.model, self.crop = model, crop
        self.view = View.of(np.ascontiguousarray(rgb[y0:y1, x0:x1]), model.config.image_size)
        self.frame = self.view.frame
        self.features = encode_views(model, [self.view])

    def prompt(self, point: NDArray[np.float64], box: NDArray[np.float64] | None = None) -> Prompt:
        """Return a click, and a box, of the picture's pixels as a prompt in those of the crop."""
        offset = np.array(self.crop[:2], np.float64)
        corners = None if box is None else (box - np.tile(offset, 2)).astype(np.float32)
        click = (point - offset)[None].astype(np.float32)
        return Prompt(click, np.array([POSITIVE]), corners)

    def tokens(self, prompts: Sequence[Prompt]) -> TokenState:
        """Decode prompts in the crop's pixels as far as their tokens."""
        model = self.model
        points, labels = pad_prompts(prompts, [self.frame] * len(prompts))
        cues = None
        if model.config.cue_planes:
            from zim.cues import compute_cues

            planes = compute_cues(
                self.view.picture,
                points,
                labels,
                model.config.image_size,
                planes=model.config.cue_planes,
            )
            cues = torch.from_numpy(planes).to(model.device, model.dtype)
        return model.decode_tokens(
            self.features,
            torch.from_numpy(points).to(model.device),
            torch.from_numpy(labels).to(model.device),
            cues=cues,
        )

    def judge(self, logits: Tensor, rules: Rules) -> tuple[Tensor, Tensor]:
        """Return stability n and boxes n x 4 in low-res cells of logits ``n m m``."""
        height, width = self.frame.scaled
        inside = logits[:, : (height + 1) // 2, : (width + 1) // 2]  # the rest shows padding
        stability = stability_score(
            inside, rules.mask_threshold, rules.stability_score_offset, rules.space
        )
        return stability, mask_cells(inside > logit(rules.mask_threshold))

    def contrast(self, logits: Tensor, threshold: float) -> float:
        """Return :func:`zim.outline.outline_contrast` of logits ``m m``."""
        height, width = ((side + 1) // 2 for side in self.frame.scaled)
        mask = (logits[:height, :width] > logit(threshold)).cpu().numpy()
        return outline_contrast(self.view.picture, mask)

    def to_picture(self, cells: NDArray[np.float64]) -> NDArray[np.float64]:
        """Bring boxes ``... 4`` of low-res cells to the picture's pixels."""
        (height, width), (scaled_height, scaled_width) = self.frame.original, self.frame.scaled
        boxes = 2 * cells * np.array([width / scaled_width, height / scaled_height] * 2)
        boxes = np.minimum(boxes, np.array([width, height] * 2))
        return boxes + np.tile(self.crop[:2], 2)


class ClickSearch:
    """Search one crop of a picture."""

    def __init__(self, model: ZimNetwork, rgb: NDArray[np.uint8], crop: Box, rules: Rules) -> None:
        """Encode the crop."""
        self.model, self.rgb, self.crop, self.rules = model, rgb, crop, rules
        self.look = Look(model, rgb, crop)
        budget = batch_budget(model.device)
        tokens, pixels = click_bytes(model.config, model.dtype.itemsize)
        if not hasattr(model, "mask_decoder"):
            tokens = pixels  # ONNX graphs decode pixels along with the tokens
        self.step = rules.points_per_batch or min(BATCH_LIMIT, max(1, budget // tokens))
        self.pixels_step = min(self.step, max(1, budget // pixels))
        self.logit_bytes = 4 * (model.config.image_size // 2) ** 2

    @torch.inference_mode()
    def run(self, grid: NDArray[np.float64]) -> list[Candidate]:
        """Return the objects found by a grid of clicks N x 2 in [0, 1], best first."""
        x0, y0, x1, y1 = self.crop
        points = grid * (x1 - x0, y1 - y0) + (x0, y0)
        batches = [points[i : i + self.step] for i in range(0, len(points), self.step)]
        found: list[Candidate] = []
        for batch in track(batches, "searching"):
            found += self._answers(batch)
            self._thin(found)
        found = self._distinct(found)
        self._complete([c for c in found if c.logits is None])
        if self.model.config.framing:
            found = self._distinct(self._confirmed(found))
        return found

    def _clicked(self, points: Iterable[NDArray[np.float64]]) -> TokenState:
        """Decode clicks as far as their tokens."""
        return self.look.tokens([self.look.prompt(point) for point in points])

    def _answers(self, points: NDArray[np.float64]) -> list[Candidate]:
        """Decode a batch of clicks; return the answers that are good, stable and not cut off."""
        rules, features = self.rules, self.look.features
        state = self._clicked(points)
        iou = state.iou[:, rules.tokens]
        good = torch.ones_like(iou, dtype=torch.bool)
        if rules.pred_iou_thresh != 0:
            good = iou > rules.pred_iou_thresh
        answers: list[Candidate] = []
        chosen = good.any(1).nonzero().flatten()
        for rows in chosen.split(self.pixels_step) if len(chosen) else ():
            logits = self.model.decode_pixels(features, state.select(rows), rules.tokens)
            which = good[rows]
            row, token = which.nonzero(as_tuple=True)
            logits = logits[which]
            stability, cells = self.look.judge(logits, rules)
            ok = cells[:, 2] > 0
            if rules.stability_score_thresh > 0:
                ok &= stability >= rules.stability_score_thresh
            kept = ok.nonzero().flatten()
            # one transfer for all numbers of the batch
            columns = (rows[row], token, iou[rows][which], stability, *cells.unbind(1))
            table = torch.stack([c.double() for c in columns], 1)[kept].cpu().numpy()
            boxes = self.look.to_picture(table[:, 4:])
            answers += [
                Candidate(
                    point=points[int(values[0])],
                    token=int(values[1]),
                    iou=float(values[2]),
                    stability=float(values[3]),
                    box=box,
                    crop=self.crop,
                    logits=logits[i].clone(),  # not a view, which would keep the batch alive
                )
                for i, values, box in zip(kept.tolist(), table, boxes, strict=True)
            ]
        if not answers:
            return []
        size = (self.rgb.shape[0], self.rgb.shape[1])
        offset = np.array([*self.crop[:2], *self.crop[:2]])
        cut = cut_by_crop(np.stack([c.box for c in answers]) - offset, self.crop, size)
        return [c for c, bad in zip(answers, cut, strict=True) if not bad]

    def _distinct(self, found: Sequence[Candidate]) -> list[Candidate]:
        """Drop duplicates and order by predicted quality."""
        if not found:
            return []
        boxes, scores = np.stack([c.box for c in found]), np.array([c.iou for c in found])
        return [found[i] for i in nms(boxes, scores, self.rules.box_nms_thresh)]

    def _thin(self, found: Sequence[Candidate]) -> None:
        """Give up logits where too many are held: first of duplicates, then of the poorest.

        What is given up is decoded again should it survive after all, so the result is exact.
        """
        held = [c for c in found if c.logits is not None]
        room = KEEP_BYTES // self.logit_bytes
        if len(held) <= room:
            return
        # half of the room is left free, or the next batch would be back here at once
        keep = {id(c) for c in self._distinct(held)[: max(1, room // 2)]}
        for candidate in held:
            if id(candidate) not in keep:
                candidate.logits = None

    def _complete(self, missing: Sequence[Candidate]) -> None:
        """Decode again what was thinned out and survived."""
        features = self.look.features
        for start in range(0, len(missing), self.pixels_step):
            part = missing[start : start + self.pixels_step]
            state = self._clicked([c.point for c in part])
            logits = self.model.decode_pixels(features, state, self.rules.tokens)
            for row, candidate in enumerate(part):
                candidate.logits = logits[row, candidate.token].clone()

    def _confirmed(self, found: Sequence[Candidate]) -> list[Candidate]:
        """Look closer at candidates, several at a time on a CPU; return those that are objects."""
        at_once = 4 * workers() if self.model.device.type == "cpu" else 1
        parts = [list(found[i : i + at_once]) for i in range(0, len(found), at_once)]
        for part in track(parts, "looking closer"):
            spread(self._look_closer, part)
        return [candidate for candidate in found if candidate.confirmed]

    def _look_closer(self, candidate: Candidate) -> None:
        """Ask again about the box that was found, on a crop round it (models with framing).

        The answer replaces the first one. Where it is poor, not stable, shows something else or
        ends where nothing does in the picture, the first was no object but a patch of something,
        and is not confirmed.
        """
        x0, y0, x1, y1 = self.crop
        model, rules = self.model, self.rules
        outer = Frame((y1 - y0, x1 - x0), model.config.image_size)
        box = candidate.box - np.array([x0, y0, x0, y0])
        window = Window.around(box, outer.original, model.config.framing)
        window = window or Window(0, 0, x1 - x0, y1 - y0)
        crop = (x0 + window.x0, y0 + window.y0, x0 + window.x1, y0 + window.y1)
        look = Look(model, self.rgb, crop)
        state = look.tokens([look.prompt(candidate.point, candidate.box)])
        logits = model.decode_pixels(look.features, state, slice(0, 1))[0]
        stability, cells = look.judge(logits, rules)
        assert candidate.logits is not None
        cut = logit(rules.mask_threshold)
        first = candidate.logits > cut
        again = paste_low_res(logits, window, outer, look.frame)[0] > cut
        union = (first | again).sum().clamp_min(1)
        agree = float((first & again).sum() / union)
        iou = float(state.iou[0, 0])
        if agree < AGREEMENT or not bool(cells[0, 2]):
            return
        if rules.pred_iou_thresh != 0 and iou <= rules.pred_iou_thresh + CLOSER_GAIN:
            return
        if rules.stability_score_thresh > 0 and not stability >= rules.stability_score_thresh:
            return
        least = rules.outline_contrast_thresh
        if least > 0 and look.contrast(logits[0], rules.mask_threshold) < least:
            return
        candidate.logits, candidate.crop = logits[0], crop
        candidate.iou, candidate.stability = iou, float(stability)
        candidate.box = look.to_picture(cells[0].double().cpu().numpy())
        candidate.confirmed = True


def click_bytes(config: ZimConfig, itemsize: int) -> tuple[int, int]:
    """Estimate the bytes that decoding one click takes: as far as its tokens, down to pixels."""
    cells = (config.image_size // 16) ** 2
    pixels = (config.image_size // 2) ** 2
    # image and its positions as keys, their projections, and the residual branches
    tokens = 12 * cells * config.decoder.dim * itemsize + 4 * config.cue_planes * pixels
    return tokens, itemsize * pixels * sum(config.decoder.fusion) + tokens


def batch_budget(device: torch.device) -> int:
    """Return the bytes that one batch may take: a quarter of what is free, at most a gigabyte.

    GPUs need larger batches to be busy, and may have half of what is free.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 2
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not on this system
        return BATCH_BYTES
    return max(1, min(BATCH_BYTES, free // 4))
