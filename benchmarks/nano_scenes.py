"""The frozen pictures of ``benchmarks/nano.py``: which scenes, which prompts, and how to draw them.

    python benchmarks/nano_scenes.py --data ../shared/data

wrote ``benchmarks/nano_scenes.json``; it holds no picture, only seeds, prompts and hashes, and the
scenes are drawn again from the held-out sources of the collection whenever they are needed. A
scene whose pixels are others than the manifest says is refused.

Scenes are composites (objects with true alpha laid over photographs), 320 pixels a side. Seeds are
taken in order, and a scene is kept by rules that know nothing of any method:

- *scenes* (300): the target is one piece (95 % of alpha above half its maximum is connected) and
  has surroundings: its box is at most 0.6 of the picture's side. The generator's tighter views
  stand for the crop that the predictor makes by itself.
- *filling* (60): one piece, and the box is longer than 0.6 of the side: one large object.
- *nested* (60): two targets, one painted on the other: the part is nowhere more opaque than
  the whole, covers at least 1.5 % of the picture, and the two have an IoU of at most 0.6.

A target is *fine* where its soft pixels (0.05 < alpha < 0.95), spread along the circumference of
a disc as large as the target, would make a rim wider than 1.5 % of the picture's side: hair, lace,
smoke and blur; else *coarse*, as MicroMat-3K divides its mattes by eye.

Prompts: a box round alpha > 0.1 with every side moved outwards by up to 5 % of the box; a click
at 90 % of the largest depth of alpha > 0.9. In nested pairs the click on the whole lies beside
the part.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from zim.errors import ConfigError, ZimError
from zim.evaluation.samples import BOX_ALPHA, inner_point
from zim.prompts import mask_box
from zim_training.data.pack import GENERATOR_VERSION
from zim_training.data.scenes import Scene, SceneMaker

Set = Literal["scenes", "filling", "nested"]

MANIFEST = Path(__file__).with_name("nano_scenes.json")
SEED, SIDE = 20, 320
COUNTS: dict[Set, int] = {"scenes": 300, "filling": 60, "nested": 60}
#: longest side of the box over the picture's side that still leaves surroundings
SURROUNDED = 0.6
#: share of the target in its largest piece
ONE_PIECE = 0.95
#: rim width over the picture's side above which a target is fine
FINE_RIM = 0.015
#: boxes are loose by at most this share of their sides
LOOSE = 0.05
#: smallest part of a nested pair, as a share of the picture, and largest IoU with its whole
PART_SHARE, PART_IOU = 0.015, 0.6
#: levels (of 255) by which a block's mean may differ where another CPU rounds differently
ROUNDING = 1


@dataclass(frozen=True)
class Target:
    """What is asked for, and how.

    Attributes:
        index: of its alpha in the scene.
        group: ``fine`` or ``coarse``.
        box: x0, y0, x1, y1 in pixels, right and bottom exclusive.
        click: x, y.
    """

    index: int
    group: str
    box: tuple[int, int, int, int]
    click: tuple[int, int]


@dataclass(frozen=True)
class Case:
    """One line of the manifest.

    Attributes:
        name: unique.
        set: which of the three sets.
        seed: of the scene.
        kind: ``composite``.
        sha256: of image and target alphas as uint8.
        blocks: hexadecimal means of 4 x 4 blocks of the same, which survive another CPU's rounding.
        targets: one, or the part and the whole.
    """

    name: str
    set: Set
    seed: tuple[int, int]
    kind: str
    sha256: str
    blocks: str
    targets: tuple[Target, ...]


@dataclass(frozen=True, eq=False)
class Drawn:
    """A case's pixels: uint8 H x W x 3, float32 alphas of its targets, and whether they are exact.

    ``exact`` is False where pixels differ from the frozen ones by rounding only.
    """

    case: Case
    rgb: np.ndarray
    alphas: list[np.ndarray]
    exact: bool


class Painter:
    """Draws the frozen scenes again and refuses others."""

    def __init__(self, data: Path) -> None:
        """Open the collection and fix what OpenCV's results depend on.

        Raises:
            ZimError: the collection is not there.
        """
        cv2.setNumThreads(1)
        cv2.ipp.setUseIPP(False)  # its results depend on the processor
        self.maker = SceneMaker(data, "dev", SIDE, natural=0.0)

    def scene(self, seed: tuple[int, int]) -> Scene:
        """Draw a seed's scene."""
        return self.maker.make(seed)

    def draw(self, case: Case) -> Drawn:
        """Draw a case.

        Raises:
            ConfigError: its pixels are not those of the manifest.
        """
        scene = self.scene(case.seed)
        indices = [t.index for t in case.targets]
        if max(indices) < len(scene.alphas):
            image, alphas = _pixels(scene, indices)
            sha256, blocks = fingerprint(image, alphas)
            exact = sha256 == case.sha256
            if exact or _close(blocks, case.blocks):
                return Drawn(case, image, [a / np.float32(255) for a in alphas], exact)
        raise ConfigError(
            f"{case.name} is drawn differently from {MANIFEST.name} (frozen at generator version "
            f"{read_header()['generator_version']}, here {GENERATOR_VERSION}); check out a commit "
            "whose generator draws it, or point --data at the collection it was frozen with"
        )


