"""``ZimPredictor``: set an image once, ask for as many mattes as you like.

Names and arguments are those of SAM's ``SamPredictor``, so notebooks port by changing an import.
What differs: the masks are mattes in [0, 1]; ``low_res`` logits are stride 2 (512 x 512 for a
1024 frame) and can be given back as ``mask_input``; several boxes give a batch; nothing at all
means the whole picture; bad prompts raise :class:`zim.errors.PromptError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from zim.errors import ImageError, PromptError
from zim.framing import OUTSIDE, Window, object_region, paste_low_res
from zim.geometry import Frame, ResizeLongestSide
from zim.images import load_image
from zim.model.matting import ImageFeatures, ZimNetwork
from zim.prompt_batch import mask_logits, move_into, pad_prompts, split_batch
from zim.prompts import POSITIVE, Prompt, whole_frame
from zim.upsample import guided_upsample

#: bytes that the per-prompt maps of one decoder chunk may take
DECODE_BYTES = 1 << 30
#: window in which ``edges="guided"`` relates matte and colour, in pixels of the model frame
EDGE_RADIUS = 3
#: there, alpha below this is background and above one minus it foreground: small networks never
#: quite reach 0 and 1, and a person sees the difference as haze
EDGE_LEVEL = 0.02

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


class ZimPredictor:
    """Mattes from prompts, with the image embedding kept between calls."""

    def __init__(self, model: ZimNetwork) -> None:
        """Wrap a model; it is switched to evaluation mode and stays on its device."""
        self.model = model.eval()
        self.transform = ResizeLongestSide(model.config.image_size)
        self.reset_image()

    @classmethod
    def from_pretrained(cls, source: str | Path, **options: Any) -> ZimPredictor:
        """Load a model as :func:`zim.load` does and wrap it."""
        from zim.api import load

        return cls(load(source, **options))

    @property
    def device(self) -> torch.device:
        """Return the model's device."""
        return self.model.device

    def reset_image(self) -> None:
        """Forget the picture."""
        self.image: np.ndarray | None = None
        self.frame: Frame | None = None
        self.features: ImageFeatures | None = None
        self._small: np.ndarray | None = None

    @torch.inference_mode()
    def set_image(self, image: Any, image_format: str = "RGB") -> None:
        """Encode a picture for the prompts that follow.

        Args:
            image: path, bytes, PIL image, H x W x 3 array (uint8, uint16, float in [0, 1]) or
                CHW tensor; anything :func:`zim.images.load_image` takes.
            image_format: ``RGB`` or ``BGR``, the channel order of arrays.

        Raises:
            ImageError: it cannot be read or used.
        """
        if image_format not in ("RGB", "BGR"):
            raise ImageError(f"image_format {image_format!r} is unknown; expected 'RGB' or 'BGR'")
        rgb = load_image(image).rgb
        if image_format == "BGR":
            rgb = np.ascontiguousarray(rgb[..., ::-1])
        self.reset_image()
        frame = Frame((rgb.shape[0], rgb.shape[1]), self.model.config.image_size)
        small = frame.resize(rgb)
        self.features = self._encode([small])
        self.image, self.frame, self._small = rgb, frame, small

    @torch.inference_mode()
    def set_torch_image(self, image: Tensor, original_image_size: tuple[int, int]) -> None:
        """Encode a picture that is already scaled to the model frame.

        Args:
            image: 1 x 3 x h x w RGB in 0..255, longest side equal to the model's image size.
            original_image_size: ``(height, width)`` the mattes are returned in.

        Raises:
            ImageError: the shape does not fit.
        """
        frame = Frame(
            (original_image_size[0], original_image_size[1]), self.transform.target_length
        )
        if tuple(image.shape) != (1, 3, *frame.scaled):
            raise ImageError(
                f"the tensor has shape {tuple(image.shape)}; expected 1 x 3 x "
                f"{frame.scaled[0]} x {frame.scaled[1]} from predictor.transform.apply_image"
            )
        self.reset_image()
        small = image[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
        self.features = self._encode([small])
        # a second look needs a picture of the full size; the enlarged one is all there is
        height, width = frame.original
        full = Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR)
        self.image, self.frame, self._small = np.asarray(full), frame, small

    def get_image_embedding(self) -> Tensor:
        """Return the embedding, 1 x C x S/16 x S/16 (1 x 256 x 64 x 64 for the ViT models)."""
        return self._ready()[2].embedding

    def predict(
        self,
        point_coords: Any = None,
        point_labels: Any = None,
        box: Any = None,
        mask_input: Any = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> Arrays:
        """Predict mattes for one prompt, or for a batch of prompts.

        Args:
            point_coords: N x 2 pixels (x, y), or B x N x 2.
            point_labels: N or B x N, 1 object, 0 background.
            box: x0, y0, x1, y1, or B x 4.
            mask_input: low-res logits of an earlier call, 1 x m x m (or B x 1 x m x m); SAM's
                1 x 256 x 256 works too.
            multimask_output: three alternatives (mask tokens 1 to 3) instead of one (token 0).
            return_logits: give logits instead of mattes in [0, 1].

        Returns:
            mattes float32 C x H x W at the picture's own size, predicted quality float32 C, and
            low-res logits float32 C x S/2 x S/2. Batches have a leading B.

        Raises:
            PromptError: the prompt is malformed or outside the picture.
        """
        frame = self._ready()[1]
        prompts, batched = split_batch(point_coords, point_labels, box, mask_input, frame.original)
        result = self._answer(prompts, multimask_output, return_logits)
        return result if batched else (result[0][0], result[1][0], result[2][0])

    def predict_batch(
        self,
        prompts: Sequence[Prompt | dict[str, Any]],
        multimask_output: bool = False,
        return_logits: bool = False,
    ) -> Arrays:
        """Predict mattes of many objects in one pass; prompts may be of different kinds.

        Args:
            prompts: :class:`zim.Prompt` or dictionaries of :meth:`zim.Prompt.create`'s arguments
                (``points``, ``labels``, ``box``, ``scribble``, ``mask``, ``low_res``).
            multimask_output: as in :meth:`predict`.
            return_logits: as in :meth:`predict`.

        Returns:
            mattes B x C x H x W, quality B x C, low-res logits B x C x S/2 x S/2, all float32;
            row i equals what :meth:`predict` gives for prompt i alone.
        """
        size = self._ready()[1].original
        checked = [p if isinstance(p, Prompt) else Prompt.create(size, **p) for p in prompts]
        return self._answer(checked, multimask_output, return_logits)

    @torch.inference_mode()
    def predict_torch(
        self,
        point_coords: Tensor | None,
        point_labels: Tensor | None,
        boxes: Tensor | None = None,
        mask_input: Tensor | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Do the same with tensors, which stay on the model's device.

        Args:
            point_coords: B x N x 2 in the model frame, as in SAM: from
                ``predictor.transform.apply_coords_torch(points, image.shape[:2])``.
            point_labels: B x N.
            boxes: B x 4 in the model frame (``transform.apply_boxes_torch``).
            mask_input: B x 1 x m x m logits.
            multimask_output: as in :meth:`predict`.
            return_logits: as in :meth:`predict`.

        Returns:
            mattes B x C x H x W, quality B x C, low-res logits B x C x S/2 x S/2.
        """
        frame = self._ready()[1]
        points, labels, corners, masks = (
            None if t is None else t.detach().cpu().numpy()
            for t in (point_coords, point_labels, boxes, mask_input)
        )
        if points is not None:
            points = frame.from_frame(points)
        if corners is not None:
            corners = frame.from_frame(corners.reshape(-1, 2, 2)).reshape(-1, 4)
        prompts, _ = split_batch(points, labels, corners, masks, frame.original)
        full, iou, low = self._decode(prompts, _tokens(multimask_output))
        return (full if return_logits else full.sigmoid_()), iou, low

    @torch.inference_mode()
    def _answer(self, prompts: list[Prompt], multimask: bool, logits: bool) -> Arrays:
        full, iou, low = self._decode(prompts, _tokens(multimask))
        if not logits:
            full = full.sigmoid_()
        return full.cpu().numpy(), iou.cpu().numpy(), low.cpu().numpy()

    def _ready(self) -> tuple[np.ndarray, Frame, ImageFeatures]:
        if self.image is None or self.frame is None or self.features is None:
            raise ImageError("no image is set; call set_image(image) before predict")
        return self.image, self.frame, self.features

    # Decoding. Prompts are in picture pixels; a "view" is the whole picture or a crop of it.

    def _decode(self, prompts: list[Prompt], tokens: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Return full-size logits, quality and low-res logits of checked prompts."""
        image, frame, features = self._ready()
        size = frame.original
        prompts = [
            p
            if not (p.empty and p.low_res is None)
            else Prompt(p.points, p.labels, whole_frame(size))
            for p in prompts
        ]
        if not prompts:
            raise PromptError("the list of prompts is empty; give at least one")
        if not self.model.config.framing:
            low, iou = self._decode_view(self._small_image(), frame, features, prompts, tokens)
            return self._enlarge(low, frame, image), iou, low

        windows = self._windows(prompts, tokens)
        count = len(range(self.model.config.decoder.mask_tokens)[tokens])
        side = frame.size // 2
        full = torch.full((len(prompts), count, *size), OUTSIDE, device=self.device)
        low = full.new_empty(len(prompts), count, side, side)
        iou = full.new_empty(len(prompts), count)
        whole = [i for i, w in enumerate(windows) if w is None]
        if whole:
            some = [prompts[i] for i in whole]
            low[whole], iou[whole] = self._decode_view(
                self._small_image(), frame, features, some, tokens
            )
            for i in whole:
                full[i] = self._enlarge(low[i : i + 1], frame, image)[0]
        for i, window in enumerate(windows):
            if window is None:
                continue
            inner = Frame((window.height, window.width), frame.size)
            cut = np.ascontiguousarray(window.crop(image))
            small = inner.resize(cut)
            moved = move_into(prompts[i], window, frame, inner)
            part, iou[i : i + 1] = self._decode_view(
                small, inner, self._encode([small]), [moved], tokens
            )
            full[i, :, window.y0 : window.y1, window.x0 : window.x1] = self._enlarge(
                part, inner, cut
            )[0]
            low[i] = paste_low_res(part[0], window, frame, inner)
        return full, iou, low

    def _windows(self, prompts: list[Prompt], tokens: slice) -> list[Window | None]:
        """Choose where to look again: round the box, or round what a first look finds."""
        _, frame, features = self._ready()
        regions: list[np.ndarray | None] = [p.box for p in prompts]
        unknown = [i for i, region in enumerate(regions) if region is None]
        if unknown:
            low, _ = self._decode_view(
                self._small_image(), frame, features, [prompts[i] for i in unknown], tokens
            )
            for row, i in enumerate(unknown):
                positive = prompts[i].points[prompts[i].labels == POSITIVE]
                regions[i] = object_region(low[row], frame, positive)
        factor = self.model.config.framing
        return [
            None if region is None else Window.around(region, frame.original, factor)
            for region in regions
        ]

    def _enlarge(self, low: Tensor, frame: Frame, rgb: np.ndarray) -> Tensor:
        return enlarge_low_res(low, frame, rgb, self.model.config.edges)

    def _small_image(self) -> np.ndarray:
        if self._small is None:
            raise ImageError("no image is set; call set_image(image) before predict")
        return self._small

    def _encode(self, pictures: list[np.ndarray]) -> ImageFeatures:
        """Encode pictures already scaled to the frame, uint8 h x w x 3."""
        batch = [
            self.model.preprocess(torch.tensor(p).to(self.device).permute(2, 0, 1)[None])
            for p in pictures
        ]
        return self.model.encode_image(torch.cat(batch))

    def _decode_view(
        self,
        small: np.ndarray,
        frame: Frame,
        features: ImageFeatures,
        prompts: list[Prompt],
        tokens: slice,
    ) -> tuple[Tensor, Tensor]:
        """Decode prompts of one view to low-res logits B x C x S/2 x S/2 and quality B x C."""
        config = self.model.config
        points, labels = pad_prompts(prompts, frame)
        masks = mask_logits(prompts, frame)
        cues: np.ndarray | None = None
        if config.cue_planes:
            from zim.cues import compute_cues

            cues = compute_cues(small, points, labels, config.image_size, masks)
        # One widest map per prompt at stride 2, times what is alive around it.
        alive = 4 * (config.image_size // 2) ** 2 * sum(config.decoder.fusion)
        step = max(1, DECODE_BYTES // alive)
        lows, scores = [], []
        for start in range(0, len(prompts), step):
            rows = slice(start, start + step)
            out = self.model.decode(
                features,
                torch.from_numpy(points[rows]).to(self.device),
                torch.from_numpy(labels[rows]).to(self.device),
                mask_input=None
                if masks is None
                else torch.from_numpy(masks[rows, None]).to(self.device, self.model.dtype),
                cues=None
                if cues is None
                else torch.from_numpy(cues[rows]).to(self.device, self.model.dtype),
                tokens=tokens,
            )
            lows.append(out.logits)
            scores.append(out.iou)
        return torch.cat(lows), torch.cat(scores)


def enlarge_low_res(low: Tensor, frame: Frame, rgb: np.ndarray, edges: str) -> Tensor:
    """Bring low-res logits to the size of a view.

    Args:
        low: b c m m over the view's padded frame.
        frame: of the view.
        rgb: the view, H x W x 3 uint8.
        edges: ``ZimConfig.edges``.

    Returns:
        b c H W logits.
    """
    if edges == "bilinear":
        return frame.enlarge(low)
    small = frame.inside(low).sigmoid().cpu().numpy()
    small = np.clip((small - EDGE_LEVEL) / (1 - 2 * EDGE_LEVEL), 0, 1)
    full = np.empty((*low.shape[:2], *frame.original), np.float32)
    for row in np.ndindex(*low.shape[:2]):
        full[row] = guided_upsample(small[row], rgb, radius=EDGE_RADIUS)
    return torch.from_numpy(full).to(low.device).logit_(1e-6)


def _tokens(multimask: bool) -> slice:
    return slice(1, None) if multimask else slice(0, 1)
