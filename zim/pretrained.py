"""The network with its files: ``Zim.from_pretrained`` and ``save_pretrained``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zim.model.matting import ZimNetwork


class Zim(ZimNetwork):
    """Promptable matting network that knows how to load and save itself."""

    @classmethod
    def from_pretrained(cls, source: str | Path, **hub: Any) -> Zim:
        """Load a checkpoint folder, file or Hugging Face id.

        Args:
            source: a folder with ``config.json`` and ``model.safetensors``, such a ``.safetensors``
                file with its ``.json`` beside it, or a hub id like ``someone/zim-vit-b``.
            **hub: passed on to ``huggingface_hub`` (``revision``, ``token``, ...).

        Returns:
            The model in evaluation mode, float32, on the CPU.

        Raises:
            CheckpointError: nothing usable is there, or the weights do not fit the configuration.
            DownloadError: the hub cannot be reached or the network is forbidden.
        """
        from zim.weights.store import load_pretrained

        return load_pretrained(source, cls, **hub)

    def save_pretrained(self, folder: str | Path, *, half: bool = False) -> Path:
        """Write ``config.json`` and ``model.safetensors`` into a folder.

        A model that computes in bfloat16 (``dtype="auto"`` on many devices) has rounded weights;
        they are saved with a warning. Load with ``dtype="float32"`` to save what was loaded.

        Args:
            folder: created if needed; existing files are replaced in one step each.
            half: store floating-point weights in float16 (half the size).

        Returns:
            The folder.

        Raises:
            OutputError: the folder cannot be written.
        """
        from zim.weights.store import save_pretrained

        return save_pretrained(self, folder, half=half)
