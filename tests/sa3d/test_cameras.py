"""Cameras, LLFF poses, frames of space."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from zim.errors import ConfigError, ZimError
from zim.output import save_rgb
from zim_sa3d.cameras import Camera, look_at
from zim_sa3d.export import looking_ways
from zim_sa3d.readers import find_scene, prepare, read_llff, read_transforms
from zim_sa3d.scene import Scene, View
from zim_sa3d.space import Space, from_dict
from zim_sa3d.synthetic import orbit, render

PICTURE = np.full((30, 40, 3), 90, np.uint8)


def llff_folder(folder: Path, cameras: list[Camera]) -> Path:
    """Write cameras as LLFF does: columns down, right, backward; height, width, focal; bounds."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for i, camera in enumerate(cameras):
        right, up, back, place = camera.c2w.T
        hwf = [camera.height, camera.width, camera.fx]
        matrix = np.stack([-up, right, back, place, np.array(hwf)], 1)
        rows.append([*matrix.ravel(), 1.5, 9.0])
        save_rgb(folder / "images" / f"IMG_{i:04d}.png", PICTURE)
    np.save(folder / "poses_bounds.npy", np.array(rows))
    return folder


@pytest.fixture
def forward() -> list[Camera]:
    return [
        look_at((0.2 * k - 0.4, 0.1 * (k % 3), 0.0), (0, 0, -6.0), (0, 1, 0), size=(30, 40), fov=60)
        for k in range(5)
    ]


def test_a_ray_goes_through_the_point_its_pixel_shows():
    camera = look_at((2.0, -1.0, 1.5), (0.1, 0.2, 0), size=(30, 40), fov=50)
    points = np.array([[0.1, 0.2, 0.0], [0.3, -0.2, 0.4]])
    pixels, depth = camera.project(points)
    assert (depth > 0).all()
    assert pixels[0] == pytest.approx([20, 15])  # what is looked at is in the middle
    origins, directions = camera.rays()
    column, row = np.floor(pixels[1]).astype(int)
    k = row * 40 + column
    offset = points[1] - origins[k].numpy()
    across = offset - (offset @ directions[k].numpy()) * directions[k].numpy()
    assert np.linalg.norm(across) < depth[1] / camera.fx  # within a pixel


def test_up_is_up_and_right_is_right():
    camera = look_at((0, -3, 0), (0, 0, 0), size=(20, 20), fov=50)
    pixels, _ = camera.project(np.array([[0, 0, 0.5], [0.5, 0, 0]]))
    assert pixels[0, 1] < 10
    assert pixels[1, 0] > 10


def test_llff_poses_project_known_points_where_they_were(tmp_path, forward):
    scene = read_llff(llff_folder(tmp_path / "fern", forward))
    points = np.array([[0.0, 0.0, -5.0], [1.0, -0.7, -6.0], [-1.2, 0.4, -4.0]])
    for view, camera in zip(scene.views, forward, strict=True):
        got, depth = view.camera.project(points)
        # by hand: into the camera's axes, divide by the distance, scale by the focal length
        local = (points - camera.c2w[:, 3]) @ camera.c2w[:, :3]
        x = 20 + camera.fx * local[:, 0] / -local[:, 2]
        y = 15 - camera.fx * local[:, 1] / -local[:, 2]
        np.testing.assert_allclose(got, np.stack([x, y], 1), atol=1e-6)
        assert (depth > 0).all()
    assert scene.kind == "forward"
    assert scene.near == 1.5


def test_llff_folders_that_do_not_fit_are_refused(tmp_path, forward):
    folder = llff_folder(tmp_path / "fern", forward)
    (folder / "images" / "IMG_0004.png").unlink()
    with pytest.raises(ConfigError, match="4 pictures in images/ but 5 poses"):
        read_llff(folder)


def test_a_row_that_is_no_pose_is_named(tmp_path, forward):
    folder = llff_folder(tmp_path / "fern", forward)
    rows = np.load(folder / "poses_bounds.npy")
    for column, value in ((0, 7.0), (4, np.nan)):
        wrong = rows.copy()
        wrong[2, column] = value
        np.save(folder / "poses_bounds.npy", wrong)
        with pytest.raises(ConfigError, match=r"poses_bounds.npy, row 2 \(IMG_0002.png\): "):
            read_llff(folder)


