"""COLMAP's models: known 3D points must be seen where COLMAP's own camera equations put them."""

from __future__ import annotations

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from zim.errors import ConfigError
from zim.images import load_image
from zim.output import save_rgb
from zim_sa3d.colmap import read_colmap
from zim_sa3d.readers import prepare, read_transforms

#: world to camera, axes right, down, forward, as COLMAP keeps poses
TURNS = Rotation.from_euler("yxz", [[10 * k - 20, 6 * k, 3 * k] for k in range(5)], degrees=True)
SHIFTS = np.array([[0.3 * k - 0.6, 0.1 * k, 2.5 + 0.1 * k] for k in range(5)])
POINTS = np.random.default_rng(0).uniform(-1, 1, (40, 3))
OPENCV = (50.0, 52.0, 31.0, 23.0, -0.3, 0.05, 0.01, -0.005)
PLANE = np.array([[50.0, 0, 31.0], [0, 52.0, 23.0], [0, 0, 1]])


def seen(k: int) -> np.ndarray:
    """Where view k sees the points by the pinhole equation, N x 2."""
    local = TURNS[k].apply(POINTS) + SHIFTS[k]
    return (local @ PLANE.T)[:, :2] / local[:, 2:]


def model(folder: Path, *, binary: bool, lens: str = "PINHOLE", picture: bool = True) -> Path:
    """Write a scene of five views of 64 x 48 as COLMAP's documentation lays it out."""
    number, count = {"PINHOLE": (1, 4), "OPENCV": (4, 8), "OPENCV_FISHEYE": (5, 8)}[lens]
    sparse = folder / "sparse" / "0"
    sparse.mkdir(parents=True)
    (folder / "images").mkdir()
    names = [f"b{4 - k}.png" for k in range(5)]  # not in the order of their numbers
    quaternions = TURNS.as_quat()[:, [3, 0, 1, 2]]
    values = OPENCV[:count]
    if binary:
        rows = struct.pack("<QiiQQ", 1, 7, number, 64, 48) + struct.pack(f"<{count}d", *values)
        (sparse / "cameras.bin").write_bytes(rows)
        rows = struct.pack("<Q", 5)
        for k, name in enumerate(names):
            rows += struct.pack("<i7di", k + 1, *quaternions[k], *SHIFTS[k], 7)
            rows += name.encode() + b"\0" + struct.pack("<Q", 2) + bytes(48)
        (sparse / "images.bin").write_bytes(rows)
        rows = struct.pack("<Q", len(POINTS))
        for k, point in enumerate(POINTS):
            rows += struct.pack("<Q3d3BdQ", k, *point, 1, 2, 3, 0.5, 1) + struct.pack("<ii", 1, 0)
        (sparse / "points3D.bin").write_bytes(rows)
    else:
        text = f"# a comment\n7 {lens} 64 48 {' '.join(map(str, values))}\n"
        (sparse / "cameras.txt").write_text(text)
        text = "# a comment\n"
        for k, name in enumerate(names):
            pose = " ".join(map(repr, map(float, [*quaternions[k], *SHIFTS[k]])))
            text += f"{k + 1} {pose} 7 {name}\n" + ("" if k == 2 else "1.5 2.5 -1") + "\n"
        (sparse / "images.txt").write_text(text)
        text = "".join(f"{k} {x} {y} {z} 1 2 3 0.5 1 0\n" for k, (x, y, z) in enumerate(POINTS))
        (sparse / "points3D.txt").write_text(text)
    if picture:
        for name in names:
            save_rgb(folder / "images" / name, np.full((48, 64, 3), 90, np.uint8))
    return folder


@pytest.mark.parametrize("binary", [True, False])
def test_known_points_are_seen_where_colmap_sees_them(tmp_path, binary):
    scene = read_colmap(model(tmp_path / "desk", binary=binary))
    assert [view.name for view in scene.views] == ["b0", "b1", "b2", "b3", "b4"]
    depths = []
    for view, k in zip(scene.views, range(4, -1, -1), strict=True):
        xy, depth = view.camera.project(POINTS)
        np.testing.assert_allclose(xy, seen(k), atol=1e-9)
        np.testing.assert_allclose(depth, (TURNS[k].apply(POINTS) + SHIFTS[k])[:, 2], atol=1e-9)
        depths.append(depth[((xy > 0) & (xy < (64, 48))).all(1)].min())
    assert scene.near is not None
    assert 0.85 * min(depths) < scene.near < min(depths)


def bent(k: int) -> np.ndarray:
    """Where view k sees the points through the lens, by OpenCV, N x 2."""
    rotation, _ = cv2.Rodrigues(TURNS[k].as_matrix())
    return cv2.projectPoints(POINTS, rotation, SHIFTS[k], PLANE, np.array(OPENCV[4:]))[0][:, 0]


def test_a_lens_is_straightened(tmp_path):
    """A dot drawn where the distorted lens shows a point is afterwards where a pinhole does."""
    folder = model(tmp_path / "desk", binary=True, lens="OPENCV", picture=False)
    aims: dict[str, np.ndarray] = {}
    for k in range(5):
        before, after = bent(k), seen(k)
        inside = ((before > 4) & (before < (60, 44)) & (after > 4) & (after < (60, 44))).all(1)
        most = int((np.linalg.norm(before - after, axis=1) * inside).argmax())
        assert np.linalg.norm(before[most] - after[most]) > 0.6
        # drawn eight times finer and made smaller: dots at fractions of pixels
        fine = np.zeros((48 * 8, 64 * 8, 3), np.uint8)
        x, y = (int(v) for v in np.round(before[most] * 8 - 0.5))
        cv2.circle(fine, (x, y), 12, (255, 255, 255), -1)
        small = cv2.resize(fine, (64, 48), interpolation=cv2.INTER_AREA)
        save_rgb(folder / "images" / f"b{4 - k}.png", np.asarray(small, np.uint8))
        aims[f"b{4 - k}"] = after[most]
    scene = prepare(str(folder), tmp_path / "run", factor=1)
    for view in scene.views:
        grey = view.rgb()[..., 0].astype(float)
        y, x = ((np.indices(grey.shape) + 0.5) * grey).sum((1, 2)) / grey.sum()
        np.testing.assert_allclose([x, y], aims[view.name], atol=0.15)
    assert read_transforms(tmp_path / "run").views[0].distortion == ()


