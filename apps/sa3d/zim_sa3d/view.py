"""A page in the browser: the object in its scene, the views, and clicks in a view (viser)."""

from __future__ import annotations

import argparse
import os
import socket
import sys
import threading
import time
from contextlib import redirect_stdout
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zim import viz
from zim._extras import require
from zim.commandline import Report
from zim.errors import ZimError, reason
from zim.images import load_image
from zim_sa3d import field_note
from zim_sa3d.field import render_view
from zim_sa3d.picture_plane import PicturePlane
from zim_sa3d.runs import Run
from zim_sa3d.scene import Scene
from zim_sa3d.segment import ScenePrompt
from zim_sa3d.self_prompt import ask

EXTRA = "view"
#: width of the pictures that the scene's own points come from, and how many there are
_COARSE, _LOOKS = 96, 6


def serve(args: argparse.Namespace) -> Report:
    """Show a run folder until interrupted.

    Raises:
        MissingExtraError: viser is not installed.
        ZimError: the address is none, or the port is taken.
    """
    viser: Any = require("viser", EXTRA)
    require("trimesh", EXTRA)
    check_address(args.host, args.port)
    work = Run(args)
    scene = work.scene()
    with redirect_stdout(sys.stderr):  # it greets
        server = viser.ViserServer(host=args.host, port=args.port, verbose=False)
    Page(server, work, scene)
    sys.stderr.write(f"{scene.name} at http://{args.host}:{server.get_port()}, Ctrl+C ends it\n")
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        server.stop()
    return Report()


