"""A very small detector of named things: the network only, no files and no words.

A convolutional encoder looks at a square picture; at every cell of a stride-8 grid it says how
likely the middle of a thing is here, how far the four sides of its box are, which of the known
names it has and which colours. A centre heat map with boxes (in the manner of CenterNet) needs no
anchors, no matching and no suppression while training, which is what a few minutes of CPU allow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: pixels of the input per cell of the output grid
STRIDE = 8


@dataclass(frozen=True)
class NamedObjectsConfig:
    """Sizes and vocabulary of the detector.

    Attributes:
        names: what it can be asked for, lower case.
        colours: the colour words it knows.
        side: height and width of the input in pixels, a multiple of 16.
        width: channels at stride 8; half of it before, one and a half of it after.
        blocks: residual blocks at each of the last two scales.
    """

    names: tuple[str, ...]
    colours: tuple[str, ...]
    side: int = 192
    width: int = 64
    blocks: int = 3

    def to_dict(self) -> dict[str, Any]:
        """Return what goes into the JSON file beside the weights."""
        return {
            "names": list(self.names),
            "colours": list(self.colours),
            "side": self.side,
            "width": self.width,
            "blocks": self.blocks,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> NamedObjectsConfig:
        """Read it back; unknown keys are a TypeError."""
        sizes = {k: int(v) for k, v in data.items() if k not in ("names", "colours")}
        return cls(tuple(data["names"]), tuple(data["colours"]), **sizes)


class Grid(NamedTuple):
    """What the network says for every cell of its grid.

    Attributes:
        centre: B x 1 x h x w logits, the middle of a thing is in this cell.
        sides: B x 4 x h x w, distances in pixels of the input from the middle of the cell to the
            left, top, right and bottom side of the box, positive.
        names: B x N x h x w logits over the known names.
        colours: B x C x h x w logits, each colour by itself.
    """

    centre: Tensor
    sides: Tensor
    names: Tensor
    colours: Tensor


class NamedObjects(nn.Module):
    """The detector's network; see the head of this module."""

    def __init__(self, config: NamedObjectsConfig) -> None:
        """Build it with random weights."""
        super().__init__()
        self.config = config
        half, full, deep = config.width // 2, config.width, config.width * 3 // 2
        self.stem = nn.Sequential(_conv(3, half // 2, 5, 2), _conv(half // 2, half, 3, 2))
        self.mid = nn.Sequential(
            _conv(half, full, 3, 2), *(_Block(full) for _ in range(config.blocks))
        )
        self.deep = nn.Sequential(
            _conv(full, deep, 3, 2), *(_Block(deep) for _ in range(config.blocks))
        )
        self.across = nn.Conv2d(full, deep, 1)
        self.join = _conv(deep, deep, 3)
        self.centre = nn.Conv2d(deep, 1, 1)
        self.sides = nn.Conv2d(deep, 4, 1)
        self.words = nn.Conv2d(deep, deep * 2, 1)
        self.names = nn.Conv2d(deep * 2, len(config.names), 1)
        self.colours = nn.Conv2d(deep * 2, len(config.colours), 1)
        assert self.centre.bias is not None
        # cells with a middle are rare: start from that, or the first steps learn only this
        nn.init.constant_(self.centre.bias, -4.0)

    def forward(self, pictures: Tensor) -> Grid:
        """Look at pictures.

        Args:
            pictures: B x 3 x side x side RGB in [0, 1].
        """
        fine = self.mid(self.stem(pictures * 4 - 2))
        coarse = self.deep(fine)
        up = F.interpolate(coarse, scale_factor=2.0, mode="bilinear", align_corners=False)
        features = self.join(F.relu(self.across(fine) + up))
        words = F.relu(self.words(features))
        return Grid(
            self.centre(features),
            torch.exp(self.sides(features).clamp(-4, 4)) * (2 * STRIDE),
            self.names(words),
            self.colours(words),
        )


def boxes_of(sides: Tensor) -> Tensor:
    """Turn distances B x 4 x h x w into boxes x0, y0, x1, y1, same shape, input pixels."""
    height, width = sides.shape[-2:]
    x, y = (
        (torch.arange(n, device=sides.device, dtype=torch.float32) + 0.5) * STRIDE
        for n in (width, height)
    )
    middle = torch.stack(torch.meshgrid(x, y, indexing="xy"))
    return torch.cat([middle - sides[:, :2], middle + sides[:, 2:]], 1)


def _conv(into: int, out: int, size: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(into, out, size, stride, size // 2, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU(inplace=True),
    )


class _Block(nn.Module):
    """Two convolutions and a way round them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _conv(width, width, 3)
        self.second = nn.Sequential(
            nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(self.first(x)))
