"""Mattes of everything in a picture: a grid of clicks, and what survives of their answers.

The procedure is that of SAM's ``SamAutomaticMaskGenerator``, with its parameters and records, in
an order that suits ZIM, whose fusion of image detail costs seventy times SAM's per prompt. Tokens
are decoded for all clicks; those whose predicted quality is poor end there. Pixels are decoded for
the rest, and stability, boxes and duplicates are settled at stride 2. Only survivors are enlarged
to the picture, one at a time.

Memory is bounded whatever the picture: decoding works in batches that fit, low-res candidates are
thinned above ``KEEP_BYTES``, and records make their full-size arrays on demand
(:mod:`zim.mask_record`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from zim._progress import track
from zim.api import as_predictor
from zim.click_search import Candidate, ClickSearch, Rules
from zim.errors import ConfigError
from zim.images import load_image
from zim.mask_record import Deferred, MaskRecord, Recipe
from zim.masks import Box, Space, crop_boxes, layer_grids, mask_xywh, nms
from zim.model.matting import ZimNetwork
from zim.predictor import ZimPredictor, as_loaded
from zim.rle import encode_coco, encode_rle
from zim.sureness import sharpened

OutputMode = Literal["binary_mask", "uncompressed_rle", "coco_rle"]
OUTPUT_MODES = ("binary_mask", "uncompressed_rle", "coco_rle")


@dataclass(frozen=True)
class Defaults:
    """What is searched for when nothing is said."""

    points_per_side: int
    pred_iou_thresh: float
    stability_score_thresh: float


DEFAULTS = Defaults(32, 0.7, 0.9)
#: for models with cue planes (``nano``): every click costs them a GrabCut of about 50 ms, so there
#: are a quarter of the clicks; they rate first answers to clicks lower (rarely above 0.6), and the
#: soft rim is a larger share of an object in a frame of 256, so that stability is lower as well.
#: Whatever passes is looked at again closely (:mod:`zim.click_search`).
DEFAULTS_WITH_CUES = Defaults(16, 0.4, 0.8)
#: more clicks along each side are taken for a mistake
MOST_PER_SIDE = 1024
#: bytes of full-size arrays that the records of one picture may hold on to once they are made
RECORD_BYTES = 1 << 29


#: arguments that may be None
_OPTIONAL = frozenset(
    (
        *("points_per_side", "points_per_batch", "max_masks", "point_grids"),
        *("pred_iou_thresh", "stability_score_thresh"),
    )
)
#: arguments that are whole numbers of at least so much
_WHOLE = {
    "crop_n_layers": 0,
    "crop_n_points_downscale_factor": 1,
    "points_per_side": 1,
    "points_per_batch": 1,
    "max_masks": 1,
}
_FINITE = (
    "pred_iou_thresh",
    "stability_score_thresh",
    "stability_score_offset",
    "outline_contrast_thresh",
)
_SHARES = {
    "box_nms_thresh": "an IoU from 0 to 1",
    "crop_nms_thresh": "an IoU from 0 to 1",
    "crop_overlap_ratio": "0 to below 1",
}


class ZimAutomaticMaskGenerator:
    """Find every object of a picture; parameters and records as SAM's generator, plus mattes."""

    def __init__(
        self,
        model: ZimNetwork | ZimPredictor | str | Path,
        points_per_side: int | None = None,
        points_per_batch: int | None = None,
        pred_iou_thresh: float | None = None,
        stability_score_thresh: float | None = None,
        stability_score_offset: float = 0.1,
        box_nms_thresh: float = 0.7,
        crop_n_layers: int = 0,
        crop_nms_thresh: float = 0.7,
        crop_overlap_ratio: float = 512 / 1500,
        crop_n_points_downscale_factor: int = 1,
        point_grids: Sequence[NDArray[Any]] | None = None,
        min_mask_region_area: int = 0,
        output_mode: OutputMode = "binary_mask",
        *,
        space: Space = "prob",
        mask_threshold: float = 0.5,
        multimask: int = 3,
        max_masks: int | None = None,
        outline_contrast_thresh: float = 2.0,
        alpha_dtype: Literal["float32", "uint8"] = "float32",
    ) -> None:
        """Choose a model and how to search.

        Args:
            model: a model, a predictor (whose picture stays), or a name as for ``zim.load``.
            points_per_side: clicks along each side; by default 32 (``DEFAULTS``), 16 for models
                with cue planes (``DEFAULTS_WITH_CUES``), as for the next two thresholds.
            points_per_batch: clicks decoded at once; by default what fits into memory.
            pred_iou_thresh: answers need a predicted quality above this; by default 0.7 (cue
                planes: 0.4); 0 takes all.
            stability_score_thresh: answers need at least this stability; by default 0.9 (cue
                planes: 0.8); 0 takes all.
            stability_score_offset: distance of stability's two thresholds from the mask's.
            box_nms_thresh: IoU of boxes above which the poorer answer is a duplicate.
            crop_n_layers: also search crops, layer i has 2**i x 2**i of them.
            crop_nms_thresh: as ``box_nms_thresh``, between crops; smaller crops win.
            crop_overlap_ratio: overlap of crops, see :func:`zim.masks.crop_boxes`.
            crop_n_points_downscale_factor: layer i has 1 / factor**i of the points a side.
            point_grids: explicit grids instead of ``points_per_side``, one per layer, each N x 2
                (x, y) in [0, 1].
            min_mask_region_area: holes and islands of fewer pixels are removed, also from alpha.
            output_mode: form of ``segmentation``: a boolean array, run lengths, or COCO's text.
            space: ``prob`` if the offset is an alpha, ``logit`` if it is a logit (SAM: 1.0).
            mask_threshold: alpha above which a pixel belongs to ``segmentation``.
            multimask: 3 takes SAM's three alternatives of every click, 4 the single-answer token
                as well (the official generator).
            max_masks: keep only so many, best predicted quality first.
            outline_contrast_thresh: answers of models that look again at crops (``nano``) also
                need this difference in colour along three quarters of their outline
                (:func:`zim.outline.outline_contrast`), or a plain background would be cut into
                pieces; 0 takes all.
            alpha_dtype: ``float32`` in [0, 1] or ``uint8`` in 0..255.

        Raises:
            ConfigError: a parameter is out of range, or both kinds of grid are given.
            CheckpointError: the model cannot be loaded.
        """
        _check_arguments(locals())
        self.predictor = as_predictor(model)
        config = self.predictor.model.config
        usual = DEFAULTS_WITH_CUES if config.cue_planes else DEFAULTS
        if pred_iou_thresh is None:
            pred_iou_thresh = usual.pred_iou_thresh
        if stability_score_thresh is None:
            stability_score_thresh = usual.stability_score_thresh
        if point_grids is None:
            side = usual.points_per_side if points_per_side is None else int(points_per_side)
            self.point_grids = layer_grids(side, crop_n_layers, crop_n_points_downscale_factor)
        else:
            self.point_grids = [_grid(given) for given in point_grids]
            if len(self.point_grids) != crop_n_layers + 1:
                raise ConfigError(
                    f"{len(self.point_grids)} point grids; expected {crop_n_layers + 1}, one for "
                    "the picture and one per crop layer"
                )
        self.rules = Rules(
            pred_iou_thresh=pred_iou_thresh,
            stability_score_thresh=stability_score_thresh,
            stability_score_offset=stability_score_offset,
            space=space,
            mask_threshold=mask_threshold,
            box_nms_thresh=box_nms_thresh,
            tokens=slice(1, None) if multimask == 3 else slice(None),
            points_per_batch=None if points_per_batch is None else int(points_per_batch),
            outline_contrast_thresh=outline_contrast_thresh,
        )
        self.crop_n_layers = int(crop_n_layers)
        self.crop_nms_thresh = crop_nms_thresh
        self.crop_overlap_ratio = crop_overlap_ratio
        self.min_mask_region_area = min_mask_region_area
        self.output_mode: OutputMode = output_mode
        self.max_masks = None if max_masks is None else int(max_masks)
        self.alpha_dtype = alpha_dtype

    @torch.inference_mode()
    def generate(self, image: Any) -> list[MaskRecord]:
        """Find every object.

        Args:
            image: anything :func:`zim.images.load_image` takes.

        Returns:
            Records, best predicted quality first; dictionaries with

            - ``segmentation``: bool H x W, or run lengths (``output_mode``),
            - ``alpha``: the matte, H x W float32 in [0, 1] (or uint8, ``alpha_dtype``),
            - ``bbox``: x, y, width, height as in SAM (last minus first pixel),
            - ``area``: pixels of ``segmentation``,
            - ``predicted_iou``, ``stability_score`` (the latter at stride 2),
            - ``point_coords``: [[x, y]], the click, and ``crop_box``: XYWH of its crop.

            Full-size arrays are made when they are read (and kept only where those of all records
            take less than ``RECORD_BYTES``), so read each once.

        Raises:
            ImageError: the picture cannot be read.
        """
        rgb = load_image(image).rgb
        size = (rgb.shape[0], rgb.shape[1])
        crops = crop_boxes(size, self.crop_n_layers, self.crop_overlap_ratio)
        found: list[tuple[Candidate, Box]] = []
        with as_loaded(self.predictor.model):
            for crop, layer in crops:
                search = ClickSearch(self.predictor.model, rgb, crop, self.rules)
                found += [(c, crop) for c in search.run(self.point_grids[layer])]
        if len(crops) > 1 and found:
            boxes = np.stack([candidate.box for candidate, _ in found])
            scores = np.array([1 / ((x1 - x0) * (y1 - y0)) for _, (x0, y0, x1, y1) in found])
            found = [found[i] for i in nms(boxes, scores, self.crop_nms_thresh)]
        found.sort(key=lambda pair: -pair[0].iou)
        found = found[: self.max_masks]
        keep = 5 * size[0] * size[1] * len(found) <= RECORD_BYTES
        made = [
            record
            for candidate, crop in track(found, "enlarging")
            if (record := self._record(candidate, crop, rgb, keep)) is not None
        ]
        if self.min_mask_region_area > 0 and made:
            # clean-up may have made two of them alike; those it left alone go first (SAM)
            boxes = np.array([_corners(record["bbox"]) for record, _ in made])
            scores = np.array([0.0 if changed else 1.0 for _, changed in made])
            kept = nms(boxes, scores, max(self.rules.box_nms_thresh, self.crop_nms_thresh))
            made = [made[i] for i in sorted(kept)]
        return [record for record, _ in made]

    def _record(
        self, candidate: Candidate, crop: Box, rgb: NDArray[np.uint8], keep: bool
    ) -> tuple[MaskRecord, bool] | None:
        """Enlarge one candidate and tell whether clean-up changed it; None if nothing is left."""
        assert candidate.logits is not None
        config = self.predictor.model.config
        logits = candidate.logits[None]
        quality = logits.new_tensor([candidate.iou])
        recipe = Recipe(
            logits=sharpened(logits, quality, config.sharpen)[None],
            rgb=rgb,
            crop=candidate.crop,
            frame_size=config.image_size,
            edges=config.edges,
            threshold=self.rules.mask_threshold,
            min_area=self.min_mask_region_area,
        )
        alpha, changed = recipe.in_crop()
        part = alpha > self.rules.mask_threshold
        del alpha
        if not part.any():
            return None
        x, y, width, height = mask_xywh(part)
        left, top = candidate.crop[:2]
        x0, y0, x1, y1 = crop
        segmentation: Any
        if self.output_mode == "binary_mask":
            segmentation = Deferred(recipe.mask, keep=keep)
        else:
            encode = encode_rle if self.output_mode == "uncompressed_rle" else encode_coco
            segmentation = encode(recipe.full(part))
        matte = recipe.alpha if self.alpha_dtype == "float32" else recipe.alpha_u8
        record = MaskRecord(
            segmentation=segmentation,
            area=int(part.sum()),
            bbox=[x + left, y + top, width, height],
            predicted_iou=candidate.iou,
            point_coords=[candidate.point.tolist()],
            stability_score=candidate.stability,
            crop_box=[x0, y0, x1 - x0, y1 - y0],
            alpha=Deferred(matte, keep=keep),
        )
        return record, changed


