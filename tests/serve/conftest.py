"""A small service: random weights, and tabs whose answers are known."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from zim.protocols import Detection, TabField, TabRequest, TabResult
from zim.serve.app import create_app
from zim.serve.settings import Settings
from zim.testing import picture, tiny_model


class Invert:
    """Inverts the object's pixels; boxes the left half where it is asked to."""

    title, endpoint, summary = "Invert", "invert", "Invert the object."
    needs_matte = True
    fields = (TabField("strength", "Strength", "number", 1.0, low=0.0, high=1.0),)

    def ready(self) -> None:
        """Needs nothing."""

    def run(self, request: TabRequest) -> TabResult:
        assert request.alpha is not None
        mix = request.alpha[..., None] * request.values["strength"]
        image = (1 - mix) * request.image + mix * (255 - request.image)
        return TabResult(image=(image + 0.5).astype(np.uint8), notes=("done",))


class LeftHalf(Invert):
    endpoint, needs_matte, fields = "left", False, (TabField("text", "Words"),)

    def run(self, request: TabRequest) -> TabResult:
        height, width = request.image.shape[:2]
        return TabResult(detections=[Detection((0, 0, width / 2, height), "left", 0.5)])


@pytest.fixture(scope="session")
def model():
    return tiny_model()


@pytest.fixture(scope="session")
def rgb() -> np.ndarray:
    return picture(48, 64)


@pytest.fixture(scope="session")
def png(rgb: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def client(model) -> Iterator[TestClient]:
    settings = Settings(models=("tiny", "gone"), max_bytes=200_000, max_pixels=100_000)
    tabs = {"invert": Invert(), "left": LeftHalf()}
    app = create_app(settings, models={"tiny": model}, tabs=tabs)
    with TestClient(app, base_url="http://127.0.0.1:7860", raise_server_exceptions=False) as made:
        yield made
