"""Model configurations: frozen dataclasses and the presets built from them (no torch here).

Numbers of the ViT presets are SAM's (``build_sam.py``); those of the matting parts follow the ZIM
paper, section 3.2, and the shapes of the official ONNX release. A checkpoint stores the
configuration that built it, so a model is always rebuilt exactly.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from zim.errors import ConfigError

AttnMaskMode = Literal["paper", "log_bias", "none"]
AttnMaskSide = Literal["t2i", "i2t", "both"]
PixelDecoderKind = Literal["hierarchical", "sam"]


@dataclass(frozen=True)
class ViTConfig:
    """SAM's plain ViT with windowed attention (Li et al., ViTDet; SAM ``image_encoder.py``)."""

    embed_dim: int = 768
    depth: int = 12
    heads: int = 12
    global_blocks: tuple[int, ...] = (2, 5, 8, 11)
    window: int = 14
    mlp_ratio: float = 4.0
    patch: int = 16
    kind: Literal["vit"] = "vit"


@dataclass(frozen=True)
class ConvEncoderConfig:
    """Small hybrid encoder that continues from the pixel decoder's stride-8 stem.

    Residual 3x3 convolutions at strides 8 and 16, then a few global transformer blocks at stride
    16. Dense 3x3 convolutions only: they are the fastest per parameter on CPUs.
    """

    width8: int = 128
    width16: int = 256
    blocks8: int = 2
    blocks16: int = 3
    attn_blocks: int = 2
    heads: int = 4
    kind: Literal["conv"] = "conv"


@dataclass(frozen=True)
class DecoderConfig:
    """Two-way transformer and mask heads (SAM ``mask_decoder.py``), ZIM's pixel decoder on top."""

    dim: int = 256
    depth: int = 2
    heads: int = 8
    mlp_dim: int = 2048
    mask_tokens: int = 4
    iou_hidden: int = 256
    iou_depth: int = 3
    #: channels of the conv stem at strides 2, 4, 8 (the official ``feat_D0/1/2``)
    stem: tuple[int, int, int] = (64, 128, 256)
    #: channels after fusion at strides 8, 4, 2; the last one is the hypernetworks' width
    fusion: tuple[int, int, int] = (128, 64, 32)
    norm: Literal["bn", "gn"] = "bn"
    #: "sam" keeps SAM's two transposed convolutions at stride 4 (ablation, Table 4a)
    pixel_decoder: PixelDecoderKind = "hierarchical"


@dataclass(frozen=True)
class MaskedAttentionConfig:
    """Prompt-aware masked attention (paper Eq. 4 and 5; ablations of Tables 4b and 8a)."""

    mode: AttnMaskMode = "paper"
    side: AttnMaskSide = "t2i"
    #: whether the final token-to-image attention is masked too (not stated in the paper)
    final: bool = True
    #: standard deviation of the point Gaussian, in cells of a 64 x 64 grid (Table 8a)
    sigma: float = 21.0
    #: the official predictor also raises attention around negative points; off here
    negative_points: bool = False