def _corners(xywh: Sequence[int]) -> list[int]:
    x, y, width, height = xywh
    return [x, y, x + width + 1, y + height + 1]


def _check_arguments(given: Mapping[str, Any]) -> None:
    """Refuse what :class:`ZimAutomaticMaskGenerator` cannot be given."""
    _check_choice("output_mode", given["output_mode"], OUTPUT_MODES)
    _check_choice("space", given["space"], ("prob", "logit"))
    _check_choice("multimask", given["multimask"], (3, 4))
    _check_choice("alpha_dtype", given["alpha_dtype"], ("float32", "uint8"))
    given = {k: v for k, v in given.items() if v is not None or k not in _OPTIONAL}
    for name, least in _WHOLE.items():
        if name in given:
            _check_whole(name, given[name], least)
    for name in (*_FINITE, *_SHARES, "min_mask_region_area", "mask_threshold"):
        if name in given and not isinstance(given[name], int | float | np.number):
            raise ConfigError(f"{name} is {given[name]!r}; expected a number")
    for name in _FINITE:  # models may rate themselves above 1 or below 0
        if name in given and not math.isfinite(given[name]):
            raise ConfigError(f"{name} is {given[name]}; expected a finite number")
    for name, what in _SHARES.items():
        if not 0 <= given[name] <= 1 or (name == "crop_overlap_ratio" and given[name] == 1):
            raise ConfigError(f"{name} is {given[name]}; expected {what}")
    area, side = given["min_mask_region_area"], given.get("points_per_side")
    if not 0 <= area < math.inf:
        raise ConfigError(f"min_mask_region_area is {area}; expected pixels, 0 or more")
    if side is not None and side > MOST_PER_SIDE:
        raise ConfigError(f"points_per_side is {side}; expected at most {MOST_PER_SIDE}")
    if side is not None and given.get("point_grids") is not None:
        raise ConfigError("points_per_side and point_grids are both given; give one of them")
    _check_thresholds(given["mask_threshold"], given["stability_score_offset"], given["space"])