def check_address(host: str, port: int) -> None:
    """Refuse what cannot be listened on: viser would hang, or take the next port unasked.

    Raises:
        ZimError: the host is unknown or not this machine's, or the port is taken.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            if os.name == "posix":  # one that was closed a moment ago is free
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, UnicodeError) as error:
        raise ZimError(
            f"port {port} of {host} cannot be used ({reason(error)}); give another --port, or "
            "--host with a name of this machine"
        ) from error


class Page:
    """What is on the page, and what its buttons do."""

    def __init__(self, server: Any, work: Run, scene: Scene) -> None:
        """Fill a viser server's scene and panel."""
        self.server, self.work, self.scene = server, work, scene
        self.points: list[tuple[float, float]] = []
        self.labels: list[int] = []
        self._segmenter: Any = None
        self._ready: str | None = None
        self._busy = threading.Lock()
        self._turns: Any = require("viser.transforms", EXTRA)
        places = np.array([view.camera.position for view in scene.views])
        self._reach = float(np.median(np.linalg.norm(places - places.mean(0), axis=1)))
        up = np.mean([view.camera.c2w[:, 1] for view in scene.views], axis=0)
        server.scene.set_up_direction(tuple(up / np.linalg.norm(up)))
        self._panel()
        self._cameras()
        self._object()
        self._select()
        server.on_client_connect(lambda client: self._look(client))
        server.scene.on_pointer_event("click")(
            lambda event: self.click(event.ray_origin, event.ray_direction)
        )
        self._surroundings()  # last, it takes longest

    def _panel(self) -> None:
        gui = self.server.gui
        names = [view.name for view in self.scene.views]
        first = names[self.scene.train[0]]
        self.view = gui.add_dropdown("View", options=names, initial_value=first)
        look = gui.add_button("Look from its camera")
        self.on_object = gui.add_checkbox("Clicks are on the object", initial_value=True)
        undo, clear = gui.add_button("Undo last click"), gui.add_button("Remove all clicks")
        lift = gui.add_button("Segment in 3D")
        self.status = gui.add_markdown("Click on the object in the picture.")
        shown = gui.add_folder("Shown")
        with shown:
            toggles = {
                name: gui.add_checkbox(name, initial_value=name != "mesh")
                for name in ("points", "mesh", "scene", "cameras", "picture")
            }
        self._toggles = toggles
        self.view.on_update(lambda _: self._select())
        look.on_click(lambda event: self._look(event.client))
        undo.on_click(lambda _: self._forget(1))
        clear.on_click(lambda _: self._forget(len(self.points)))
        lift.on_click(lambda _: self.lift())
        for toggle in toggles.values():
            toggle.on_update(lambda _: self._show())
        self._nodes: dict[str, list[Any]] = {name: [] for name in toggles}

    def _show(self) -> None:
        for name, nodes in self._nodes.items():
            for k, node in enumerate(nodes):
                # the chosen view's own frustum would lie across its picture
                own = name == "cameras" and k == self.index
                node.visible = self._toggles[name].value and not own

    @property
    def index(self) -> int:
        """Number of the chosen view."""
        return self.scene.find(self.view.value)

    @property
    def plane(self) -> PicturePlane:
        """Where the chosen view's picture hangs."""
        return PicturePlane(self.scene.views[self.index].camera, 0.25 * self._reach)

    def _turn(self, rotation: NDArray[np.float64]) -> Any:
        return self._turns.SO3.from_matrix(rotation).wxyz

    def _cameras(self) -> None:
        for i, view in enumerate(self.scene.views):
            camera = view.camera
            node = self.server.scene.add_camera_frustum(
                f"/cameras/{view.name}",
                fov=2 * float(np.arctan(camera.height / 2 / camera.fy)),
                aspect=camera.width / camera.height,
                scale=0.04 * self._reach,
                color=(90, 90, 90) if i in self.scene.train else (200, 120, 0),
                wxyz=self._turn(PicturePlane(camera, 1.0).rotation),
                position=camera.position,
            )
            node.on_click(lambda _, name=view.name: self._choose(name))
            self._nodes["cameras"].append(node)

    def _choose(self, name: str) -> None:
        self.view.value = name

    def _surroundings(self) -> None:
        """Show the scene as points that the field puts into some views."""
        if not (self.work.folder / field_note.FILE).is_file():
            return
        field = self.work.field(self.scene)
        step = max(1, len(self.scene.train) // _LOOKS)
        xyz: list[NDArray[Any]] = []
        rgb: list[NDArray[Any]] = []
        for i in self.scene.train[::step]:
            camera = self.scene.views[i].camera
            height = max(1, round(camera.height * _COARSE / camera.width))
            small = camera.resized(_COARSE, height)
            seen = render_view(field, small)
            origins, directions = (x.numpy() for x in small.rays())
            solid = seen.accumulation.ravel() > 0.7
            xyz.append((origins + directions * seen.depth.reshape(-1, 1))[solid])
            rgb.append(seen.rgb.reshape(-1, 3)[solid])
        node = self.server.scene.add_point_cloud(
            "/scene",
            points=np.concatenate(xyz).astype(np.float32),
            colors=np.concatenate(rgb),
            point_size=0.004 * self._reach,
        )
        self._nodes["scene"] = [node]
        self._show()

    def _object(self) -> None:
        """Show the object's points and mesh, if it has been segmented."""
        trimesh: Any = require("trimesh", EXTRA)
        for name, file in (("points", "object.ply"), ("mesh", "object_mesh.ply")):
            path = self.work.folder / file
            if not path.is_file():
                continue
            if name == "points":
                cloud = trimesh.load(path)
                node = self.server.scene.add_point_cloud(
                    "/object/points",
                    points=np.asarray(cloud.vertices, np.float32),
                    colors=np.asarray(cloud.colors)[:, :3],
                    point_size=0.008 * self._reach,
                )
            else:
                node = self.server.scene.add_mesh_trimesh("/object/mesh", trimesh.load(path))
            self._nodes[name] = [node]
        self._show()

    def _select(self) -> None:
        """Take up a view: its clicks start anew."""
        self.points, self.labels = [], []
        self._hang()
        for client in self.server.get_clients().values():
            self._look(client)

    def _look(self, client: Any) -> None:
        """Put a visitor where the chosen view was taken, a little behind."""
        if client is None:
            return
        plane = self.plane
        camera = plane.camera
        client.camera.wxyz = self._turn(plane.rotation)
        client.camera.position = camera.position - plane.rotation[:, 2] * 0.1 * self._reach
        client.camera.look_at = camera.position + plane.rotation[:, 2] * self._reach

    def _hang(self, matte: NDArray[np.float32] | None = None) -> None:
        """Hang the chosen view's picture: with its clicks, else as it was segmented, else plain."""
        view = self.scene.views[self.index]
        done = self.work.folder / "overlay" / f"{view.name}.png"
        if self.points:
            alpha = np.zeros(view.rgb().shape[:2], np.float32) if matte is None else matte
            picture = viz.overlay(view.rgb(), alpha, points=self.points, labels=self.labels)
        else:
            picture = load_image(done).rgb if done.is_file() else view.rgb()
        plane = self.plane
        width, height = plane.size
        node = self.server.scene.add_image(
            "/picture",
            picture,
            render_width=width,
            render_height=height,
            wxyz=self._turn(plane.rotation),
            position=plane.centre,
            format="png",
        )
        self._nodes["picture"] = [node]
        self._show()

    def click(self, origin: Any, direction: Any) -> None:
        """Take a click: where its ray meets the picture, the model is asked."""
        pixel = self.plane.pixel(origin, direction)
        if pixel is None:
            self.status.content = "That was beside the picture."
            return
        # prompts have the first pixel's centre at 0, 0
        self.points.append((pixel[0] - 0.5, pixel[1] - 0.5))
        self.labels.append(int(self.on_object.value))
        self._ask()

    def _forget(self, count: int) -> None:
        """Take clicks back, the last first."""
        keep = max(0, len(self.points) - count)
        self.points, self.labels = self.points[:keep], self.labels[:keep]
        self._ask()

    def _ask(self) -> None:
        """Ask the model about the clicks and hang the answer."""
        if not self.points:
            self._hang()
            return
        with self._busy:
            try:
                if self._segmenter is None:
                    self.status.content = "Loading the model ..."
                    self._segmenter = self.work.segmenter(self.scene)
                if self._ready != self.view.value:
                    tell = getattr(self._segmenter, "set_view", None)
                    if tell is not None:
                        tell(self.index)
                    self._segmenter.set_image(self.scene.views[self.index].rgb())
                    self._ready = self.view.value
                matte = ask(self._segmenter, self.points, self.labels)
            except ZimError as error:
                self.status.content = str(error)
                return
        self._hang(matte)
        share = float((matte > self.work.args.binarize).mean())
        self.status.content = (
            f"{len(self.points)} click(s) in {self.view.value}: {share:.1%} of the picture. "
            "More clicks, or *Segment in 3D*."
        )

    def lift(self) -> None:
        """Segment from the clicks in all views, write everything, and show the object."""
        if not self.points:
            self.status.content = "Click on the object in the picture first."
            return
        if not self._busy.acquire(blocking=False):
            self.status.content = "Still working."
            return
        try:
            work, scene = self.work, self.scene
            self.status.content = "Segmenting in 3D, this takes a while ..."
            field = work.field(scene)
            prompt = ScenePrompt(self.index, tuple(self.points), tuple(self.labels))
            done = work.segment(scene, field, prompt)
            self.status.content = "Writing pictures, points and mesh ..."
            work.write(scene, field, done.grid)
            work.finish(scene, done)
            self.points, self.labels, self._ready = [], [], None
            self._object()
            self._hang()
            self.status.content = (
                f"Done: {done.accepted:.0%} of the views accepted; files are in {work.folder}."
            )
        except ZimError as error:
            self.status.content = str(error)
        finally:
            self._busy.release()
