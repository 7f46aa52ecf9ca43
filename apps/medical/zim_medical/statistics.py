"""Intervals and tests that respect that the slices of a patient are not independent."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zim._extras import require

RESAMPLES = 2000
#: with fewer patients a signed-rank test cannot reach p < 0.05
LEAST_PATIENTS = 6


def cluster_interval(
    values: Sequence[float], clusters: Sequence[Hashable], seed: int = 0
) -> tuple[float, float] | None:
    """Return the 95 % percentile bootstrap interval of the mean, resampling whole patients.

    Args:
        values: one per slice.
        clusters: the patient of each.
        seed: of the resampling.

    Returns:
        Lower and upper end, or None with fewer than two patients.
    """
    sums, sizes, _ = _by_cluster(values, clusters)
    if len(sums) < 2:
        return None
    drawn = np.random.default_rng(seed).integers(len(sums), size=(RESAMPLES, len(sums)))
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


@dataclass(frozen=True)
class Comparison:
    """A model against another on the same pictures.

    Attributes:
        difference: mean of the paired differences over pictures.
        interval: its 95 % interval over patients, or None.
        patients: how many.
        p: two-sided Wilcoxon signed-rank on patient means, or None with too few patients.
        effect: matched rank-biserial correlation, -1 to 1, or None.
    """

    difference: float
    interval: tuple[float, float] | None
    patients: int
    p: float | None
    effect: float | None


def compare(
    first: Sequence[float], second: Sequence[float], clusters: Sequence[Hashable], seed: int = 0
) -> Comparison:
    """Compare paired values; positive differences favour the first."""
    gap = np.subtract(first, second)
    sums, sizes, _ = _by_cluster(gap.tolist(), clusters)
    means = sums / sizes
    p = effect = None
    if len(means) >= LEAST_PATIENTS:
        p, effect = _signed_rank(means)
    return Comparison(
        float(gap.mean()), cluster_interval(gap.tolist(), clusters, seed), len(means), p, effect
    )


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p-values adjusted for all tests together (Holm 1979); None stays None."""
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, i) in enumerate(known):
        highest = max(highest, min(1.0, p * (len(known) - rank)))
        adjusted[i] = highest
    return adjusted


def _signed_rank(differences: NDArray[np.float64]) -> tuple[float, float]:
    if not np.any(differences):
        return 1.0, 0.0
    stats: Any = require("scipy.stats", "medical")
    p = float(stats.wilcoxon(differences, zero_method="zsplit").pvalue)
    ranks = stats.rankdata(np.abs(differences))
    return p, float((np.sign(differences) * ranks).sum() / ranks.sum())


def _by_cluster(
    values: Sequence[float], clusters: Sequence[Hashable]
) -> tuple[NDArray[np.float64], NDArray[np.float64], list[Hashable]]:
    names = list(dict.fromkeys(clusters))
    index = {name: i for i, name in enumerate(names)}
    where = np.array([index[c] for c in clusters], int)
    sums = np.bincount(where, np.asarray(values, float), len(names)).astype(np.float64)
    return sums, np.bincount(where, minlength=len(names)).astype(np.float64), names
