"""The tab ``Words`` of ``zim serve``: phrases become boxes, which the service turns into mattes."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from zim.errors import PromptError
from zim.protocols import TabField, TabRequest, TabResult

if TYPE_CHECKING:
    from zim.protocols import Detector


@functools.lru_cache(maxsize=1)
def _detector(name: str, device: str) -> Detector:
    from zim_grounded.detectors import load_detector

    return load_detector(name, device)


class WordsTab:
    """Finds what words name."""

    title = "Words"
    endpoint = "grounded"
    summary = "Select objects by naming them."
    needs_matte = False
    fields = (
        TabField("text", "What to select", "text", "", hint="the dog, a red cup"),
        TabField(
            "detector",
            "Detector",
            "choice",
            "mini",
            ("mini", "gdino-tiny", "gdino-base", "mm-gdino-tiny", "owlv2-base"),
        ),
    )

    def ready(self) -> None:
        """Import what the work needs."""
        from zim_grounded.detectors import load_detector  # noqa: F401

    def run(self, request: TabRequest) -> TabResult:
        """Return the boxes of every phrase; commas part phrases."""
        phrases = [part.strip() for part in str(request.values["text"]).split(",") if part.strip()]
        if not phrases:
            raise PromptError("no words were given; name what to select, for example: the dog")
        detector = _detector(request.values["detector"], request.device)
        found = detector.detect(request.image, phrases)[:32]
        notes = () if found else (f"nothing was found for {', '.join(phrases)}",)
        return TabResult(detections=found, notes=notes)


TAB = WordsTab()