def test_what_transforms_say_of_the_lens_is_taken(tmp_path, forward):
    files = [f"{k}.png" for k in range(5)]
    about = {"zim_sa3d": None, "k1": 0.1, "k4": 0.2, "k6": 0.3}
    view = read_transforms(capture(tmp_path / "a", forward, files, **about)).views[0]
    assert view.distortion == (0.1, 0, 0, 0, 0, 0.2, 0, 0.3)
    folder = capture(tmp_path / "b", forward, files, camera_angle_x=1.2, camera_angle_y=0.8)
    data = json.loads((folder / "transforms.json").read_text())
    del data["fl_x"]
    (folder / "transforms.json").write_text(json.dumps(data))
    camera = read_transforms(folder).views[0].camera
    assert (camera.fx, camera.fy) == pytest.approx((20 / np.tan(0.6), 15 / np.tan(0.4)))
    with pytest.raises(ConfigError, match=r"transforms.json: zim_sa3d is 5; expected an object"):
        read_transforms(capture(tmp_path / "c", forward, files, zim_sa3d=5))


def test_a_frame_that_is_no_pose_is_named(tmp_path, forward):
    folder = capture(tmp_path / "a", forward, [f"{k}.png" for k in range(5)])
    data = json.loads((folder / "transforms.json").read_text())
    data["frames"][3]["transform_matrix"][0][3] = float("nan")
    (folder / "transforms.json").write_text(json.dumps(data))
    with pytest.raises(ConfigError, match=r"transforms.json: 3.png: .*finite numbers"):
        read_transforms(folder)


def test_prepare_makes_pictures_smaller_and_is_read_back(tmp_path, forward):
    folder = llff_folder(tmp_path / "mine", forward)
    made = prepare(str(folder), tmp_path / "out", factor=2)
    again = read_transforms(tmp_path / "out")
    assert [v.name for v in again.views] == [v.name for v in made.views]
    view = again.views[1]
    assert view.rgb().shape == (15, 20, 3)
    assert view.camera.fx == pytest.approx(forward[1].fx / 2)
    np.testing.assert_allclose(view.camera.c2w, forward[1].c2w)


@pytest.mark.parametrize("before", [False, True])
def test_a_prepare_that_fails_changes_nothing(tmp_path, forward, before):
    folder, run = llff_folder(tmp_path / "mine", forward), tmp_path / "run"
    if before:
        prepare(str(folder), run / "scene", factor=2)
    there = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    save_rgb(folder / "images" / "IMG_0004.png", PICTURE[:10])
    with pytest.raises(ConfigError, match="other proportions"):
        prepare(str(folder), run / "scene", factor=1)
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == there
    assert run.exists() == before
    with pytest.raises(ConfigError, match="expected two: give another --output"):
        prepare(str(folder), folder, factor=1)


@pytest.mark.parametrize("orientation", [1, 5, 6, 7, 8])
def test_pictures_are_taken_the_way_up_that_their_poses_state(tmp_path, forward, orientation):
    stored = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)
    folder = llff_folder(tmp_path / "mine", forward)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for path in (folder / "images").iterdir():
        Image.fromarray(stored).save(path, exif=exif)
    scene = prepare(str(folder), tmp_path / "out", factor=1)
    np.testing.assert_array_equal(scene.views[0].rgb(), stored)


def test_frames_without_a_picture_are_left_out(tmp_path, forward):
    folder = llff_folder(tmp_path / "mine", forward)
    prepare(str(folder), tmp_path / "out", factor=1)
    data = json.loads((tmp_path / "out" / "transforms.json").read_text())
    data["frames"].append({**data["frames"][0], "file_path": "images/gone.png"})
    (tmp_path / "out" / "transforms.json").write_text(json.dumps(data))
    assert len(read_transforms(tmp_path / "out").views) == 5


def capture(folder: Path, cameras: list[Camera], files: list[str], **about: object) -> Path:
    """Write ``transforms.json`` with pictures of 40 x 30 under any names."""
    folder.mkdir()
    frames = []
    for camera, file in zip(cameras, files, strict=True):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        save_rgb(folder / file, PICTURE)
        frames.append({"file_path": file, "transform_matrix": camera.c2w.tolist()})
    data = {"fl_x": cameras[0].fx if cameras else 1.0, "w": 40, "h": 30, **about, "frames": frames}
    (folder / "transforms.json").write_text(json.dumps(data))
    return folder


