"""The same service as a Ray Serve deployment, for those who outgrow one machine.

    serve run zim.serve.ray_app:app

Each replica holds its own model and its own cache; what a replica answers is what ``zim serve``
answers. An embedding's id is known to the replica that made it, so a client that meets another one
gets a 404 and sends the picture again, as the page does. Settings come from the environment:
``ZIM_SERVE_MODELS`` (names, comma-separated), ``ZIM_SERVE_TOKEN``, ``ZIM_SERVE_REPLICAS``,
``ZIM_SERVE_GPUS`` (per replica).
"""

from __future__ import annotations

import os
from typing import Any

from zim._extras import require
from zim.errors import ConfigError
from zim.serve.settings import Settings


def settings_from(environment: Any = os.environ) -> Settings:
    """Return a replica's settings; a cluster's proxy has any host name, so a token is needed.

    Raises:
        ConfigError: there is no token.
    """
    token = environment.get("ZIM_SERVE_TOKEN")
    if not token:
        raise ConfigError("ZIM_SERVE_TOKEN is not set; a cluster's service needs a token")
    names = [name.strip() for name in environment.get("ZIM_SERVE_MODELS", "nano").split(",")]
    return Settings(models=tuple(filter(None, names)), token=token, open_host=True)


def deployment(settings: Settings, replicas: int = 1, gpus: float = 0) -> Any:
    """Return a bound Ray Serve application.

    Args:
        settings: of every replica.
        replicas: how many.
        gpus: for each.

    Raises:
        MissingExtraError: Ray Serve is not installed.
    """
    serve = require("ray.serve", "ray")

    def build() -> Any:
        from zim.serve.app import create_app

        return create_app(settings)

    @serve.deployment(
        name="zim",
        num_replicas=replicas,
        max_ongoing_requests=4 * settings.queue,
        ray_actor_options={"num_gpus": gpus},
    )
    @serve.ingress(build)
    class Matting:
        """One replica: the whole application, workers and cache included."""

    return Matting.bind()  # pyright: ignore[reportAttributeAccessIssue]


def __getattr__(name: str) -> Any:
    """Make ``app`` when Ray asks for it, not when this module is imported."""
    if name == "app":
        count = int(os.environ.get("ZIM_SERVE_REPLICAS", "1"))
        return deployment(settings_from(), count, float(os.environ.get("ZIM_SERVE_GPUS", "0")))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
