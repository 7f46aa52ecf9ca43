"""Apply a review: MicroMat's folders, prompts and ``data_list.txt``."""

from __future__ import annotations

import json
import shutil
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from zim.errors import ConfigError, reason
from zim.images import read_alpha
from zim.output import atomic_write, encode_alpha
from zim_training.matting.prompting import box_prompt, point_prompt
from zim_training.testset.candidates import FOLDER, read_candidates

Decision = dict[str, Any]
LEVELS = ("fine", "coarse")
#: what a set consists of, beside the candidates
PARTS, LIST = ("img", "seg", "matte", "prompt"), "data_list.txt"


def read_review(path: Path) -> dict[str, Decision]:
    """Read what the review page saved: ``{key: {"level": "fine", "strokes": [...]}}``.

    Raises:
        ConfigError: unreadable, or something else.
    """
    try:
        data = json.loads(path.read_text())
        decisions = data["accepted"]
        for decision in decisions.values():
            if decision["level"] not in ("fine", "coarse"):
                raise ValueError(f"level {decision['level']!r}")
            for stroke in decision.get("strokes", []):
                _ = float(stroke["alpha"]), float(stroke["radius"]), list(stroke["points"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path} is no saved review ({reason(error)}); expected the file that review.html saves"
        ) from error
    return decisions


def paint(alpha: NDArray[np.float32], strokes: list[dict[str, Any]]) -> NDArray[np.float32]:
    """Repair a matte with brush strokes: ``alpha`` 0 to 1, ``radius`` and ``points`` in pixels."""
    out = alpha.copy()
    for stroke in strokes:
        points = np.round(np.asarray(stroke["points"], np.float64)).astype(np.int32)
        radius = max(1, round(float(stroke["radius"])))
        value = float(np.clip(stroke["alpha"], 0, 1))
        if len(points) > 1:
            cv2.polylines(out, [points.reshape(-1, 1, 2)], False, value, 2 * radius)
        for x, y in points:
            cv2.circle(out, (int(x), int(y)), radius, value, -1)
    return out


def build(out: Path, decisions: dict[str, Decision], seed: int = 0) -> dict[str, int]:
    """Write ``img/``, ``matte/{fine,coarse}/``, ``prompt/{fine,coarse}/``, ``seg/`` and the list.

    The new set is written beside the old one, which it replaces once it is complete.

    Args:
        out: folder with the candidates.
        decisions: accepted candidates by key.
        seed: of the prompts.

    Returns:
        The number of mattes by level.

    Raises:
        ConfigError: no candidates, a decision about an unknown one, or files of somebody else where
            the set goes.
    """
    rows = {row["key"]: row for row in read_candidates(out)}
    if unknown := sorted(set(decisions) - set(rows)):
        raise ConfigError(f"the review names {unknown[0]}, which is no candidate of {out}")
    _check_ours(out)
    fresh = out / ".set.tmp"
    shutil.rmtree(fresh, ignore_errors=True)  # of a start that was killed
    try:
        lines, counts = _write_set(fresh, out / FOLDER, rows, decisions, seed)
        for part in PARTS:
            shutil.rmtree(out / part, ignore_errors=True)  # of an earlier review
        # before the files it names: whenever this is cut off, the list names all that is there
        atomic_write(out / LIST, "".join(f"{line}\n" for line in lines).encode())
        for part in PARTS:
            (fresh / part).rename(out / part)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return counts


def _check_ours(out: Path) -> None:
    """Refuse to replace folders with files that no earlier review wrote."""
    listing = out / LIST
    try:
        ours = set(listing.read_text(encoding="utf-8").split()) if listing.is_file() else set()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{listing} is no list of a test set ({reason(error)})") from error
    found = (path for part in PARTS for path in (out / part).rglob("*") if not path.is_dir())
    # what systems leave in folders that somebody has looked into
    files = (p for p in found if not p.name.startswith(".") and p.name != "Thumbs.db")
    strange = next((p for p in files if p.relative_to(out).as_posix() not in ours), None)
    if strange is not None:
        raise ConfigError(
            f"{strange} was not written by testset, which replaces {strange.parent}; move it away "
            "or choose another --output"
        )


def _write_set(
    fresh: Path,
    candidates: Path,
    rows: dict[str, dict[str, Any]],
    decisions: dict[str, Decision],
    seed: int,
) -> tuple[list[str], dict[str, int]]:
    """Write a set into a new folder; return the lines of its list and the mattes by level."""
    for folder in ("img", "seg", *(f"{p}/{s}" for p in ("matte", "prompt") for s in LEVELS)):
        (fresh / folder).mkdir(parents=True)
    lines: list[str] = []
    counts: dict[str, int] = dict.fromkeys(LEVELS, 0)
    for key in sorted(decisions):
        decision, name = decisions[key], rows[key]["image"]
        level = decision["level"]
        matte = read_alpha(candidates / "matte" / f"{key}.png")
        alpha = paint(matte, decision.get("strokes", []))
        if not (alpha > 0.1).any():
            continue
        parts = (
            f"img/{name}.png",
            f"matte/{level}/{key}.png",
            f"prompt/{level}/{key}.json",
            f"seg/{key}.png",
        )
        shutil.copyfile(candidates / "img" / f"{name}.png", fresh / parts[0])
        atomic_write(fresh / parts[1], encode_alpha(alpha))
        prompt = json.dumps(_prompt(key, alpha, seed))
        atomic_write(fresh / parts[2], prompt.encode())
        shutil.copyfile(candidates / "seg" / f"{key}.png", fresh / parts[3])
        lines.append(" ".join(parts))
        counts[level] += 1
    return lines, counts


def _prompt(key: str, alpha: NDArray[np.float32], seed: int) -> dict[str, Any]:
    rng = np.random.default_rng((seed, zlib.crc32(key.encode())))
    box, _ = box_prompt(rng, alpha, 0.0)
    points, labels = point_prompt(rng, alpha, np.zeros(alpha.shape, bool), 0.0)
    marks = zip(points.tolist(), labels.tolist(), strict=True)
    return {
        "point": [[int(x), int(y), int(label)] for (x, y), label in marks if label >= 0],
        "bbox": [int(v) for v in box.reshape(4)],
    }
