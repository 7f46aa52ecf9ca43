"""LaMa's loader, on a TorchScript file with the same signature."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from zim.errors import CheckpointError
from zim.testing import picture
from zim_inpaint.backends.lama import Lama


class Grey(nn.Module):
    """Paints the hole grey and insists on sides that are multiples of 8."""

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        assert image.shape[2] % 8 == 0
        assert image.shape[3] % 8 == 0
        return image * (1 - mask) + 0.5 * mask


def test_a_checked_file_runs_and_any_other_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "lama.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Grey()).save(str(path))
    with pytest.raises(CheckpointError, match="it is not run"):
        Lama(path)
    image = picture(45, 61)
    mask = np.zeros((45, 61), np.uint8)
    mask[10:20, 10:20] = 255
    out = Lama(path, device="cpu", sha256=None).fill(image, mask)
    assert (out[mask > 0] == 128).all()
    assert (out[mask == 0] == image[mask == 0]).all()
