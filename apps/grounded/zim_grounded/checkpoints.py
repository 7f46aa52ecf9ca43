"""The detectors that words can go to, and where their weights are looked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from zim.errors import CheckpointError
from zim.weights.registry import zim_home
from zim.weights.store import cache_only, offline

#: what is fetched of a hub repository: no pickles
_FILES = ["*.json", "*.txt", "model*.safetensors"]


@dataclass(frozen=True)
class DetectorWeights:
    """Published weights of a detector.

    Attributes:
        name: what ``--detector`` takes.
        hub: Hugging Face id.
        megabytes: of the download, about: parameters in float32.
        licence: of the weights, as their page states it.
        box: score from which a candidate is a detection, unless told otherwise.
    """

    name: str
    hub: str
    megabytes: int
    licence: str
    box: float = 0.3

    def folder(self) -> Path:
        """Return where it may be put by hand."""
        return zim_home() / "detectors" / self.name


WEIGHTS = {
    row.name: row
    for row in (
        DetectorWeights("gdino-tiny", "IDEA-Research/grounding-dino-tiny", 690, "Apache-2.0"),
        DetectorWeights("gdino-base", "IDEA-Research/grounding-dino-base", 930, "Apache-2.0"),
        DetectorWeights(
            "mm-gdino-tiny",
            "openmmlab-community/mm_grounding_dino_tiny_o365v1_goldg_v3det",
            690,
            "Apache-2.0",
        ),
        DetectorWeights(
            "owlv2-base", "google/owlv2-base-patch16-ensemble", 620, "Apache-2.0", box=0.1
        ),
    )
}


def find_weights(name: str) -> Path:
    """Return the folder with a detector's configuration, tokenizer and weights.

    Looked for in this order: the name is a folder, ``ZIM_HOME/detectors/NAME``, the local cache of
    the hub, the hub (unless ``ZIM_OFFLINE`` is set).

    Args:
        name: of :data:`WEIGHTS` or of a folder there, a folder, or a hub id.

    Raises:
        CheckpointError: it is nowhere; the message says what to fetch and where to put it.
    """
    if (Path(name).expanduser() / "config.json").is_file():
        return Path(name).expanduser()
    row = WEIGHTS.get(name)
    if row is None and name.count("/") == 1:
        row = DetectorWeights(name.split("/")[1], name, 0, "see its page")
    by_hand = zim_home() / "detectors" / name if row is None else row.folder()
    if (by_hand / "config.json").is_file():
        return by_hand
    if row is None:
        known = ", ".join((*WEIGHTS, "mini", "groundingdino-py", "boxes"))
        raise CheckpointError(
            f"unknown detector {name!r}; expected one of {known}, a folder with config.json, "
            "or a hub id"
        )
    return _from_hub(row)


def _from_hub(row: DetectorWeights) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    tries = (True,) if cache_only() else (True, False)
    for local in tries:
        try:
            got = Path(snapshot_download(row.hub, allow_patterns=_FILES, local_files_only=local))
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError):
            continue
        if (got / "config.json").is_file() and any(got.glob("model*.safetensors")):
            return got
    size = f"about {row.megabytes} MB, " if row.megabytes else ""
    reason = "ZIM_OFFLINE is set" if offline() else "the hub cannot be reached or has no such model"
    raise CheckpointError(
        f"detector {row.name}: no weights here, and {reason}; get {row.hub} ({size}licence "
        f"{row.licence}) with `hf download {row.hub} --local-dir {row.folder()}` on a machine with "
        f"a network and put the folder there, or give boxes: --detector boxes --boxes FILE"
    )