def read_header() -> dict[str, Any]:
    """Return everything in the manifest but the cases."""
    return {k: v for k, v in _read().items() if k != "cases"}


def read_cases(which: Set | None = None) -> list[Case]:
    """Return the manifest's cases, of one set or of all.

    Raises:
        ConfigError: the manifest does not have the hash it states.
    """
    data = _read()
    if _digest(data["cases"]) != data["sha256"]:
        raise ConfigError(f"{MANIFEST.name} was edited: its cases do not have the hash it states")
    cases = []
    for row in data["cases"]:
        targets = tuple(
            Target(t["index"], t["group"], tuple(t["box"]), tuple(t["click"]))
            for t in row["targets"]
        )
        cases.append(Case(**{**row, "seed": tuple(row["seed"]), "targets": targets}))
    return [c for c in cases if which is None or c.set == which]


def fingerprint(image: np.ndarray, alphas: list[np.ndarray]) -> tuple[str, str]:
    """Hash uint8 pixels exactly, and by the means of 4 x 4 blocks."""
    digest = hashlib.sha256()
    means = b""
    for plane in (image, *alphas):
        digest.update(np.ascontiguousarray(plane).tobytes())
        grey = plane.mean(-1) if plane.ndim == 3 else plane
        size = SIDE // 4
        blocks = grey.reshape(4, size, 4, size).mean((1, 3))
        means += np.rint(blocks).astype(np.uint8).tobytes()
    return digest.hexdigest(), means.hex()


def rim_width(alpha: np.ndarray) -> float:
    """Soft pixels over the circumference of a disc as large as the target, in pixels."""
    soft = np.count_nonzero((alpha > 0.05) & (alpha < 0.95))
    return soft / (2 * np.sqrt(np.pi * max(1, np.count_nonzero(alpha > 0.05))))


def is_fine(alpha: np.ndarray) -> bool:
    """Decide whether a target counts as fine: a wide soft rim for its size."""
    return rim_width(alpha) > FINE_RIM * max(alpha.shape)


def choose(painter: Painter) -> Iterator[Case]:
    """Take seeds in order and keep what the rules keep, until every set is full."""
    left = dict(COUNTS)
    number = 0
    while any(left.values()):
        seed, number = (SEED, number), number + 1
        scene = painter.scene(seed)
        pair = _nested(scene) if left["nested"] else None
        which: Set | None = "nested" if pair else _set_of(scene.alphas[0])
        if which is None or not left[which]:
            continue
        indices = list(pair or (0,))
        image, alphas = _pixels(scene, indices)
        left[which] -= 1
        name = f"{which}-{COUNTS[which] - left[which] - 1:03d}"
        targets = []
        for index, alpha in zip(indices, alphas, strict=True):
            targets.append(_target(index, alpha, alphas if pair else [], seed))
        yield Case(name, which, seed, scene.kind, *fingerprint(image, alphas), tuple(targets))


