import base64
import io
import json

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

import zim
from zim.errors import ConfigError
from zim.predictor import ZimPredictor
from zim.serve.app import create_app
from zim.serve.settings import Settings


def decoded(url: str) -> np.ndarray:
    kind, _, text = url.partition(",")
    assert kind == "data:image/png;base64"
    return np.array(Image.open(io.BytesIO(base64.b64decode(text))))


def expected(model, rgb, **prompt) -> np.ndarray:
    predictor = ZimPredictor(model)
    predictor.set_image(rgb)
    return predictor.predict(**prompt)[0]


def close(got: np.ndarray, alpha: np.ndarray, top: int = 255) -> bool:
    return bool(np.abs(got.astype(float) - alpha * top).max() <= 0.51 + top * 2e-5)


def test_json_and_multipart_give_the_predictors_alpha(client, model, rgb, png):
    points = [[20.0, 25.0, 1], [60.0, 5.0, 0]]
    truth = expected(
        model,
        rgb,
        point_coords=np.array(points)[:, :2],
        point_labels=np.array([1, 0]),
        multimask_output=False,
    )[0]
    as_json = client.post(
        "/v1/matte", json={"image": base64.b64encode(png).decode(), "points": points}
    ).json()
    as_form = client.post(
        "/v1/matte", data={"points": json.dumps(points)}, files={"image": ("../../etc/x", png)}
    ).json()
    for answer in (as_json, as_form):
        assert (answer["width"], answer["height"]) == (64, 48)
        (one,) = answer["objects"][0]["candidates"]
        assert close(decoded(one["alpha"]), truth)


def test_embedding_is_used_again(client, png):
    first = client.post("/v1/embeddings", files={"image": png}).json()
    again = client.post("/v1/embeddings", files={"image": png}).json()
    assert first["id"] == again["id"]
    assert (first["cached"], again["cached"]) == (False, True)
    answer = client.post("/v1/matte", json={"embedding": first["id"], "box": [5, 5, 40, 40]})
    assert answer.status_code == 200
    assert answer.json()["embedding"] == first["id"]


def test_candidates_are_the_three_alternatives(client, model, rgb, png):
    truth = expected(model, rgb, point_coords=np.array([[20, 25]]), point_labels=np.array([1]))
    body = {"image": base64.b64encode(png).decode(), "points": [[20, 25]], "candidates": 3}
    rows = client.post("/v1/matte", json=body).json()["objects"][0]["candidates"]
    assert [row["candidate"] for row in rows] == [1, 2, 3]
    assert all(close(decoded(row["alpha"]), t) for row, t in zip(rows, truth, strict=True))


def test_files_hold_what_json_shows(client, png):
    key = client.post("/v1/embeddings", files={"image": png}).json()["id"]
    ask = {"embedding": key, "objects": [{"points": [[20, 25]]}, {"box": [30, 5, 60, 40]}]}
    shown = client.post("/v1/matte", json=ask).json()["objects"]
    together = np.maximum(*(decoded(one["candidates"][0]["alpha"]) for one in shown))
    rgba = client.post("/v1/matte", json=ask | {"output": "rgba"})
    assert rgba.headers["content-type"] == "image/png"
    picture = np.array(Image.open(io.BytesIO(rgba.content)))
    assert picture.shape == (48, 64, 4)
    assert np.array_equal(picture[..., 3], together)
    deep = client.post("/v1/matte", json=ask | {"output": "alpha", "bits": 16})
    deep = np.array(Image.open(io.BytesIO(deep.content))).astype(float)
    assert np.abs(deep / 257 - together).max() <= 0.51
    webp = client.post("/v1/matte", json=ask | {"output": "composite", "format": "webp"})
    assert Image.open(io.BytesIO(webp.content)).format == "WEBP"


def test_a_mask_must_have_the_pictures_size(client, png):
    small = io.BytesIO()
    Image.new("L", (3, 3), 255).save(small, "PNG")
    answer = client.post("/v1/matte", files={"image": png, "mask": small.getvalue()})
    assert answer.status_code == 422
    assert "64 x 48" in answer.json()["detail"]


