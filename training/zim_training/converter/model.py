"""The converter's network: MGMatting's progressive refinement on a Hiera trunk.

Written from the papers' description. The label is a fourth input channel, so every mask is a
pass of its own. Heads at strides 8, 4 and 1; finer answers count only where the coarser one is
undecided.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

from zim._extras import require
from zim.errors import CheckpointError, ConfigError, reason
from zim.output import atomic_write
from zim_training.converter.config import TRUNKS, TrunkConfig

_MEAN, _STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
#: diameters, in pixels at full size, by which the undecided band of a coarser answer is widened
BAND = (15, 7)


@dataclass(frozen=True)
class ConverterOutput:
    """Logits ``b 1 h w`` float32 of the heads at strides 8, 4 and 1, all at full size."""

    os8: Tensor
    os4: Tensor
    os1: Tensor

    def bands(self, widths: tuple[int, int] = BAND) -> tuple[Tensor, Tensor]:
        """Return where the stride-4 and the stride-1 answer count, ``b 1 h w`` bool."""
        first = undecided(self.os8.sigmoid(), widths[0])
        alpha = torch.where(first, self.os4.sigmoid(), self.os8.sigmoid())
        return first, undecided(alpha, widths[1])

    def alpha(self, widths: tuple[int, int] = BAND) -> Tensor:
        """Fuse the three answers, ``b 1 h w`` in [0, 1]."""
        first, second = self.bands(widths)
        alpha = torch.where(first, self.os4.sigmoid(), self.os8.sigmoid())
        return torch.where(second, self.os1.sigmoid(), alpha)


def undecided(alpha: Tensor, width: int) -> Tensor:
    """Where a matte is neither 0 nor 1 (in 8 bits), widened to a disc-like band of a diameter."""
    band = ((alpha >= 1 / 255) & (alpha <= 254 / 255)).float()
    return F.max_pool2d(band, 2 * (width // 2) + 1, 1, width // 2) > 0


class Converter(nn.Module):
    """Picture and label to a matte."""

    mean: Tensor
    std: Tensor

    def __init__(self, trunk: str | TrunkConfig) -> None:
        """Build with random weights; ``trunk`` names one of ``TRUNKS``.

        Raises:
            ConfigError: no such trunk.
        """
        super().__init__()
        if isinstance(trunk, str) and trunk not in TRUNKS:
            raise ConfigError(f"unknown trunk {trunk!r}; expected one of {', '.join(TRUNKS)}")
        self.config = config = TRUNKS[trunk] if isinstance(trunk, str) else trunk
        self.trunk = _trunk(config)
        c32, c16, c8, c4, c2, c1 = config.decoder
        wide = [config.embed * 2**k for k in (3, 2, 1, 0)]
        self.context = _Context(wide[0], c32)
        self.shortcuts = nn.ModuleList(
            [_shortcut(w, c) for w, c in zip(wide[1:], (c16, c8, c4), strict=True)]
        )
        # Hiera starts at stride 4; what it never saw comes from two convolutions on the input
        self.stride2 = nn.Sequential(_conv(4, c2, 2), _norm(c2), nn.ReLU(), _conv(c2, c2))
        self.stride1 = nn.Sequential(_conv(4, c1), _norm(c1), nn.ReLU(), _conv(c1, c1))
        widths = (c32, c16, c8, c4, c2, c1)
        self.ups = nn.ModuleList([_Up(a, b) for a, b in itertools.pairwise(widths)])
        self.heads = nn.ModuleList([_head(c) for c in (c8, c4, c1)])
        self.register_buffer("mean", torch.tensor(_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(3, 1, 1), persistent=False)

    def forward(self, image: Tensor, label: Tensor) -> ConverterOutput:
        """Convert.

        Args:
            image: ``b 3 h w`` RGB in 0..255, sides multiples of 32.
            label: ``b 1 h w``, 0 or 1.
        """
        x = torch.cat([(image.float() - self.mean) / self.std, label.float()], 1)
        stages = self.trunk(x).intermediate_hidden_states
        f4, f8, f16, f32 = (s.permute(0, 3, 1, 2) for s in stages)
        skips = [s(f) for s, f in zip(self.shortcuts, (f16, f8, f4), strict=True)]
        skips += [self.stride2(x), self.stride1(x)]
        y, answers = self.context(f32), []
        # small networks start from the softened label instead of learning to copy it
        start = self.config.start * (2 * F.avg_pool2d(x[:, 3:], 7, 1, 3, False, False) - 1)
        for k, (up, skip) in enumerate(zip(self.ups, skips, strict=True)):
            y = up(y, skip)
            if k in (1, 2, 4):
                logits = self.heads[len(answers)](y).float()
                full = F.interpolate(logits, x.shape[-2:], mode="bilinear", align_corners=False)
                answers.append(full + start if self.config.start else full)
        return ConverterOutput(*answers)

    def save_pretrained(self, folder: Path) -> Path:
        """Write ``converter.json`` and ``converter.safetensors`` into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        state = {k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}
        atomic_write(folder / "converter.safetensors", save(state, metadata={"format": "pt"}))
        text = json.dumps(dataclasses.asdict(self.config), indent=1) + "\n"
        atomic_write(folder / "converter.json", text.encode())
        return folder

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Converter:
        """Load from a folder of ``save_pretrained``, or from a run folder, in evaluation mode.

        Raises:
            CheckpointError: nothing usable is there.
        """
        given = folder = Path(folder)
        if not given.exists():
            raise CheckpointError(f"{given} does not exist; train one with zim-train converter")
        if not (folder / "converter.json").is_file():
            folder = folder / "export"
        try:
            data: dict[str, Any] = json.loads((folder / "converter.json").read_text())
            shape: dict[str, Any] = {
                k: tuple(v) if isinstance(v, list) else v for k, v in data.items()
            }
            config = TrunkConfig(**shape)
            model = cls(config)
            model.load_state_dict(load_file(folder / "converter.safetensors"))
        except ConfigError:
            raise
        except Exception as error:
            files = (folder / "converter.json", folder / "converter.safetensors")
            missing = next((f"{file.name} is missing" for file in files if not file.is_file()), "")
            raise CheckpointError(
                f"{given} holds no usable converter ({missing or reason(error)}); expected "
                "converter.json and converter.safetensors, as zim-train converter writes them"
            ) from error
        return model.eval()

    def load_trunk(self, source: str | Path) -> int:
        """Start the trunk from SAM 2.1's weights; the label's channel starts at zero.

        Args:
            source: a hub id or folder of a transformers ``Sam2Model``.

        Returns:
            The number of tensors taken.

        Raises:
            CheckpointError: not there, the network is forbidden, or it does not fit.
        """
        transformers = require("transformers", "train")
        from zim.weights.store import cache_only

        try:
            sam2 = transformers.Sam2Model.from_pretrained(source, local_files_only=cache_only())
        except Exception as error:
            raise CheckpointError(
                f"{source}: SAM 2.1's weights cannot be read ({type(error).__name__}); give a "
                "folder with --init, or train from random weights with --init none"
            ) from error
        state = sam2.vision_encoder.backbone.state_dict()
        key = "patch_embed.projection.weight"
        label = torch.zeros_like(state[key][:, :1])
        state[key] = torch.cat([state[key], label], 1)
        try:
            self.trunk.load_state_dict(state)
        except RuntimeError as error:
            raise CheckpointError(f"{source}: another trunk than {self.config.hub}") from error
        return len(state)


