"""Any inpainting pipeline of diffusers: paints what words say.

What the pipelines do alike, whatever their family: white is repainted, a grey mask is cut at 0.5,
and the mask is scaled to the latent grid by nearest neighbour, where thin structures vanish. So
they get a hard mask that fills whole cells of that grid, and the exact edge is kept in pasting.
"""

from __future__ import annotations

import inspect
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from zim._extras import require
from zim.errors import CheckpointError, ConfigError, ZimError, one_line
from zim.weights.store import cache_only

Offload = Literal["none", "model", "sequential"]

#: what a removal asks for when nobody says anything: the name of the object belongs into the
#: negative prompt, since naming it here would draw it again
REMOVAL_TEXT = "background"


@dataclass(frozen=True)
class Known:
    """A checkpoint with a short name: hub id, size to expect, licence."""

    repo: str
    size: str
    licence: str


#: short names for ``--model-id``; the ids that older tools use are gone from the hub
KNOWN: dict[str, Known] = {
    "sd15": Known(
        "stable-diffusion-v1-5/stable-diffusion-inpainting", "about 4 GB", "CreativeML OpenRAIL-M"
    ),
    "sd2": Known(
        "sd2-community/stable-diffusion-2-inpainting", "about 5 GB", "CreativeML OpenRAIL++-M"
    ),
    "sdxl": Known(
        "diffusers/stable-diffusion-xl-1.0-inpainting-0.1", "about 7 GB", "CreativeML OpenRAIL++-M"
    ),
    "flux-fill": Known(
        "black-forest-labs/FLUX.1-Fill-dev",
        "about 34 GB",
        "FLUX.1 [dev] non-commercial, accepted on the hub first",
    ),
}

#: classes that the automatic dispatch of diffusers does not know as inpainting pipelines
_DIRECT = ("Fill", "Klein", "Kontext", "Chroma", "Inpaint")
#: sizes must be multiples of this, by a word in the name of the pipeline's class
_MULTIPLES = {"Kandinsky": 64, "Flux": 16, "StableDiffusion3": 16, "Qwen": 16, "ZImage": 16}
_MULTIPLES |= {"Chroma": 16}
#: guidance where the usual 7.5 is wrong
_GUIDANCE = {"FluxFill": 30.0, "Flux": 3.5, "StableDiffusion3": 7.0, "Kandinsky": 4.0}


class Diffusion:
    """A diffusers pipeline (see :class:`zim_inpaint.backends.Filler`)."""

    name = "diffusers"
    takes_text = True
    enlarges = True

    def __init__(
        self,
        model: Any = "sd15",
        *,
        device: str = "auto",
        dtype: str = "auto",
        steps: int | None = None,
        guidance: float | None = None,
        strength: float | None = None,
        offload: Offload = "none",
        offline: bool = False,
    ) -> None:
        """Load a pipeline.

        Args:
            model: a name of :data:`KNOWN`, a hub id, a folder, or a pipeline that is loaded.
            device: as for :func:`zim.load`.
            dtype: ``auto`` is float16 on CUDA (bfloat16 for transformers) and float32 elsewhere.
            steps: of denoising; the pipeline's own default if None.
            guidance: how closely words are followed; by family if None.
            strength: share of the steps that is run; all of them if None.
            offload: keep parts in main memory: ``none``, ``model`` or ``sequential``; CUDA only.
            offline: use what is in the local cache only.

        Raises:
            CheckpointError: the pipeline is not there and cannot be fetched, or cannot inpaint.
            ConfigError: device, dtype or offloading cannot be used.
        """
        self._steps, self._guidance, self._strength = steps, guidance, strength
        if isinstance(model, str | Path):
            self._pipe = _load(str(model), device, dtype, offload, offline or cache_only())
        else:
            self._pipe = model
        self._pipe.set_progress_bar_config(disable=True)
        self._accepts = set(inspect.signature(self._pipe.__call__).parameters)
        kind = type(self._pipe).__name__
        if "mask_image" not in self._accepts:
            raise CheckpointError(f"{model} is a {kind}, which cannot inpaint; use another model")
        self.multiple = _by_family(_MULTIPLES, kind, 8)
        self.side = _native_side(self._pipe, self.multiple)

    def fill(
        self,
        image: NDArray[np.uint8],
        mask: NDArray[np.uint8],
        *,
        seed: int = 0,
        text: str | None = None,
        negative: str | None = None,
    ) -> NDArray[np.uint8]:
        """Paint what ``text`` says into the hole; sizes must be multiples of ``multiple``."""
        import torch
        from PIL import Image

        height, width = mask.shape
        kind = type(self._pipe).__name__
        wanted: dict[str, Any] = {
            "prompt": text or REMOVAL_TEXT,
            "negative_prompt": negative,
            "image": Image.fromarray(image),
            "mask_image": Image.fromarray(whole_cells(mask, self.multiple)),
            "height": height,
            "width": width,
            "num_inference_steps": self._steps,
            "guidance_scale": self._guidance or _by_family(_GUIDANCE, kind, 7.5),
            # the XL pipeline takes 1.0 for "no picture at all" and then ignores what is kept
            "strength": self._strength or (0.9999 if "XL" in kind else 1.0),
            # drawn on the CPU, so that a seed means the same on every device
            "generator": torch.Generator("cpu").manual_seed(seed),
        }
        given = {k: v for k, v in wanted.items() if k in self._accepts and v is not None}
        answer = self._pipe(**given)
        if any(getattr(answer, "nsfw_content_detected", None) or ()):
            raise ZimError(
                "the pipeline's safety checker blacked out its picture; try another seed or text"
            )
        picture = answer.images[0].convert("RGB")
        if picture.size != (width, height):
            picture = picture.resize((width, height), Image.Resampling.LANCZOS)
        return np.array(picture, dtype=np.uint8)