def test_the_wrong_method_is_told_from_the_wrong_address(client):
    for method in ("GET", "PUT", "DELETE", "OPTIONS"):
        answer = client.request(method, "/v1/matte")
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
        assert "use POST" in answer.json()["detail"]
    for method, path in (("GET", "nothing"), ("POST", "nothing"), ("POST", "matte/")):
        assert client.request(method, f"/v1/{path}").status_code == 404
    assert client.post("/app.css").headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"output": "rgba", "format": "jpeg"}, "jpeg has no transparency"),
        ({"output": "rgba", "format": "tiff", "bits": 16}, "rgba as tiff has 8 bits"),
        ({"output": "rgba", "format": "webp", "bits": 16}, "rgba as webp has 8 bits"),
        ({"output": "alpha", "format": "jpeg", "bits": 16}, "alpha as jpeg has 8 bits"),
        ({"output": "composite", "bits": 16}, "composite as png has 8 bits"),
        ({"output": "overlay", "bits": 16}, "overlay as png has 8 bits"),
        ({"refine": True}, "refine is for files"),
        ({"format": "webp"}, "leave format out"),
        ({"output": "alpha", "preview": True}, "preview is for output json"),
        ({"output": "alpha", "candidates": 3}, "candidates 3 is for output json"),
        ({"objects": [{}], "points": [[1, 1]]}, "points beside objects"),
        ({"objects": [{}], "candidate": 1}, "candidate beside objects"),
        ({"background": "red", "background_image": "aaaa"}, "background and background_image"),
        ({"model": "nonsense"}, "the embedding is of model tiny"),
        ({"points": 5}, "expected [[x, y, label], ...]"),
        ({"objects": [{"box": "1,2,3,4"}]}, "objects.0.box: Input should be a valid list"),
    ],
)
def test_what_contradicts_itself_is_refused(client, png, body, words):
    key = client.post("/v1/embeddings", files={"image": png}).json()["id"]
    answer = client.post("/v1/matte", json={"embedding": key} | body)
    assert answer.status_code == 422
    assert words in answer.json()["detail"]


@pytest.mark.parametrize(
    ("output", "format", "bits"),
    [
        *((output, "png", 8) for output in ("rgba", "alpha", "composite", "overlay")),
        *((output, "tiff", 8) for output in ("rgba", "alpha", "composite", "overlay")),
        *((output, "jpeg", 8) for output in ("alpha", "composite", "overlay")),
        *(("rgba", "png", 16), ("alpha", "png", 16), ("alpha", "tiff", 16)),
    ],
)
def test_every_other_file_can_be_had(client, png, output, format, bits):
    data = {"output": output, "format": format, "bits": str(bits)}
    answer = client.post("/v1/matte", files={"image": png}, data=data)
    assert answer.headers["content-type"] == f"image/{format}"


def test_forms_forgive_blanks_and_say_which_field_is_wrong(client, png):
    def ask(**fields):
        answer = client.post("/v1/matte", files={"image": png}, data=fields)
        return answer.status_code, answer.json().get("detail", "")

    assert ask(points=" [[20, 25], [1, 1, 0]]\n")[0] == 200
    assert ask(points="20,25") == (
        422,
        "points: Input should be a valid list; expected [[x, y, label], ...]",
    )
    assert ask(points="[[20, 25]") == (400, "the field points is no JSON (JSONDecodeError)")
    broken = base64.encodebytes(png).decode()
    assert client.post("/v1/matte", json={"image": broken, "box": [1, 1, 9, 9]}).status_code == 200


def test_everything(client, png):
    answer = client.post("/v1/auto", data={"points_per_side": "2"}, files={"image": png})
    assert answer.status_code == 200
    assert "objects" in answer.json()


def test_tabs_get_matte_and_values(client, rgb, png):
    key = client.post("/v1/embeddings", files={"image": png}).json()["id"]
    mask = io.BytesIO()
    half = np.zeros((48, 64), np.uint8)
    half[:, :32] = 255
    Image.fromarray(half).save(mask, "PNG")
    body = {"embedding": key, "mask": base64.b64encode(mask.getvalue()).decode()}
    answer = client.post("/v1/invert", json=body).json()
    assert answer["notes"] == ["done"]
    image = decoded(answer["image"])
    assert np.array_equal(image[:, :32], 255 - rgb[:, :32])
    assert np.array_equal(image[:, 32:], rgb[:, 32:])
    for wrong in ({"values": {"strength": 2}}, {"objects": [{"points": [[1, 1]]}]}):
        assert client.post("/v1/invert", json=body | wrong).status_code == 422
    assert client.post("/v1/left", json=body).status_code == 422  # it takes no mask
    boxes = client.post("/v1/left", json={"embedding": key}).json()["objects"]
    assert boxes[0]["box"] == [0, 0, 32, 48]
    assert decoded(boxes[0]["alpha"]).shape == (48, 64)


def test_tabs_get_mattes_as_softly_as_the_model_draws_them(client, model, png, rgb, monkeypatch):
    monkeypatch.setattr("zim.predictor.sharpened", lambda logits, quality, factor: 4 * logits)
    box = [8.0, 6.0, 50.0, 40.0]
    mattes = {}
    for soft in (True, False):
        predictor = ZimPredictor(model)
        predictor.soft = soft
        predictor.set_image(rgb)
        mattes[soft] = predictor.predict(box=np.array(box), multimask_output=False)[0][0]
    assert np.abs(mattes[True] - mattes[False]).max() > 0.1
    key = client.post("/v1/embeddings", files={"image": png}).json()["id"]
    body = {"embedding": key, "objects": [{"box": box}]}
    for _ in range(2):  # whoever asks first leaves nothing behind for the other
        mix = mattes[True][..., None]
        wanted = (1 - mix) * rgb + mix * (255 - rgb)
        inverted = decoded(client.post("/v1/invert", json=body).json()["image"])
        assert np.abs(inverted - wanted).max() <= 0.51
        shown = client.post("/v1/matte", json=body | {"output": "alpha"})
        alpha = np.array(Image.open(io.BytesIO(shown.content))) / 255
        assert np.abs(alpha - mattes[False]).max() <= 0.51 / 255


