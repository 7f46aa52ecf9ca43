"""Small models, analytic mattes, a served page: for tests, ours and those of adapter writers."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from zim._extras import require
from zim.builder import build
from zim.config import PRESETS, ConvEncoderConfig, ViTConfig, ZimConfig
from zim.pretrained import Zim

#: a miniature of ``nano``: convolutional encoder, cue planes, a second look at crops
TINY_NANO: ZimConfig = replace(
    PRESETS["tiny"],
    name="tiny_nano",
    encoder=ConvEncoderConfig(width8=16, width16=16, blocks8=1, blocks16=1, attn_blocks=1, heads=2),
    cue_planes=6,
    prompt_blocks=1,
    framing=1.4,
)


def tiny_model(config: str | ZimConfig = "tiny", seed: int = 0) -> Zim:
    """Return a repeatable small random model whose outputs differ clearly between prompts.

    Args:
        config: preset or configuration.
        seed: of the weights.
    """
    model = build(config, seed=seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.dim() > 1 and "mask_decoder" in name:  # fresh weights give nearly flat mattes
                value.mul_(3.0)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
                module.running_mean.normal_(0, 0.1, generator=generator)
    return model


def picture(height: int = 48, width: int = 64, seed: int = 0) -> NDArray[np.uint8]:
    """Return a picture with structure, uint8 H x W x 3 RGB: a bright disc on a dark gradient."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    base = np.stack([30 + 60 * x / width, 40 + 50 * y / height, np.full_like(x, 60)], -1)
    alpha = disc(height, width)[..., None]
    mixed = alpha * np.array([220.0, 180, 40]) + (1 - alpha) * base
    return np.clip(mixed + rng.normal(0, 6, mixed.shape), 0, 255).astype(np.uint8)


def disc(
    height: int = 48,
    width: int = 64,
    *,
    centre: tuple[float, float] | None = None,
    radius: float | None = None,
    softness: float = 1.5,
) -> NDArray[np.float32]:
    """Return the matte of a soft-edged disc, float32 H x W in [0, 1].

    Args:
        height: rows.
        width: columns.
        centre: (x, y); the middle by default.
        radius: pixels; 0.3 of the short side by default.
        softness: pixels over which alpha falls from 1 to 0.
    """
    cx, cy = centre or (width / 2, height / 2)
    radius = 0.3 * min(height, width) if radius is None else radius
    y, x = np.mgrid[:height, :width].astype(np.float32)
    distance = np.hypot(x - cx, y - cy)
    return np.clip((radius - distance) / softness + 0.5, 0, 1).astype(np.float32)


class BoxFiller:
    """A segmenter without a network: fills the box it is given, so that the rest can be measured.

    Without a box it answers with nothing.
    """

    def set_image(self, image: Any) -> None:
        """Keep the size."""
        self.size = image.shape[:2]

    def predict(
        self, *_: Any, box: Any = None, **__: Any
    ) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.float32]]:
        """Answer with one matte."""
        matte = np.zeros((1, *self.size), np.float32)
        if box is not None:
            x0, y0, x1, y1 = (int(v) for v in box)
            matte[0, y0 : y1 + 1, x0 : x1 + 1] = 1
        return matte, np.ones(1), matte


def meta_sam(package: Any, vit: ViTConfig, size: int) -> nn.Module:
    """Build Meta's network with its own classes, with random weights, to compare with.

    Args:
        package: the imported module ``segment_anything``.
        vit: of the encoder.
        size: side of the frame in pixels, a multiple of 16.

    Returns:
        ``segment_anything``'s ``Sam`` in evaluation mode.
    """
    m, grid = package.modeling, size // 16
    return m.Sam(
        image_encoder=m.ImageEncoderViT(
            img_size=size,
            embed_dim=vit.embed_dim,
            depth=vit.depth,
            num_heads=vit.heads,
            global_attn_indexes=vit.global_blocks,
            window_size=vit.window,
            use_rel_pos=True,
            mlp_ratio=vit.mlp_ratio,
            qkv_bias=True,
            patch_size=vit.patch,
            out_chans=256,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
        ),
        prompt_encoder=m.PromptEncoder(
            embed_dim=256,
            image_embedding_size=(grid, grid),
            input_image_size=(size, size),
            mask_in_chans=16,
        ),
        mask_decoder=m.MaskDecoder(
            num_multimask_outputs=3,
            transformer=m.TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8),
            transformer_dim=256,
            iou_head_depth=3,
            iou_head_hidden_dim=256,
        ),
    ).eval()


@contextmanager
def served(app: Any) -> Iterator[str]:
    """Serve an ASGI application, such as that of ``zim serve``, on a free port of this machine.

    Args:
        app: from ``zim.serve.app.create_app``, for example.

    Yields:
        Its address, ``http://127.0.0.1:PORT``.

    Raises:
        MissingExtraError: uvicorn is not installed.
    """
    uvicorn = require("uvicorn", "ui")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise RuntimeError(f"the service did not start on port {port}")
        time.sleep(0.05)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)
