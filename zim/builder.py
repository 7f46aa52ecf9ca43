"""Configuration to network."""

from __future__ import annotations

import torch
from torch import nn

from zim.config import ZimConfig, get_config
from zim.model.image_encoder import Attention, ImageEncoder
from zim.pretrained import Zim


def build(config: str | ZimConfig, *, seed: int | None = None) -> Zim:
    """Build a network with random weights.

    Args:
        config: a preset (``nano``, ``vit_b``, ``vit_l``, ``vit_h``, ``tiny``) or a configuration.
        seed: makes the weights repeatable without touching the global generator.

    Returns:
        The network on the CPU in float32, in training mode as any fresh module.

    Raises:
        ConfigError: the name is unknown or the configuration inconsistent.
    """
    config = get_config(config)
    if seed is None:
        return _initialise(Zim(config))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _initialise(Zim(config))


def _initialise(model: Zim) -> Zim:
    """Apply the initial values SAM leaves to its checkpoint: small random positions."""
    encoder = model.image_encoder
    if isinstance(encoder, ImageEncoder):
        nn.init.trunc_normal_(encoder.pos_embed, std=0.02)
        for module in encoder.modules():
            if isinstance(module, Attention):
                nn.init.trunc_normal_(module.rel_pos_h, std=0.02)
                nn.init.trunc_normal_(module.rel_pos_w, std=0.02)
    return model