def test_refined_files_are_those_of_the_library(client, model, rgb):
    transparent = np.full((48, 64), 255, np.uint8)
    transparent[:, :20] = 0
    file = io.BytesIO()
    Image.fromarray(np.dstack([rgb, transparent])).save(file, "PNG")
    ask = {"points": [[40, 24]], "output": "alpha", "bits": 16, "refine": True}
    ask["image"] = base64.b64encode(file.getvalue()).decode()
    got = np.array(Image.open(io.BytesIO(client.post("/v1/matte", json=ask).content)))
    matte = zim.matte(file.getvalue(), points=[(40, 24)], model=model, refine=True)
    assert matte.alpha[:, :20].max() == 0 < matte.alpha[:, 20:].max()
    assert close(got, matte.alpha, 65535)


def test_a_tabs_picture_stays_as_transparent_as_it_was(client, rgb):
    file = io.BytesIO()
    transparent = np.linspace(0, 255, 48 * 64).reshape(48, 64).astype(np.uint8)
    Image.fromarray(np.dstack([rgb, transparent])).save(file, "PNG")
    key = client.post("/v1/embeddings", files={"image": file.getvalue()}).json()["id"]
    body = {"embedding": key, "objects": [{"box": [5, 5, 40, 40]}]}
    image = decoded(client.post("/v1/invert", json=body).json()["image"])
    assert np.array_equal(image[..., 3], transparent)


def test_a_mask_of_zeros_and_ones_is_a_mask(client, png):
    mask = np.zeros((48, 64), np.uint8)
    mask[10:30, 10:40] = 1
    answers = []
    for values in (mask, 255 * mask):
        file = io.BytesIO()
        Image.fromarray(values).save(file, "PNG")
        body = {"image": base64.b64encode(png).decode(), "output": "alpha"}
        body["mask"] = base64.b64encode(file.getvalue()).decode()
        answers.append(client.post("/v1/matte", json=body).content)
    assert answers[0] == answers[1]


def test_a_model_that_fails_says_why(client, png):
    answer = client.post("/v1/embeddings", data={"model": "gone"}, files={"image": png})
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
    states = {row["name"]: row for row in client.get("/v1/models").json()["models"]}
    assert states["gone"]["state"] == "failed"
    assert "gone" in states["gone"]["error"]
    other = client.post("/v1/embeddings", data={"model": "/etc/passwd"}, files={"image": png})
    assert other.status_code == 422


def test_a_model_from_a_path_has_its_last_part_for_a_name(model, png, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / "mine").mkdir(parents=True)
    one, other = (str(tmp_path / name / "mine") for name in "ab")
    app = create_app(Settings(models=(one,)), models={"mine": model}, tabs={})
    with TestClient(app, base_url="http://localhost") as client:
        assert str(tmp_path) not in client.get("/v1/models").text
        answer = client.post("/v1/embeddings", data={"model": "mine"}, files={"image": png})
        assert answer.json()["model"] == "mine"
    with pytest.raises(ConfigError, match="have one name"):
        create_app(Settings(models=(one, other)), tabs={})


def test_openapi_describes_every_address(client):
    schema = client.get("/openapi.json").json()
    for path in ("matte", "auto", "embeddings", "invert", "left"):
        content = schema["paths"][f"/v1/{path}"]["post"]["requestBody"]["content"]
        assert set(content) == {"application/json", "multipart/form-data"}
        assert "$ref" not in json.dumps(content)
    assert "points" in content["application/json"]["schema"]["properties"] or path == "left"


def test_health_and_metrics(client):
    assert client.get("/healthz").json()["status"] == "ok"
    assert client.head("/healthz").status_code == 200
    assert client.get("/healthz", headers={"host": "evil.example"}).status_code == 403
    text = client.get("/metrics").text
    assert 'zim_requests_total{path="/healthz",status="200"} 2.0' in text
    assert 'zim_requests_total{path="other",status="403"} 1.0' in text


def test_an_unexpected_error_is_told_and_counted(model, png, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("a secret")

    monkeypatch.setattr("zim.serve.engine.Engine.automatic", broken)
    app = create_app(Settings(models=("tiny",)), models={"tiny": model}, tabs={})
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        answer = client.post("/v1/auto", files={"image": png})
        assert answer.status_code == 500
        assert "secret" not in answer.text
        assert 'path="/v1/auto",status="500"} 1.0' in client.get("/metrics").text


@pytest.mark.parametrize("path", ["/", "/app.css", "/js/main.js"])
def test_the_page_is_served_under_a_strict_policy(client, path):
    answer = client.get(path)
    assert answer.status_code == 200
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert answer.headers["cache-control"] == "no-cache"
