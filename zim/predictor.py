"""``ZimPredictor``: set an image once, ask for as many mattes as you like.

Names and arguments are those of SAM's ``SamPredictor``, so most notebooks port by changing an
import. What differs: the masks are mattes in [0, 1]; ``low_res`` logits are stride 2 (512 x 512 for
a 1024 frame) and can be given back as ``mask_input``; boxes of shape B x 4 give a batch, also where
B is 1; nothing at all means the whole picture; bad prompts raise
:class:`zim.errors.PromptError`. ``set_torch_image`` takes one picture.
"""

from __future__ import annotations

import contextlib
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from zim._arrays import as_numpy
from zim.config import ConvEncoderConfig
from zim.errors import ConfigError, ImageError, PromptError
from zim.framing import (
    GUESSED,
    OUTSIDE,
    WHOLE,
    Window,
    join_looks,
    object_region,
    paste_low_res,
)
from zim.geometry import Frame, ResizeLongestSide
from zim.images import load_image
from zim.model.fast import forget, without_autocast
from zim.model.matting import ImageFeatures, ZimNetwork
from zim.parallel import each, spread, workers
from zim.prompt_batch import as_prompt, move_into, split_batch
from zim.prompts import POSITIVE, Prompt, whole_frame
from zim.second_opinion import Kept, doubts, second_opinion
from zim.sureness import sharpened
from zim.upsample import guided_upsample
from zim.views import View, cues_of, decode_views, encode_views

#: crops that are encoded and decoded at a time, by all threads together
CROPS = 12
#: window in which ``edges="guided"`` relates matte and colour, in pixels of the model frame
EDGE_RADIUS = 3
#: there, alpha below this is background and above one minus it foreground: small networks never
#: quite reach 0 and 1, and a person sees the difference as haze
EDGE_LEVEL = 0.02

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


