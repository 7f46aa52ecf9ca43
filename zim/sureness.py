"""As sure as it may be: mattes of a high predicted quality are drawn towards 0 and 1.

A small network that learnt to answer doubt with grey stays a little grey where it has no reason
to: a haze beside the object and a veil on it. Where its predicted quality is high its logits
times 1.5 leave neither and hardly err more: composites not at all, large objects and regions of
photographs by half a percent of MSE (``docs/nano.md``). A model asks for this with
``ZimConfig.sharpen``.
"""

from __future__ import annotations

from torch import Tensor

#: predicted quality from which logits grow, and from which fully
SURE_FROM, SURE_AT = 0.85, 0.95


def sharpened(logits: Tensor, quality: Tensor, factor: float) -> Tensor:
    """Multiply logits by up to ``factor``; what is at alpha 0.5 stays there.

    Args:
        logits: ``... h w``.
        quality: ``...``, predicted soft IoU of each.
        factor: for a quality of 0.95 and more; below 0.85 it is 1, in between it grows evenly.

    Returns:
        Tensor of the logits' shape; the logits themselves where the factor is 1.
    """
    if factor == 1:
        return logits
    sure = ((quality - SURE_FROM) / (SURE_AT - SURE_FROM)).clamp(0, 1).nan_to_num(0)
    return logits * (1 + (factor - 1) * sure)[..., None, None]