@pytest.mark.parametrize(
    ("lens", "values"),
    [
        ("SIMPLE_PINHOLE", "50 31 23"),
        ("PINHOLE", "50 50 31 23"),
        ("SIMPLE_RADIAL", "50 31 23 0.2"),
        ("RADIAL", "50 31 23 0.2 0.05"),
        ("OPENCV", "50 50 31 23 0.2 0.05 0.01 0"),
        ("FULL_OPENCV", "50 50 31 23 0.2 0.05 0 0 0.01 0.1 0 0"),
        ("RADIAL", "50 31 23 0 0"),
    ],
)
def test_every_model_that_is_read_is_straightened(tmp_path, lens, values):
    folder = model(tmp_path / "desk", binary=False)
    (folder / "sparse" / "0" / "cameras.txt").write_text(f"7 {lens} 64 48 {values}\n")
    for path in (folder / "images").iterdir():
        save_rgb(path, np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8))
    scene = prepare(str(folder), tmp_path / "run", factor=1)
    same = (scene.views[0].rgb() == load_image(folder / "images" / "b0.png").rgb).all()
    assert same == ("PINHOLE" in lens or values == "50 31 23 0 0")


def test_pictures_that_were_made_smaller_already_and_missing_ones(tmp_path):
    folder = model(tmp_path / "desk", binary=True, picture=False)
    (folder / "images").rmdir()
    (folder / "images_2").mkdir()
    for k in range(4):
        save_rgb(folder / "images_2" / f"b{k}.png", np.full((24, 32, 3), 90, np.uint8))
    scene = prepare(str(folder), tmp_path / "run", factor=4)
    assert len(scene.views) == 4
    assert scene.views[0].rgb().shape == (12, 16, 3)
    xy, _ = scene.views[0].camera.project(POINTS)
    np.testing.assert_allclose(xy, seen(4) / 4, atol=1e-9)


def test_views_of_several_folders_keep_their_numbers(tmp_path):
    folder = model(tmp_path / "desk", binary=False)
    text = (folder / "sparse" / "0" / "images.txt").read_text()
    for k in range(5):
        to = folder / "images" / f"cam{k % 2}" / f"b{k}.png"
        to.parent.mkdir(exist_ok=True)
        (folder / "images" / f"b{k}.png").rename(to)
        text = text.replace(f" b{k}.png", f" cam{k % 2}/b{k}.png")
    (folder / "sparse" / "0" / "images.txt").write_text(text)
    made = prepare(str(folder), tmp_path / "run", factor=1)
    again = read_transforms(tmp_path / "run")
    assert [v.name for v in made.views] == [v.name for v in again.views]


def test_a_picture_whose_pose_is_none_is_named(tmp_path):
    folder = model(tmp_path / "desk", binary=False)
    path = folder / "sparse" / "0" / "images.txt"
    rows = [row.split(" ") for row in path.read_text().splitlines()]
    number = next(k for k, row in enumerate(rows) if row[-1] == "b2.png")
    rows[number][1:5] = "0000"
    path.write_text("\n".join(" ".join(row) for row in rows) + "\n")
    with pytest.raises(ConfigError, match=r"sparse/0: b2.png: .*finite numbers"):
        read_colmap(folder)


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    folder = model(tmp_path / "desk", binary=False)
    plain = read_colmap(folder)
    for path in (folder / "sparse" / "0").iterdir():
        lines = path.read_text().splitlines(keepends=True)
        kept = [line for line in lines if not line.startswith("#")]
        path.write_text("".join(kept), encoding="utf-8-sig")
    marked = read_colmap(folder)
    assert marked.near == plain.near
    for first, second in zip(plain.views, marked.views, strict=True):
        np.testing.assert_array_equal(first.camera.c2w, second.camera.c2w)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize(
    ("number", "said"),
    [
        ("nan", "a PINHOLE camera of nan 52 31 23; expected finite numbers"),
        ("inf", "a PINHOLE camera of inf 52 31 23; expected finite numbers"),
        ("0", "b0.png: a camera of focal length 0, 52 .*focal lengths above 0"),
    ],
)
def test_a_focal_length_that_is_none_is_refused(tmp_path, monkeypatch, binary, number, said):
    monkeypatch.setattr(f"{__name__}.OPENCV", (float(number), *OPENCV[1:]))
    with pytest.raises(ConfigError, match=f"desk/sparse/0: {said}"):
        read_colmap(model(tmp_path / "desk", binary=binary))


def test_models_that_cannot_be_read_say_why(tmp_path):
    with pytest.raises(ConfigError, match=r"OPENCV_FISHEYE is not read.*image_undistorter"):
        read_colmap(model(tmp_path / "eye", binary=True, lens="OPENCV_FISHEYE"))
    folder = model(tmp_path / "cut", binary=True)
    path = folder / "sparse" / "0" / "images.bin"
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(ConfigError, match="cannot be read as a COLMAP model"):
        read_colmap(folder)
    (tmp_path / "bare").mkdir()
    with pytest.raises(ConfigError, match=r"no poses.*colmap automatic_reconstructor"):
        prepare(str(tmp_path / "bare"), tmp_path / "run")
