"""How far an object is gone, as CLIP sees it: distance and accuracy of section 7.2, Table 5.

The paper names both measures and leaves their details open. Here: crops of the annotated box in
the source and in the result; ``distance`` compares their embeddings; ``accuracy@k`` is 1 where a
reference class is not among the k likeliest of the result. The reference is CLIP's own first
choice on the source (``source``, as Inst-Inpaint's published script does) or the annotated class
(``truth``, as the wording of the paper reads). Both are always computed.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zim._extras import require
from zim.errors import CheckpointError, ConfigError, one_line
from zim.weights.store import cache_only

TOPS = (1, 3, 5)
REGIONS = ("box", "wide", "image")
SQUARES = ("pad", "squash", "clip")
#: what ``wide`` adds on each side, as a share of the box's side
_MARGIN = 0.1
_U8 = NDArray[np.uint8]


def crop(image: _U8, box: Sequence[float], region: str = "box", square: str = "pad") -> Image.Image:
    """Cut out what CLIP looks at.

    Args:
        image: H x W x 3 uint8 RGB.
        box: x0, y0, x1, y1 in pixels.
        region: ``box``, ``wide`` (10 % more on each side) or the whole ``image``.
        square: ``pad`` with black to a square, ``squash`` to one, or leave it to CLIP's own
            preprocessing, which cuts the middle out (``clip``).
    """
    if region not in REGIONS or square not in SQUARES:
        raise ConfigError(f"region {region!r}, square {square!r}; see REGIONS and SQUARES")
    height, width = image.shape[:2]
    x0, y0, x1, y1 = (0, 0, width, height) if region == "image" else box
    if region == "wide":
        dx, dy = (x1 - x0) * _MARGIN, (y1 - y0) * _MARGIN
        x0, y0, x1, y1 = x0 - dx, y0 - dy, x1 + dx, y1 + dy
    left, top = int(np.clip(np.floor(x0), 0, width - 1)), int(np.clip(np.floor(y0), 0, height - 1))
    right, bottom = int(min(width, np.ceil(x1))), int(min(height, np.ceil(y1)))
    part = image[top : max(bottom, top + 1), left : max(right, left + 1)]
    side = max(part.shape[:2])
    if square == "squash":
        return Image.fromarray(part).resize((side, side), Image.Resampling.BICUBIC)
    if square == "pad":
        padded = np.zeros((side, side, 3), np.uint8)
        y, x = (side - part.shape[0]) // 2, (side - part.shape[1]) // 2
        padded[y : y + part.shape[0], x : x + part.shape[1]] = part
        part = padded
    return Image.fromarray(part)


def measure(
    source: NDArray[np.floating[Any]],
    result: NDArray[np.floating[Any]],
    texts: NDArray[np.floating[Any]],
    truth: int,
) -> dict[str, Any]:
    """Compare two embeddings of unit length.

    Args:
        source: D, of the source's crop.
        result: D, of the result's crop.
        texts: N x D, one per class.
        truth: index of the annotated class.

    Returns:
        ``cosine`` 100 (1 - u.v), ``l2`` 100 |u - v|, ``source@k`` and ``truth@k`` as 0 or 1, and
        ``agrees``: whether CLIP's first choice on the source is the annotated class.
    """
    u, v = np.asarray(source, np.float64), np.asarray(result, np.float64)
    first = int(np.argmax(texts @ source))
    order = np.argsort(-(texts @ result), kind="stable")
    row: dict[str, Any] = {
        "cosine": 100 * max(0.0, 1 - float(u @ v) / float(np.sqrt((u @ u) * (v @ v)))),
        "l2": 100 * float(np.linalg.norm(u - v)),
        "agrees": first == truth,
    }
    for name, reference in (("source", first), ("truth", truth)):
        for top in TOPS:
            row[f"{name}@{top}"] = int(reference not in order[:top])
    return row


class Clip:
    """A CLIP model of open_clip, and the classes it chooses from."""

    def __init__(
        self,
        model: str,
        pretrained: str,
        names: Sequence[str],
        *,
        template: str = "a photo of a {}",
        device: str = "cpu",
    ) -> None:
        """Load the model and embed the classes.

        Args:
            model: open_clip's name of the architecture.
            pretrained: open_clip's name of the weights, or a file.
            names: of the classes.
            template: the prompt; ``{}`` is the class.
            device: a torch device.

        Raises:
            MissingExtraError: open_clip is not installed.
            CheckpointError: the model or its weights are not there.
        """
        import torch

        if not pretrained:
            raise CheckpointError("no CLIP weights given; without them every number is chance")
        with warnings.catch_warnings(), _quiet(), _network_if_allowed():
            warnings.simplefilter("ignore")  # torch.jit, deprecated, is used while importing
            library = require("open_clip", "inpaint")
            try:
                self._model, _, self._prepare = library.create_model_and_transforms(
                    model, pretrained=pretrained, device=device
                )
                tokenizer = library.get_tokenizer(model)
            except Exception as error:  # open_clip, the hub and torch each raise their own
                why = one_line(error, 160)
                raise CheckpointError(
                    f"CLIP {model!r} with weights {pretrained!r} is not there ({why}); give "
                    "--clip-pretrained FILE, or fetch it once on a machine with network"
                ) from error
        self._model.eval()
        self._device = device
        with torch.inference_mode():
            tokens = tokenizer([template.replace("{}", name) for name in names]).to(device)
            self.texts = self._model.encode_text(tokens, normalize=True).float().cpu().numpy()

    def embed(self, crops: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Return N x D float32, of unit length."""
        import torch

        batch = torch.stack([self._prepare(picture) for picture in crops]).to(self._device)
        with torch.inference_mode():
            return self._model.encode_image(batch, normalize=True).float().cpu().numpy()


@contextmanager
def _quiet() -> Generator[None]:
    """Keep what open_clip and the hub log (a dozen retries) out of the way of the one message."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def _network_if_allowed() -> Generator[None]:
    """Let the hub look only at its cache where there is no network; open_clip has no flag."""
    if not cache_only():
        yield
        return
    constants: Any = require("huggingface_hub.constants", "inpaint")
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
