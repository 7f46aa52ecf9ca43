"""Score a mini detector on frozen composites: does it find the named thing?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zim.masks import box_iou
from zim.protocols import Detector
from zim_training.detector.scenes import THINGS, Composite, CompositeMaker

#: composites of the frozen test; their seeds begin with this number
COMPOSITES, SEED = 300, 20_000
#: an answer whose box overlaps the truth by at least this IoU is right
RIGHT = 0.5


@dataclass(frozen=True)
class Score:
    """What was measured.

    Attributes:
        recall: share of composites whose best-scored answer is right (threshold 0).
        confident: the same for answers above the detector's own threshold.
        chance: the same for a true box of the composite picked at random.
        false: share of composites for which a name that is not there gets an answer above the
            detector's own threshold.
        coloured: recall for "COLOUR thing", where one thing alone has the colour.
        by_name: right answers and questions for every name asked.
    """

    recall: float
    confident: float
    chance: float
    false: float
    coloured: float
    by_name: dict[str, tuple[int, int]]

    def to_dict(self) -> dict[str, Any]:
        """Return it for a JSON file, numbers rounded."""
        shares = {
            k: round(getattr(self, k), 4)
            for k in ("recall", "confident", "chance", "false", "coloured")
        }
        return shares | {"by_name": {k: list(v) for k, v in sorted(self.by_name.items())}}


def frozen(root: Path, side: int = 192) -> list[Composite]:
    """Return the test composites: held-out backgrounds, every name in turn, 3 distractors each.

    The first thing is the one asked for.
    """
    maker = CompositeMaker(root, "dev", side)
    made = []
    for i in range(COMPOSITES):
        rng = np.random.default_rng((SEED, i))
        asked = maker.names[i % len(maker.names)]
        others = [n for n in maker.names if n != asked]
        names = (asked, *rng.choice(others, THINGS - 1, replace=False))
        # painted in random order, so that what is asked for is not always at the bottom
        order = rng.permutation(THINGS)
        composite = maker.make((SEED, i, 1), tuple(names[k] for k in order))
        back = np.argsort(order)
        things = tuple(composite.things[k] for k in back)
        made.append(Composite(composite.image, composite.boxes[back], things))
    return made


def score(detector: Detector, sure: Detector, made: list[Composite]) -> Score:
    """Ask for the first thing of every composite.

    Args:
        detector: with a threshold of 0, best answer first.
        sure: the same with the threshold it is shipped with.
        made: composites, see :func:`frozen`.
    """
    rng = np.random.default_rng(SEED)
    names = sorted({t.name for m in made for t in m.things})
    right, confident, false, chance = [], [], [], []
    coloured: list[bool] = []
    by_name: dict[str, tuple[int, int]] = {}
    for m in made:
        asked, truth = m.things[0].name, m.boxes[0]
        hit = _best_is(detector, m.image, asked, truth)
        right.append(hit)
        confident.append(_best_is(sure, m.image, asked, truth))
        chance.append(box_iou(m.boxes[int(rng.integers(len(m.boxes)))], truth) >= RIGHT)
        hits, asks = by_name.get(asked, (0, 0))
        by_name[asked] = (hits + hit, asks + 1)
        absent = [n for n in names if n not in {t.name for t in m.things}]
        false.append(bool(sure.detect(m.image, [str(rng.choice(absent))])))
        own = [c for c in m.things[0].colours if all(c not in t.colours for t in m.things[1:])]
        if own:
            coloured.append(_best_is(detector, m.image, f"{own[0]} thing", truth))
    return Score(
        recall=float(np.mean(right)),
        confident=float(np.mean(confident)),
        chance=float(np.mean(chance)),
        false=float(np.mean(false)),
        coloured=float(np.mean(coloured)),
        by_name=by_name,
    )


def _best_is(detector: Detector, image: Any, phrase: str, truth: Any) -> bool:
    found = detector.detect(image, [phrase])
    return bool(found) and box_iou(found[0].box, truth) >= RIGHT