@pytest.mark.parametrize(("k1", "factor"), [(0.35, 2), (-0.2, 1)])
def test_straightened_pictures_show_what_their_cameras_see_up_to_the_rim(tmp_path, k1, factor):
    """A table photographed through a lens with bulging or hollow edges, by OpenCV's own model."""
    cameras = [replace(c, cx=c.cx + 2, cy=c.cy - 1) for c in orbit(3, 64)]
    folder = capture(tmp_path / "mine", [], [], k1=k1)
    data = json.loads((folder / "transforms.json").read_text())
    for k, camera in enumerate(cameras):
        # a pixel of the photograph shows what a pinhole shows where the lens is straightened
        matrix = np.array([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]])
        pixels = np.stack(np.meshgrid(np.arange(64) + 0.5, np.arange(64) + 0.5), -1)
        at = cv2.undistortPoints(
            pixels.reshape(-1, 1, 2), matrix, np.array([k1, 0, 0, 0]), None, None, matrix
        ).reshape(64, 64, 2)
        wide = replace(
            camera.resized(128, 128),
            cx=2 * camera.cx + 32,
            cy=2 * camera.cy + 32,
            width=192,
            height=192,
        )
        rgb, _ = render(wide)
        x, y = cv2.split((at * 2 + 31.5).astype(np.float32))
        photo = cv2.remap(rgb, x, y, cv2.INTER_AREA)
        save_rgb(folder / f"{k}.png", np.asarray(photo, np.uint8))
        frame = {"file_path": f"{k}.png", "transform_matrix": camera.c2w.tolist()}
        data["frames"].append(frame | {"fl_x": camera.fx, "cx": camera.cx, "cy": camera.cy})
    (folder / "transforms.json").write_text(json.dumps(data | {"w": 64, "h": 64}))
    scene = prepare(str(folder), tmp_path / "run", factor=factor)
    for view in scene.views:
        got, truth = view.rgb().astype(int), render(view.camera)[0].astype(int)
        rim = np.ones(got.shape[:2], bool)
        rim[2:-2, 2:-2] = False
        assert np.abs(got - truth)[rim].mean() < 12
        assert np.abs(got - truth).mean() < 12
        assert (view.camera.width, view.camera.height) == (64 // factor, 64 // factor)
    same = np.isclose(scene.views[0].camera.fx, cameras[0].fx / factor)
    assert same == (k1 < 0)  # nothing is cut off where nothing is missing


@pytest.mark.parametrize("above", ["", "../"])
def test_nothing_is_written_outside_of_the_output(tmp_path, forward, above):
    root = f"{above}cam" if above else str(tmp_path / "cam")
    files = [f"{root}{k // 2}/{k % 2}:.png" for k in range(5)]
    folder = capture(tmp_path / "mine", forward, files)
    before = set(tmp_path.rglob("*"))
    scene = prepare(str(folder), tmp_path / "out" / "scene", factor=1)
    made = set(tmp_path.rglob("*")) - before - {tmp_path / "out"}
    assert all((tmp_path / "out" / "scene").resolve() in (p, *p.parents) for p in made)
    assert scene.views[3].name.endswith("cam1_1_")


def test_views_keep_their_numbers_when_a_prepared_scene_is_read_again(tmp_path, forward):
    # a place in the list by folder, by length of name, by capitals
    files = ["b/1.png", "a/2.png", "a/10.png", "B.png", "a b.png"]
    folder = capture(tmp_path / "mine", forward, files)
    for k, source in enumerate((folder, llff_folder(tmp_path / "llff", forward))):
        made = prepare(str(source), tmp_path / str(k), factor=1)
        again = read_transforms(tmp_path / str(k))
        assert [v.name for v in made.views] == [v.name for v in again.views]


@pytest.mark.parametrize("kind", ["box", "contract", "ndc"])
def test_every_frame_of_space_is_undone_exactly(kind):
    space = Space(kind, (0.1, -0.2, 0.3), 1.4, 0.7, half_view=(0.8, 0.6))
    points = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    points = points * (1 if kind == "box" else 3)
    if kind == "ndc":
        points[:, 2] = -points[:, 2].abs() - 1
    grid = space.to_grid(points)
    if kind == "contract":
        assert grid.abs().max() < 1
    torch.testing.assert_close(space.to_scene(grid), points, rtol=2e-3, atol=2e-3)
    assert from_dict(json.loads(json.dumps(space.to_dict()))) == space


def turned(camera: Camera, turn: np.ndarray) -> View:
    """Return the view of a camera in a world that is turned about its origin."""
    return View(str(camera.position), camera.moved(np.c_[turn, np.zeros(3)], 1.0), Path("x.png"))


@pytest.mark.parametrize("turn", [np.eye(3), np.eye(3)[[0, 2, 1]] * [[1], [1], [-1]]])
def test_the_turntable_turns_about_what_was_up_in_the_pictures(turn):
    scene = Scene("s", tuple(turned(camera, turn) for camera in orbit(24, 16)))
    up, ways = looking_ways(scene, np.zeros(3), 8)
    assert up @ turn[:, 2] > 0.99
    np.testing.assert_allclose(ways @ up, 0.45)
    np.testing.assert_allclose(ways.sum(0), 8 * 0.45 * up, atol=1e-9)
    assert np.linalg.matrix_rank(ways, tol=0.1) == 3
    ways = [(1, 0, 0), (0, 1, 0), (-1, 0, 0), (0, -1, 0)]  # all look straight down
    down = [
        look_at((0.1 * k, 0, 3), (0.1 * k, 0, 0), way, size=(9, 9), fov=50)
        for k, way in enumerate(ways)
    ]
    up, _ = looking_ways(Scene("s", tuple(turned(c, turn) for c in down)), np.zeros(3), 8)
    assert up @ turn[:, 2] > 0.99


def test_the_turntable_of_a_forward_scene_swings_where_its_cameras_stood(forward):
    views = tuple(View(str(k), camera, Path("x.png")) for k, camera in enumerate(forward))
    middle = np.array([0.0, 0.1, -4.0])
    up, ways = looking_ways(Scene("s", views, "forward"), middle, 24)
    np.testing.assert_allclose(up, [0, 1, 0], atol=0.05)
    np.testing.assert_allclose(np.linalg.norm(ways, axis=1), 1)
    across = np.degrees(np.arctan2(ways[:, 0], ways[:, 2]))
    widest = np.degrees(np.arctan2(0.4, 4))  # cameras stand 0.4 to either side, 4 in front
    np.testing.assert_allclose([across.min(), across.max()], [-widest, widest], atol=0.2)
    assert np.abs(across[12]) < 0.2


@pytest.mark.parametrize("shift", [0, 9])
@pytest.mark.parametrize("turn", [0, 25])
def test_the_cube_of_a_forward_scene_holds_what_its_cameras_see(turn, shift):
    views = []
    for k in range(5):
        yaw = np.radians(turn * (k - 2) / 2)
        at = np.array([0.2 * k - 0.4, 0.1 * (k % 3), 0.0])
        aim = at + np.array([np.sin(yaw), 0, -np.cos(yaw)])
        camera = look_at(at, aim, (0, 1, 0), size=(30, 40), fov=50)
        views.append(View(str(k), replace(camera, cx=camera.cx + shift), Path("x.png")))
    space = Space.of(Scene("s", tuple(views), "forward", near=2.0))
    for view in views:
        origins, directions = view.camera.rays()
        for distance in (3.0, 30.0):
            assert space.to_grid(origins + directions * distance)[:, :2].abs().max() <= 1


@pytest.mark.parametrize("kind", ["box", "contract", "ndc"])
def test_distances_along_rays_rise(kind):
    space = Space(kind, (0.0, 0.0, 0.0), 1.0, 0.5, half_view=(0.8, 0.6))
    camera = look_at((0, 0, 2.0), (0, 0, 0), (0, 1, 0), size=(6, 6), fov=40)
    edges = space.distances(*camera.rays(), 32)
    assert edges.shape[0] == 36
    assert (edges.diff(dim=1) >= 0).all()


def test_poses_that_are_none_are_refused():
    good = look_at((2, 0, 0), (0, 0, 0), size=(8, 8), fov=40)
    scaled, mirrored = good.c2w.copy(), good.c2w.copy()
    scaled[:, :3] *= 2
    mirrored[:, 0] *= -1
    for pose, word in ((scaled, "right angles"), (mirrored, "mirrors")):
        with pytest.raises(ConfigError, match=word):
            Camera(pose, 9, 9, 4, 4, 8, 8)


def test_scenes_that_cannot_work_are_refused(tmp_path):
    camera = look_at((2, 0, 0), (0, 0, 0), size=(8, 8), fov=40)
    views = tuple(View(str(k), camera, tmp_path / "x.png") for k in range(4))
    with pytest.raises(ConfigError, match="at least 3"):
        Scene("s", views[:1])
    with pytest.raises(ConfigError, match="same place"):
        Scene("s", views)


@pytest.mark.parametrize(
    ("given", "number"),
    [("0003", 2), ("0003.png", 2), ("0003.JPG", 2), ("5", 4), ("3", 3), ("0", 0), ("0.5", 5)],
)
def test_a_view_is_found_by_name_then_file_name_then_number(forward, given, number):
    names = ["0001", "0002", "0003", "0004", "5", "0.5"]
    cameras = [*forward, forward[0]]
    views = [View(n, c, Path(f"{n}.png")) for n, c in zip(names, cameras, strict=True)]
    assert Scene("s", tuple(views)).find(given) == number


@pytest.mark.parametrize("given", ["6", "0003.txt", "-1", "²", ""])
def test_a_view_that_is_none_is_refused(forward, given):
    views = [View(f"000{k}", c, Path("x.png")) for k, c in enumerate(forward)]
    with pytest.raises(ConfigError, match=f"no view '{given}'; give 0 to 4 or a name such as 0000"):
        Scene("s", tuple(views)).find(given)


def test_missing_data_says_what_where_from_and_where_to(tmp_path):
    with pytest.raises(ZimError, match=r"nerf_llff_data .*poses_bounds.npy"):
        find_scene("trex", tmp_path)
    with pytest.raises(ZimError, match="no known name"):
        find_scene("tyranno", tmp_path)