def _check_thresholds(threshold: float, offset: float, space: Space) -> None:
    if not 0 < threshold < 1:
        raise ConfigError(f"mask_threshold is {threshold}; expected an alpha in (0, 1)")
    least, most = (-math.inf, math.inf) if space == "logit" else (0.0, 1.0)
    if offset < 0 or not least < threshold - offset <= threshold + offset < most:
        raise ConfigError(
            f"stability_score_offset is {offset}; expected at least 0, and mask_threshold plus "
            "and minus it between 0 and 1 (SAM's 1.0 is a logit: space='logit')"
        )


def _check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        known = ", ".join(repr(choice) for choice in choices)
        raise ConfigError(f"{name} is {value!r}; expected one of {known}")


def _check_whole(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int | np.integer) or value < least:
        raise ConfigError(f"{name} is {value!r}; expected a whole number of at least {least}")


def _grid(given: Any) -> NDArray[np.float64]:
    """Return an explicit grid as N x 2."""
    try:
        grid = np.asarray(given, np.float64)
    except (TypeError, ValueError):
        grid = np.zeros(0)
    pairs = grid.ndim == 2 and grid.shape[-1] == 2
    if not pairs or not ((grid >= 0) & (grid <= 1)).all():
        raise ConfigError(
            f"point_grids hold an array of shape {grid.shape}; expected N x 2 (x, y) from 0 to 1"
        )
    return grid