def _target(index: int, alpha: np.ndarray, pair: list[np.ndarray], seed: tuple[int, int]) -> Target:
    rng = np.random.default_rng((*seed, index, 1))
    matte = alpha / np.float32(255)
    x0, y0, x1, y1 = (float(v) for v in mask_box(matte, BOX_ALPHA))
    grow = rng.uniform(0, LOOSE, 4) * [x1 - x0, y1 - y0, x1 - x0, y1 - y0]
    height, width = alpha.shape
    box = (
        max(0, round(x0 - grow[0])),
        max(0, round(y0 - grow[1])),
        min(width, round(x1 + grow[2])),
        min(height, round(y1 + grow[3])),
    )
    group = "fine" if is_fine(matte) else "coarse"
    place = matte
    if pair and alpha is pair[1]:  # the whole is clicked beside its part
        place = np.where(pair[0] > 0, 0, matte).astype(np.float32)
    x, y = inner_point(place, f"{seed}:{index}", SEED)
    return Target(index, group, box, (int(x), int(y)))


def _set_of(alpha: np.ndarray) -> Set | None:
    solid = (alpha > 0.5 * alpha.max()).astype(np.uint8)
    stats = cv2.connectedComponentsWithStats(solid)[2]
    if stats[1:, cv2.CC_STAT_AREA].max() < ONE_PIECE * solid.sum():
        return None
    x0, y0, x1, y1 = mask_box(alpha, BOX_ALPHA)
    return "scenes" if max(x1 - x0, y1 - y0) <= SURROUNDED * SIDE else "filling"


def _nested(scene: Scene) -> tuple[int, int] | None:
    """Find the first part and its whole."""
    for part, a in enumerate(scene.alphas):
        for whole, b in enumerate(scene.alphas):
            inside = part != whole and (a <= b + 1e-3).all() and a.mean() >= PART_SHARE
            if inside and np.minimum(a, b).sum() <= PART_IOU * np.maximum(a, b).sum():
                return part, whole
    return None


def _pixels(scene: Scene, indices: list[int]) -> tuple[np.ndarray, list[np.ndarray]]:
    return scene.image, [np.rint(scene.alphas[i] * 255).astype(np.uint8) for i in indices]


def _close(one: str, other: str) -> bool:
    a, b = (np.frombuffer(bytes.fromhex(text), np.uint8).astype(int) for text in (one, other))
    return len(a) == len(b) and int(np.abs(a - b).max()) <= ROUNDING


def _read() -> dict[str, Any]:
    return json.loads(MANIFEST.read_text(encoding="utf-8"))


def _digest(cases: list[dict[str, Any]]) -> str:
    text = json.dumps(cases, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def freeze(data: Path) -> None:
    """Choose the cases and write the manifest."""
    cases = []
    for case in choose(Painter(data)):
        cases.append(json.loads(json.dumps(asdict(case))))
        print(f"\r{len(cases)}/{sum(COUNTS.values())}", end="", file=sys.stderr)
    cases.sort(key=lambda c: (list(COUNTS).index(c["set"]), c["name"]))
    header = {
        "generator_version": GENERATOR_VERSION,
        "seed": SEED,
        "side": SIDE,
        "split": "dev",
        "rules": "benchmarks/nano_scenes.py",
        "sha256": _digest(cases),
    }
    head = json.dumps(header, indent=1)[:-2]
    lines = ",\n".join("  " + json.dumps(case) for case in cases)
    MANIFEST.write_text(f'{head},\n "cases": [\n{lines}\n ]\n}}\n', encoding="utf-8")


def main() -> int:
    """Write the manifest; 1 and one line on a known failure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the image collection")
    args = parser.parse_args()
    if MANIFEST.exists():
        print(f"error: {MANIFEST.name} is frozen; delete it to choose anew", file=sys.stderr)
        return 1
    try:
        freeze(args.data)
    except ZimError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