class ZimPredictor:
    """Mattes from prompts, with the image embedding kept between calls.

    Models with ``ZimConfig.framing`` encode crops round the object besides, and those with
    ``mirror_below`` the mirrored view where they doubt their single answer, which then is the mean
    of both, matte and quality.

    Attributes:
        soft: mattes end as softly as the model draws them. ``ZimConfig.sharpen`` makes sure mattes
            end closer to the object, by which a cut-out gains; of what is removed from a picture
            the faint rim has to go as well.
    """

    def __init__(self, model: ZimNetwork) -> None:
        """Wrap a model; it is switched to evaluation mode and stays on its device.

        Where it is back in training mode later, it leaves that for as long as it is asked.
        """
        if isinstance(model, str | Path):
            raise ConfigError(
                f"{str(model)!r} is a name; expected a model: zim.ZimPredictor(zim.load(...)) or "
                "zim.ZimPredictor.from_pretrained(...)"
            )
        self.model = model.eval()
        self.soft = False
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

    @property
    def best_of_three(self) -> bool:
        """Tell whether a lone click's one answer is its best-scored alternative.

        It is the first token otherwise (``ZimConfig.lone_click``).
        """
        return self.model.config.lone_click == "best"

    @property
    def is_image_set(self) -> bool:
        """Tell whether a picture is set."""
        return self.features is not None

    @property
    def original_size(self) -> tuple[int, int]:
        """Return height and width of the picture that is set."""
        return self._ready()[1].original

    @property
    def input_size(self) -> tuple[int, int]:
        """Return height and width of the picture in the model's frame."""
        return self._ready()[1].scaled

    def reset_image(self) -> None:
        """Forget the picture."""
        self.image: np.ndarray | None = None
        self.frame: Frame | None = None
        self.features: ImageFeatures | None = None
        self._pictures: list[np.ndarray] = []
        self._views: list[View] = []
        self._mirrored: Kept = {}
        #: device and type of the model when it encoded the picture
        self._encoded_on: tuple[torch.device, torch.dtype] | None = None

    @torch.inference_mode()
    def set_image(self, image: Any, image_format: str = "RGB") -> None:
        """Encode a picture for the prompts that follow.

        Args:
            image: path, bytes, PIL image, H x W x 3 array (uint8, uint16, float in [0, 1]) or
                CHW tensor; anything :func:`zim.images.load_image` takes.
            image_format: ``RGB`` or ``BGR``, the channel order of arrays and tensors; files and
                PIL images say theirs.

        Raises:
            ImageError: it cannot be read or used.
        """
        rgb = _read(image, image_format)
        self.reset_image()
        view = View.of(rgb, self.model.config.image_size)
        self._keep([rgb], [view])

    @torch.inference_mode()
    def set_image_batch(self, images: Sequence[Any], image_format: str = "RGB") -> None:
        """Encode several pictures; :meth:`predict_batch` then takes a list of prompts for each.

        Args:
            images: as for :meth:`set_image`; sizes may differ.
            image_format: as for :meth:`set_image`.

        Raises:
            ImageError: one cannot be read or used, or there is none.
        """
        one = isinstance(images, np.ndarray | Tensor) and images.ndim != 4
        if one or isinstance(images, str | bytes | Path) or not isinstance(images, Iterable):
            raise ImageError(
                f"set_image_batch got a {type(images).__name__}; expected a list of pictures"
            )
        pictures = [_read(image, image_format) for image in images]
        if not pictures:
            raise ImageError("the list of images is empty; give at least one")
        self.reset_image()
        self._keep(pictures, [View.of(rgb, self.model.config.image_size) for rgb in pictures])

    def _keep(self, pictures: list[np.ndarray], views: list[View]) -> None:
        with as_loaded(self.model):
            self.features = encode_views(self.model, views)
        self._pictures, self._views, self._mirrored = pictures, views, {}
        self._encoded_on = self.model.device, self.model.dtype
        if len(pictures) == 1:
            self.image, self.frame = pictures[0], views[0].frame

    @torch.inference_mode()
    def set_torch_image(self, image: Tensor, original_image_size: tuple[int, int]) -> None:
        """Encode a picture that is already scaled to the model frame.

        Args:
            image: 1 x 3 x h x w RGB in 0..255, longest side equal to the model's image size.
            original_image_size: ``(height, width)`` the mattes are returned in.

        Raises:
            ImageError: the shape does not fit.
        """
        try:
            height, width = map(operator.index, original_image_size)
        except (TypeError, ValueError):
            height, width = 0, 0
        if height < 1 or width < 1:
            raise ImageError(
                f"original_image_size is {original_image_size!r}; expected (height, width) in "
                "whole pixels"
            )
        if not isinstance(image, Tensor):
            raise ImageError(
                f"a {type(image).__name__} was given; expected a tensor 1 x 3 x h x w (set_image "
                "takes everything else)"
            )
        frame = Frame((height, width), self.transform.target_length)
        if tuple(image.shape) != (1, 3, *frame.scaled):
            raise ImageError(
                f"the tensor has shape {tuple(image.shape)}; expected 1 x 3 x "
                f"{frame.scaled[0]} x {frame.scaled[1]} from predictor.transform.apply_image"
            )
        self.reset_image()
        small = image[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
        # a second look needs a picture of the full size; the enlarged one is all there is
        full = Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR)
        self._keep([np.asarray(full)], [View(small, frame)])

    def get_image_embedding(self) -> Tensor:
        """Return the embedding, 1 x C x S/16 x S/16 (1 x 256 x 64 x 64 for the ViT models).

        It is on the model's device and in its type, which may be bfloat16 (``dtype="auto"``).
        """
        return self._ready()[2].embedding.clone()  # not bound to inference mode, as its source is

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
        (result,) = self._answer([prompts], multimask_output, return_logits)
        return result if batched else (result[0][0], result[1][0], result[2][0])

    @overload
    def predict_batch(
        self,
        prompts: Sequence[Prompt | dict[str, Any]],
        multimask_output: bool = False,
        return_logits: bool = False,
    ) -> Arrays: ...

    @overload
    def predict_batch(
        self,
        prompts: Sequence[Sequence[Prompt | dict[str, Any]]],
        multimask_output: bool = False,
        return_logits: bool = False,
    ) -> list[Arrays]: ...

    def predict_batch(
        self,
        prompts: Sequence[Any],
        multimask_output: bool = False,
        return_logits: bool = False,
    ) -> Arrays | list[Arrays]:
        """Predict mattes of many objects in one pass; prompts may be of different kinds.

        Args:
            prompts: :class:`zim.Prompt` or dictionaries of :meth:`zim.Prompt.create`'s arguments
                (``points``, ``labels``, ``box``, ``scribble``, ``mask``, ``low_res``). After
                :meth:`set_image_batch` a list of such lists, one for every picture.
            multimask_output: as in :meth:`predict`.
            return_logits: as in :meth:`predict`.

        Returns:
            mattes B x C x H x W, quality B x C, low-res logits B x C x S/2 x S/2, all float32;
            row i equals what :meth:`predict` gives for prompt i alone, up to the rounding of the
            model's type. For several pictures a list with such a triple for each.

        Raises:
            PromptError: a prompt is malformed or outside its picture, or the lists do not fit.
        """
        self._encoded()
        if not isinstance(prompts, Sequence) or isinstance(prompts, str | bytes):
            raise PromptError(
                f"prompts are a {type(prompts).__name__}; expected a list of zim.Prompt or "
                "dictionaries such as {'box': (x0, y0, x1, y1)}"
            )
        first = prompts[0] if len(prompts) else {}
        several = isinstance(first, list | tuple) and all(
            isinstance(p, Prompt | dict) for p in first
        )
        lists = list(prompts) if several else [prompts]
        if len(lists) != len(self._views):
            raise PromptError(
                f"prompts for {len(lists)} pictures were given, {len(self._views)} are set; "
                "give one list of prompts for every picture"
            )
        checked = [
            [as_prompt(p, view.frame.original) for p in some]
            for view, some in zip(self._views, lists, strict=True)
        ]
        results = self._answer(checked, multimask_output, return_logits)
        return results if several else results[0]

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
            None if t is None else as_numpy(t)
            for t in (point_coords, point_labels, boxes, mask_input)
        )
        if points is not None:
            points = frame.from_frame(points)
        if corners is not None:
            corners = frame.from_frame(corners.reshape(-1, 2, 2)).reshape(-1, 4)
        prompts, _ = split_batch(points, labels, corners, masks, frame.original)
        tokens = _tokens(multimask_output)
        (result,) = self._decode([prompts], tokens, return_logits, self.device)
        return result

    def _answer(self, prompts: list[list[Prompt]], multimask: bool, logits: bool) -> list[Arrays]:
        results = self._decode(prompts, _tokens(multimask), logits, torch.device("cpu"))
        return [(a.numpy(), b.cpu().numpy(), c.cpu().numpy()) for a, b, c in results]

    def _encoded(self) -> ImageFeatures:
        """Return what the decoder needs, made anew where the model was moved or converted since."""
        if self.features is None:
            raise ImageError("no image is set; call set_image(image) before predict")
        if self._encoded_on != (self.model.device, self.model.dtype):
            with torch.inference_mode():
                self._keep(self._pictures, self._views)
        return self.features

    def _ready(self) -> tuple[np.ndarray, Frame, ImageFeatures]:
        features = self._encoded()
        if self.image is None or self.frame is None:
            raise ImageError(
                f"{len(self._views)} images are set; give predict_batch a list of prompts for "
                "each, or call set_image for one"
            )
        return self.image, self.frame, features

    # Decoding. Prompts are in picture pixels; a "view" is the whole picture or a crop of it.

    def _decode(
        self, prompts: list[list[Prompt]], tokens: slice, logits: bool, device: torch.device
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Decode checked prompts, a list for every picture.

        Returns:
            For every picture mattes (or logits) on ``device``, and quality and low-res logits on
            the model's. Beside them only one matte is held at full size at a time.
        """
        if not all(prompts):
            raise PromptError("the list of prompts is empty; give at least one")
        asked = [
            (k, _or_everything(prompt, self._views[k].frame))
            for k, some in enumerate(prompts)
            for prompt in some
        ]
        count = len(range(self.model.config.decoder.mask_tokens)[tokens])
        side = self.model.config.image_size // 2
        full = [
            _room((len(some), count, *view.frame.original), device)
            for view, some in zip(self._views, prompts, strict=True)
        ]
        low = _room((len(asked), count, side, side), self.device)
        iou = _room((len(asked), count), self.device)
        # what is made in here cannot be used with gradients or written to; the results can
        with torch.inference_mode(), as_loaded(self.model):
            self._fill(asked, tokens, logits, [row for some in full for row in some], low, iou)
        sizes = [len(some) for some in prompts]
        return list(zip(full, iou.split(sizes), low.split(sizes), strict=True))

    def _fill(
        self,
        asked: list[tuple[int, Prompt]],
        tokens: slice,
        logits: bool,
        mattes: list[Tensor],
        low: Tensor,
        iou: Tensor,
    ) -> None:
        """Decode prompts, each with the number of its picture, into rows that are there.

        Args:
            asked: picture and prompt.
            tokens: mask tokens to decode.
            logits: mattes are logits.
            mattes: ``c H W`` each.
            low: ``b c S/2 S/2``.
            iou: ``b c``.
        """
        blank = OUTSIDE if logits else 1 / (1 + math.exp(-OUTSIDE))

        def place(
            i: int, low: Tensor, frame: Frame, rgb: np.ndarray, window: Window | None
        ) -> None:
            config = self.model.config
            low = low if self.soft else sharpened(low, iou[i], config.sharpen)
            matte = enlarge_low_res(low[None], frame, rgb, config.edges)[0]
            matte = matte if logits else matte.sigmoid_()
            if window is None:
                mattes[i].copy_(matte)
            else:
                mattes[i].fill_(blank)
                mattes[i][:, window.y0 : window.y1, window.x0 : window.x1] = matte

        framing = self.model.config.framing
        # GrabCut helps little in finding what a lone click means, and takes an eighth of the time.
        quick = [self.model.config.quick_click and prompt.single_click for _, prompt in asked]

        cues: dict[int, np.ndarray] = {}  # of doubtful answers, for the second opinion

        def of(rows: list[int]) -> tuple[list[int], list[Prompt]]:
            return [asked[i][0] for i in rows], [asked[i][1] for i in rows]

        def look(rows: list[int]) -> None:
            where, asking = of(rows)
            fast = [quick[i] for i in rows]
            planes = cues_of(self._views, where, asking, self.model.config, fast)
            assert self.features is not None
            low[rows], iou[rows] = decode_views(
                self.model, self.features, self._views, where, asking, tokens, planes
            )
            if planes is not None:
                for j in torch.nonzero(doubts(self.model.config, iou[rows])).flatten().tolist():
                    cues[rows[j]] = planes[j].copy()

        def show(rows: list[int]) -> None:
            where, asking = of(rows)
            known = [cues.pop(i, None) for i in rows]
            first = low[rows], iou[rows]
            low[rows], iou[rows] = second_opinion(
                self.model, self._views, where, asking, tokens, *first, self._mirrored, known
            )
            for i in rows:
                k = asked[i][0]
                place(i, low[i], self._views[k].frame, self._pictures[k], None)

        def look_closer(rows: list[int]) -> None:
            crops = [(asked[i], windows[i]) for i in rows]
            self._decode_crops(rows, crops, tokens, low, iou, place)

        # Where an object without a box is, a first look has to tell; often it is the answer, too.
        seen = [i for i, (_, p) in enumerate(asked) if framing and p.box is None]
        self._in_parts(look, seen)
        windows = [self._window(*asked[i], low[i]) if framing else None for i in range(len(asked))]
        whole = [i for i, window in enumerate(windows) if window is None]
        for i in set(cues) - set(whole):
            del cues[i]
        self._in_parts(look, sorted(set(whole) - set(seen)))
        self._in_parts(show, whole)
        cropped = [i for i, window in enumerate(windows) if window is not None]
        self._in_parts(look_closer, cropped, CROPS)

    def _in_parts(
        self, work: Callable[[list[int]], None], rows: list[int], most: int | None = None
    ) -> None:
        """Call ``work`` on parts of ``rows``, at most ``most`` rows at a time.

        What a small network does on a CPU is spread over threads: its layers are too short for all
        of them together, and cues and enlarging take one processor each.
        """
        if not rows:
            return
        most = most or len(rows)
        rounds = -(-len(rows) // most)
        small = isinstance(self.model.config.encoder, ConvEncoderConfig)
        if not small or self.device.type != "cpu":
            for part in np.array_split(rows, rounds):
                work(part.tolist())
            return

        count = workers()
        parts = np.array_split(rows, min(len(rows), rounds * count))
        if rounds > 1:  # short parts at the end, so that nobody waits long for the last one
            halves = [half for part in parts[-count:] for half in np.array_split(part, 2)]
            parts[-count:] = [half for half in halves if len(half)]
        spread(work, [part.tolist() for part in parts])

    def _decode_crops(
        self,
        rows: list[int],
        crops: list[tuple[tuple[int, Prompt], Window | None]],
        tokens: slice,
        low: Tensor,
        iou: Tensor,
        place: Callable[[int, Tensor, Frame, np.ndarray, Window | None], None],
    ) -> None:
        """Look again at crops, each with its prompt, and fill in their rows."""
        views, prompts, cuts = [], [], []
        for (k, prompt), window in crops:
            assert window is not None
            cut = np.ascontiguousarray(window.crop(self._pictures[k]))
            view = View.of(cut, self.model.config.image_size)
            views.append(view)
            cuts.append(cut)
            prompts.append(move_into(prompt, window, self._views[k].frame, view.frame))
        each_its_own = range(len(views))
        features = encode_views(self.model, views)
        cues = cues_of(views, each_its_own, prompts, self.model.config)
        parts, quality = decode_views(
            self.model, features, views, each_its_own, prompts, tokens, cues
        )
        known = None if cues is None else list(cues)
        parts, iou[rows] = second_opinion(
            self.model, views, each_its_own, prompts, tokens, parts, quality, cues=known
        )

        def fill(row: int) -> None:
            i, ((k, prompt), window) = rows[row], crops[row]
            assert window is not None
            with torch.inference_mode():  # a mode of the thread, not of the process
                part, whole, frame = parts[row], self._views[k].frame, views[row].frame
                if prompt.single_click:
                    part = join_looks(low[i], part, window, whole, frame)
                place(i, part, frame, cuts[row], window)
                low[i] = paste_low_res(part, window, whole, frame)

        each(fill, range(len(rows)))

    def _window(self, k: int, prompt: Prompt, low: Tensor) -> Window | None:
        """Choose where to look again: round the box, or round what a first look found.

        Args:
            k: which picture.
            prompt: in its pixels.
            low: ``c m m`` logits of the first look; not read where there is a box.
        """
        frame, region, most = self._views[k].frame, prompt.box, WHOLE
        if region is None:
            positive = prompt.points[prompt.labels == POSITIVE]
            region, most = object_region(low, frame, positive), GUESSED
        if region is None:
            return None
        return Window.around(region, frame.original, self.model.config.framing, most)


@contextlib.contextmanager
def as_loaded(model: ZimNetwork) -> Iterator[None]:
    """Compute in evaluation mode, and a model in half precision without the caller's autocast."""
    modes = [(m, m.training) for m in model.modules()] if model.training else []
    if modes:
        model.eval()
    half = model.dtype != torch.float32
    apart = without_autocast(model.device) if half else contextlib.nullcontext()
    try:
        with apart, np.errstate(under="ignore"):  # far from a click its weight is nothing
            yield
    finally:
        for module, training in modes:  # not by train(), which would wake frozen parts
            module.training = training
        if modes:
            forget(model)


def _read(image: Any, image_format: str) -> np.ndarray:
    if image_format not in ("RGB", "BGR"):
        raise ImageError(f"image_format {image_format!r} is unknown; expected 'RGB' or 'BGR'")
    rgb = load_image(image).rgb
    swapped = image_format == "BGR" and isinstance(image, np.ndarray | Tensor)
    return np.ascontiguousarray(rgb[..., ::-1]) if swapped else rgb


def _room(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Return an uninitialised float32 tensor."""
    if device.type == "cpu":  # numpy asks Linux for large pages, which are there much sooner
        return torch.from_numpy(np.empty(shape, np.float32))
    return torch.empty(shape, device=device, dtype=torch.float32)


def _or_everything(prompt: Prompt, frame: Frame) -> Prompt:
    """Nothing asked for means the whole picture."""
    if not prompt.empty or prompt.low_res is not None:
        return prompt
    return Prompt(prompt.points, prompt.labels, whole_frame(frame.original))


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
