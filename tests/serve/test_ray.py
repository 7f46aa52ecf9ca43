from pathlib import Path

import httpx
import pytest

from zim.errors import ConfigError
from zim.serve import ray_app


def test_a_cluster_needs_a_token():
    with pytest.raises(ConfigError, match="ZIM_SERVE_TOKEN"):
        ray_app.settings_from({})
    settings = ray_app.settings_from({"ZIM_SERVE_TOKEN": "t", "ZIM_SERVE_MODELS": "nano, vit_b"})
    assert settings.models == ("nano", "vit_b")
    assert settings.token == "t"
    assert settings.open_host


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_deployment_answers_as_the_service_does(monkeypatch):
    ray = pytest.importorskip("ray")
    serve = pytest.importorskip(
        "ray.serve",
        reason="Ray Serve is not installed: pip install 'ray[serve]'",
        exc_type=ImportError,
    )
    monkeypatch.setenv("ZIM_SERVE_TOKEN", "t0")
    ray.init(num_cpus=1, include_dashboard=False, object_store_memory=10**8)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": 8765})
        serve.run(ray_app.app, name="zim")
        with httpx.Client(base_url="http://127.0.0.1:8765", timeout=120) as client:
            picture = Path("examples/rabbit.jpg").read_bytes()
            assert client.post("/v1/matte", files={"image": picture}).status_code == 401
            client.headers["authorization"] = "Bearer t0"
            key = client.post("/v1/embeddings", files={"image": picture}).json()["id"]
            body = {"embedding": key, "points": [[520, 300, 1]], "output": "alpha"}
            answer = client.post("/v1/matte", json=body)
            assert answer.headers["content-type"] == "image/png"
    finally:
        serve.shutdown()
        ray.shutdown()