def _trunk(config: TrunkConfig) -> Any:
    transformers = require("transformers", "train")
    widths = [config.embed * 2**k for k in range(4)]
    return transformers.Sam2HieraDetModel(
        transformers.Sam2HieraDetConfig(
            hidden_size=config.embed,
            num_attention_heads=config.heads,
            num_channels=4,
            blocks_per_stage=list(config.blocks),
            embed_dim_per_stage=widths,
            num_attention_heads_per_stage=[config.heads * 2**k for k in range(4)],
            window_size_per_stage=list(config.windows),
            global_attention_blocks=list(config.global_blocks),
            window_positional_embedding_background_size=list(config.background),
        )
    )


def _conv(a: int, b: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(a, b, 3, stride, 1)


def _norm(width: int) -> nn.GroupNorm:
    """Batch norm in MGMatting; groups, because few samples fit on one GPU at 1024."""
    return nn.GroupNorm(max(g for g in (32, 16, 8, 4, 2, 1) if width % g == 0 and width > g), width)


def _shortcut(a: int, b: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(a, b, 1), nn.ReLU(), _norm(b), _conv(b, b), nn.ReLU(), _norm(b))


def _head(width: int) -> nn.Sequential:
    return nn.Sequential(_conv(width, 32), _norm(32), nn.LeakyReLU(0.2), _conv(32, 1))


class _Context(nn.Module):
    """ASPP: 1 x 1, three dilations and the global mean, side by side."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        part = b // 2
        self.plain = nn.Conv2d(a, part, 1)
        self.wide = nn.ModuleList([nn.Conv2d(a, part, 3, padding=d, dilation=d) for d in (2, 4, 8)])
        self.mean = nn.Conv2d(a, part, 1)
        self.out = nn.Sequential(nn.Conv2d(5 * part, b, 1), _norm(b), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        mean = self.mean(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[-2:])
        return self.out(torch.cat([self.plain(x), *[c(x) for c in self.wide], mean], 1).relu())


class _Up(nn.Module):
    """Double the size, add the shortcut, one residual block."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(a, b, 4, 2, 1)
        self.block = nn.Sequential(
            _norm(b), nn.LeakyReLU(0.2), _conv(b, b), _norm(b), nn.LeakyReLU(0.2), _conv(b, b)
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.up(x) + skip
        return x + self.block(x)
