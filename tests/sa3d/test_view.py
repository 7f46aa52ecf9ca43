"""The page: clicks meet the picture where they should, and what is missing is said in one line."""

from __future__ import annotations

import argparse
import importlib.util
import socket

import numpy as np
import pytest
import torch

from zim_sa3d.cameras import look_at
from zim_sa3d.cli import main
from zim_sa3d.picture_plane import PicturePlane

CAMERA = look_at((2.0, -1.0, 1.5), (0.1, 0.2, 0), size=(30, 40), fov=50)


def test_a_ray_through_a_pixel_meets_that_pixel_of_the_picture():
    plane = PicturePlane(CAMERA, 0.4)
    pixels = torch.tensor([0, 57, 1199])
    origins, directions = CAMERA.rays(pixels)
    for pixel, origin, direction in zip(pixels, origins, directions, strict=True):
        row, column = divmod(int(pixel), 40)
        assert plane.pixel(origin, direction) == pytest.approx((column + 0.5, row + 0.5), abs=1e-3)


def test_a_click_from_the_side_meets_the_picture_where_it_hangs():
    plane = PicturePlane(CAMERA, 0.4)
    width, height = plane.size
    right, down, forward = plane.rotation.T
    eye = plane.centre + 0.7 * right - 0.5 * forward
    corner = plane.centre - right * width / 2 * 0.5 + down * height / 2 * 0.5
    assert plane.pixel(eye, corner - eye) == pytest.approx((10, 22.5))
    assert plane.pixel(eye, eye - corner) is None  # away from it
    assert plane.pixel(eye, plane.centre + right * width - eye) is None  # beside it


@pytest.mark.skipif(importlib.util.find_spec("viser") is not None, reason="viser is installed")
def test_without_viser_it_says_how_to_get_it(tmp_path, capsys):
    assert main(["view", "--scene", "synthetic", "--output", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "[view]'" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "nothing to look at; give --output"),
        (["--output", "runs/dmeo"], "runs/dmeo does not exist; give --output the folder of a run"),
        (["--output", "empty"], "empty holds no scene; give --output the folder of a run"),
    ],
)
def test_a_mistyped_run_folder_is_no_empty_page(tmp_path, monkeypatch, capsys, words, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert main(["view", *words]) == 1
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]  # nothing was made on the way


def test_an_address_that_cannot_be_used_is_told_before_anything_is_made(tmp_path, capsys):
    pytest.importorskip("viser")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for words, code, text in (
            (["--port", port], 1, f"port {port} of 127.0.0.1 cannot be used"),
            (["--host", "300.1.1.1"], 1, "port 8080 of 300.1.1.1 cannot be used"),
            (["--port", "99999"], 2, "'99999' is no port; expected 1 to 65535"),
        ):
            out = tmp_path / "run"
            assert main(["view", "--scene", "synthetic", "-o", str(out), *words]) == code
            error = capsys.readouterr().err
            assert text in error
            assert error.count("\n") == 1
            assert not out.exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_clicks_on_the_page_become_an_object(tmp_path):
    """Without a browser: the page's own functions, on a small scene with true mattes."""
    viser = pytest.importorskip("viser")
    from zim_sa3d.grid_field import GridSettings, train_grid
    from zim_sa3d.runs import Run, middle_of
    from zim_sa3d.synthetic import synthetic_scene
    from zim_sa3d.view import Page

    scene = synthetic_scene(tmp_path / "scene", size=48, views=8)
    train_grid(scene, GridSettings((40,), (120,), 512, (64,))).save(tmp_path)
    work = Run(page_flags(["--output", str(tmp_path), "--model", "oracle", "--iou-gate", "0.1"]))
    server = viser.ViserServer(host="127.0.0.1", port=8123, verbose=False)
    try:
        page = Page(server, work, scene)
        x, y = middle_of(scene.views[page.index].matte("ball"))
        camera = scene.views[page.index].camera
        origins, directions = camera.rays(torch.tensor([int(y) * camera.width + int(x)]))
        page.click(origins[0].numpy(), directions[0].numpy())
        assert page.points == [pytest.approx((int(x), int(y)), abs=1e-3)]
        page.click(origins[0].numpy(), -directions[0].numpy())
        assert "beside" in page.status.content
        page.lift()
        assert "Done" in page.status.content, page.status.content
        assert (tmp_path / "object.ply").is_file()
        assert np.isfinite(page.plane.centre).all()
    finally:
        server.stop()


def page_flags(words: list[str]) -> argparse.Namespace:
    """Return the flags of ``zim-sa3d view`` as the command would."""
    from zim.commandline import add_common_flags
    from zim_sa3d.cli import _view_flags

    parser = argparse.ArgumentParser()
    _view_flags(parser)
    add_common_flags(parser)
    return parser.parse_args(words)