@dataclass(frozen=True)
class ZimConfig:
    """Everything needed to build a model."""

    name: str
    encoder: ViTConfig | ConvEncoderConfig
    image_size: int = 1024
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    attention: MaskedAttentionConfig = field(default_factory=MaskedAttentionConfig)
    #: extra planes computed from image and prompt by ``zim.cues``, given to the decoder: 6 or 7;
    #: 0 = none
    cue_planes: int = 0
    #: residual convolutions at stride 16 that mix the embedding with the dense prompt
    prompt_blocks: int = 0
    #: the predictor looks again at a crop this many times the object's box; 0 = one look
    framing: float = 0.0
    #: single answers of a lower predicted quality are tempered with that to the mirrored view; 0 =
    #: never (:mod:`zim.second_opinion`)
    mirror_below: float = 0.0
    #: the first look at a lone click goes without GrabCut's cue planes; for networks that were
    #: trained with some of them blank
    quick_click: bool = False
    #: factor of the logits of mattes with a high predicted quality; 1 = as they come
    #: (:mod:`zim.sureness`)
    sharpen: float = 1.0
    #: what answers a lone click in one shot: the alternative with the best predicted score, or the
    #: first token, for models whose scores do not yet rank the alternatives
    lone_click: Literal["best", "first"] = "best"
    #: how mattes are enlarged to the picture: the paper's plain way, or along the picture's edges
    edges: Literal["bilinear", "guided"] = "bilinear"
    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    pixel_std: tuple[float, float, float] = (58.395, 57.12, 57.375)

    def __post_init__(self) -> None:
        """Refuse sizes the network cannot take."""
        if self.image_size < 32 or self.image_size % 16:
            raise ConfigError(
                f"image_size {self.image_size} is not a multiple of 16 of at least 32; "
                "use for example 512 or 1024"
            )
        if self.decoder.dim % self.decoder.heads:
            raise ConfigError(
                f"decoder dim {self.decoder.dim} is not divisible by {self.decoder.heads} heads"
            )
        for name, least, most, example in (("mirror_below", 0, 1e9, 0.8), ("sharpen", 1, 10, 1.5)):
            number: Any = getattr(self, name)
            if not isinstance(number, int | float) or not least <= number <= most:
                raise ConfigError(
                    f"{name} {number!r} is not a number from {least} to {most:g}; "
                    f"use for example {example}"
                )
        allowed = (
            ("cue_planes", self.cue_planes, (0, 6, 7)),
            ("edges", self.edges, ("bilinear", "guided")),
            ("lone_click", self.lone_click, ("best", "first")),
            ("decoder.norm", self.decoder.norm, ("bn", "gn")),
            ("decoder.pixel_decoder", self.decoder.pixel_decoder, ("hierarchical", "sam")),
            ("attention.mode", self.attention.mode, ("paper", "log_bias", "none")),
            ("attention.side", self.attention.side, ("t2i", "i2t", "both")),
        )
        for name, value, values in allowed:
            if value not in values:
                raise ConfigError(
                    f"{name} {value!r} is unknown; expected {' or '.join(map(str, values))}"
                )
        if self.cue_planes and self.decoder.pixel_decoder != "hierarchical":
            raise ConfigError("cue planes need the hierarchical pixel decoder; set cue_planes=0")

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for ``config.json``."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ZimConfig:
        """Build a configuration from ``config.json`` data; unknown keys raise ConfigError."""
        try:
            values = dict(data)
            encoder = dict(values.pop("encoder"))
            kinds = {"vit": ViTConfig, "conv": ConvEncoderConfig}
            kind = encoder.get("kind", "vit")
            if kind not in kinds:
                raise ConfigError(f"encoder kind {kind!r} is unknown; expected 'vit' or 'conv'")
            values["encoder"] = kinds[kind](**_tuples(encoder))
            values["decoder"] = DecoderConfig(**_tuples(values.get("decoder", {})))
            values["attention"] = MaskedAttentionConfig(**values.get("attention", {}))
            return cls(**_tuples(values))
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"not a model configuration: {error}") from error


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(cast("list[Any]", v)) if isinstance(v, list) else v for k, v in values.items()}


_SMALL_DECODER = DecoderConfig(
    dim=128, heads=4, mlp_dim=512, iou_hidden=128, stem=(24, 64, 128), fusion=(64, 32, 16)
)

#: what the predictor makes of a network's answers; the weights of a network do not depend on it
PREDICTOR_FIELDS = ("framing", "mirror_below", "quick_click", "sharpen", "edges", "lone_click")

PRESETS: dict[str, ZimConfig] = {
    "vit_b": ZimConfig("vit_b", ViTConfig()),
    "vit_l": ZimConfig(
        "vit_l", ViTConfig(embed_dim=1024, depth=24, heads=16, global_blocks=(5, 11, 17, 23))
    ),
    "vit_h": ZimConfig(
        "vit_h", ViTConfig(embed_dim=1280, depth=32, heads=16, global_blocks=(7, 15, 23, 31))
    ),
    "nano": ZimConfig(
        "nano",
        ConvEncoderConfig(blocks16=4, attn_blocks=3),
        image_size=256,
        decoder=_SMALL_DECODER,
        cue_planes=7,
        prompt_blocks=4,
        framing=1.2,
        mirror_below=0.75,
        quick_click=True,
        sharpen=1.5,
        lone_click="first",  # dev scenes, MSE: 52 against 59 for the best-scored alternative
        edges="guided",
    ),
    "tiny": ZimConfig(
        "tiny",
        ViTConfig(embed_dim=32, depth=2, heads=2, global_blocks=(1,), window=3),
        image_size=64,
        decoder=DecoderConfig(
            dim=32,
            heads=2,
            mlp_dim=64,
            iou_hidden=16,
            stem=(8, 8, 16),
            fusion=(16, 8, 8),
        ),
    ),
}


def get_config(config: str | ZimConfig) -> ZimConfig:
    """Return a preset by name, or the configuration itself.

    Raises:
        ConfigError: the name is no preset.
    """
    if isinstance(config, ZimConfig):
        return config
    if config not in PRESETS:
        raise ConfigError(f"unknown configuration {config!r}; expected one of {', '.join(PRESETS)}")
    return PRESETS[config]