def whole_cells(mask: NDArray[np.uint8], cell: int) -> NDArray[np.uint8]:
    """Let a hole fill every cell of the latent grid that it touches; H x W uint8, 0 or 255."""
    height, width = mask.shape
    padded = np.pad(mask, ((0, -height % cell), (0, -width % cell)))
    cells = padded.reshape(padded.shape[0] // cell, cell, padded.shape[1] // cell, cell)
    touched = cells.max(axis=(1, 3))
    size = (padded.shape[1], padded.shape[0])
    wide = cv2.resize(touched, size, interpolation=cv2.INTER_NEAREST)
    return np.ascontiguousarray(wide[:height, :width], dtype=np.uint8)


def _by_family(table: dict[str, Any], kind: str, otherwise: Any) -> Any:
    return next((value for word, value in table.items() if kind.startswith(word)), otherwise)


def _native_side(pipe: Any, multiple: int) -> int:
    """Return the side a pipeline was trained at, from its configuration where it says so."""
    size = getattr(getattr(getattr(pipe, "unet", None), "config", None), "sample_size", None)
    side = size * int(getattr(pipe, "vae_scale_factor", 8)) if isinstance(size, int) else 1024
    return max(multiple, side // multiple * multiple)


def _load(name: str, device: str, dtype: str, offload: Offload, offline: bool) -> Any:
    diffusers = require("diffusers", "inpaint")
    import torch

    from zim.api import choose_device, choose_dtype

    where = choose_device(device)
    if offload != "none" and where.type != "cuda":
        raise ConfigError(f"offload {offload!r} needs a CUDA device; this is {where}")
    known = KNOWN.get(name)
    source = known.repo if known else name
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one package about a flag of another
            kind = _class_name(diffusers, source, offline)
        if dtype != "auto":
            number = choose_dtype(dtype, where)
        elif where.type != "cuda":
            number = torch.float32
        else:
            number = torch.float16 if kind.startswith("StableDiffusion") else torch.bfloat16
        direct = any(word in kind for word in _DIRECT)
        loader = diffusers.DiffusionPipeline if direct else diffusers.AutoPipelineForInpainting
        with warnings.catch_warnings():
            # about files and packages that are not needed here
            warnings.simplefilter("ignore")
            pipe = loader.from_pretrained(source, torch_dtype=number, local_files_only=offline)
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, ZimError):
            raise
        why = "downloads are off" if offline else one_line(error, 160).rstrip(".")
        about = f" ({known.size}, {known.licence})" if known else ""
        raise CheckpointError(
            f"{source}{about} is not here and could not be fetched ({why}); download it from "
            "the hub with `hf download`, or give the folder of an inpainting pipeline, "
            f"or one of {', '.join(KNOWN)}"
        ) from error
    if offload == "model":
        pipe.enable_model_cpu_offload(device=where)
    elif offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=where)
    else:
        pipe.to(where)
    return pipe


def _class_name(diffusers: Any, source: str, offline: bool) -> str:
    """Return the class a pipeline was saved as."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        index = folder / "model_index.json"
        if not index.is_file():
            raise CheckpointError(f"{folder} holds no model_index.json; expected a saved pipeline")
        try:
            config = json.loads(index.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CheckpointError(f"{index} is damaged ({one_line(error)})") from error
        if not isinstance(config, dict):
            raise CheckpointError(f"{index} is damaged; expected one JSON object")
    else:
        config = diffusers.DiffusionPipeline.load_config(source, local_files_only=offline)
    return str(config.get("_class_name", ""))
