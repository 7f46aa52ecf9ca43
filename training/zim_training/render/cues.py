"""Cues of many prompts at once on the training device: ``zim.cues`` without GrabCut.

Planes 1 to 5 are those of :func:`zim.cues.compute_cues` up to rounding at the borders of colour
bins; planes 0 and 6 come from GrabCut and stay at 0, as training blanks them for some prompts.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from zim.cues import CUE_PLANES
from zim_training.data.resident import pictured
from zim_training.data.variation import to_device

_BINS = 16
#: linear RGB to XYZ relative to D65's white
_TO_XYZ = np.array(
    [
        [0.412453 / 0.950456, 0.357580 / 0.950456, 0.180423 / 0.950456],
        [0.212671, 0.715160, 0.072169],
        [0.019334 / 1.088754, 0.119193 / 1.088754, 0.950227 / 1.088754],
    ]
)
#: what Lab is divided by, and moved by before, to lie in 0 to 1
_RANGE = np.array([[100.0, 160.0, 160.0], [0.0, 80.0, 80.0]])


class DeviceCues:
    """Describes prompts on pictures, one of each."""

    def __init__(self, image: Tensor, size: Tensor) -> None:
        """Look at the colours of pictures.

        Args:
            image: ``n 3 S S`` RGB, 0 to 255.
            size: ``n 2`` even height and width of the pictures, the longer one S.
        """
        half = F.avg_pool2d(image.round(), 2).add(0.5).floor() / 255.0
        self.size = size // 2
        self.picture = pictured(self.size, half.shape[-1])[:, 0]
        self.border = _border(self.size, half.shape[-1]) * self.picture
        half = _continued(half, self.size)
        self.lab = lab_of(half)
        self.bins = _bins(self.lab)
        self.smooth = _smoothed(self.lab, (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)).flatten(2)

    def describe(self, points: Tensor, labels: Tensor, mask: Tensor, has_mask: Tensor) -> Tensor:
        """Describe one prompt on every picture.

        Args:
            points: ``n N 2`` (x, y).
            labels: ``n N`` as in :func:`zim.cues.compute_cues`.
            mask: ``n 1 m m`` logits of an earlier answer.
            has_mask: ``n`` bool, whether there is one.

        Returns:
            ``n CUE_PLANES S/2 S/2``.
        """
        count, side = len(points), self.lab.shape[-1]
        last = (self.size.flip(1) - 1).float()[:, None]
        spots = torch.minimum(((points + 0.5) / 2 - 0.5).clamp_min(0), last)
        positive, negative = labels == 1, labels == 0
        box = _box_plane(spots, labels, side)
        inside, outside = self._weights(spots, labels, box, mask, has_mask)
        cues = torch.zeros(count, CUE_PLANES, side, side, device=points.device)
        cues[:, 1] = _colour_ratio(self.bins, inside, outside)
        cues[:, 2] = self._likeness(spots, positive)
        cues[:, 3] = _closeness(spots, positive, side)
        cues[:, 4] = _closeness(spots, negative, side)
        cues[:, 5] = box
        return cues * self.picture[:, None]

    def _weights(
        self, spots: Tensor, labels: Tensor, box: Tensor, mask: Tensor, has_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """How much every cell counts as object and as surroundings, ``n s s`` each."""
        side, shape = box.shape[-1], (len(spots), 1, 1)
        probability = F.interpolate(mask, (side, side), mode="bilinear")[:, 0].sigmoid()
        positive = labels == 1
        around = _wide(spots, positive, side, 0.04 * side)
        masked, boxed = has_mask.view(shape), (labels >= 2).any(1).view(shape)
        inside = torch.where(masked, probability, torch.where(boxed, box, around))
        free = (1.0 - box) * self.picture
        share = free.sum((1, 2)) / self.picture.sum((1, 2))
        free = torch.where((share < 0.05).view(shape), self.border, free)
        beside = torch.where(boxed, free, self.border * (1.0 - around))
        beside = torch.where(masked, 1.0 - probability, beside)
        near = inside * 0.5 + _wide(spots, positive, side, 4.0)
        inside = torch.where(positive.any(1).view(shape), near, inside)
        beside = beside + 4 * _wide(spots, labels == 0, side, 4.0)
        return inside * self.picture, beside * self.picture

    def _likeness(self, spots: Tensor, positive: Tensor) -> Tensor:
        """Likeness of every colour to that of the most similar positive click, in [0, 1]."""
        flat = _flat(spots, self.lab.shape[-1])
        nearest = torch.full_like(self.lab[:, 0], torch.inf)
        for k in range(spots.shape[1]):  # one after the other: all together would not fit
            colour = self.smooth.gather(2, flat[:, None, k : k + 1].expand(-1, 3, -1))
            apart = (self.lab - colour[..., None]).square().sum(1)
            apart = torch.where(positive[:, k, None, None], apart, torch.inf)
            nearest = torch.minimum(nearest, apart)
        return torch.exp(nearest / (-2 * 14.0**2))


def lab_of(rgb: Tensor) -> Tensor:
    """CIE Lab (D65) of sRGB ``n 3 h w`` in [0, 1]: L in 0..100, as OpenCV has it."""
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = to_device(_TO_XYZ, rgb.device)
    xyz = torch.einsum("ij,njhw->nihw", to_xyz, linear)
    f = torch.where(xyz > 0.008856, xyz.clamp_min(1e-6) ** (1 / 3), 7.787 * xyz + 16 / 116)
    x, y, z = f.unbind(1)
    light = torch.where(xyz[:, 1] > 0.008856, 116 * y - 16, 903.3 * xyz[:, 1])
    return torch.stack([light, 500 * (x - y), 200 * (y - z)], 1)


def _flat(spots: Tensor, side: int) -> Tensor:
    """Number of the cell that every spot ``n N 2`` lies in."""
    cell = spots.round().long()
    return cell[..., 1] * side + cell[..., 0]


def _box_plane(spots: Tensor, labels: Tensor, side: int) -> Tensor:
    """Share of every cell that lies in the box; ones without a box."""
    line = torch.arange(side, device=spots.device, dtype=torch.float32)
    corner = labels >= 2
    planes = []
    for axis in (0, 1):
        at = spots[..., axis]
        low = torch.where(corner, at, torch.inf).amin(1)[:, None]
        high = torch.where(corner, at, -torch.inf).amax(1)[:, None]
        planes.append((torch.minimum(line - low, high - line) + 1).clamp(0, 1))
    plane = torch.minimum(planes[1][:, :, None], planes[0][:, None])
    return torch.where(corner.any(1)[:, None, None], plane, 1.0)


def _bins(lab: Tensor) -> Tensor:
    """Number of every cell's Lab bin, ``n s*s``."""
    scale = to_device(_RANGE, lab.device)
    shares = (lab + scale[1, :, None, None]) / scale[0, :, None, None]
    index = (shares * _BINS).long().clamp(0, _BINS - 1)
    return ((index[:, 0] * _BINS + index[:, 1]) * _BINS + index[:, 2]).flatten(1)


def _colour_ratio(bins: Tensor, inside: Tensor, outside: Tensor) -> Tensor:
    """Log-likelihood ratio of smoothed Lab histograms, object against surroundings."""
    found = [_histogram(bins, weight).gather(1, bins) for weight in (inside, outside)]
    ratio = ((found[0] + 1e-4) / (found[1] + 1e-4)).log().div(4).clamp(-1, 1)
    return _smoothed(ratio.view_as(inside)[:, None], (0.25, 0.5, 0.25))[:, 0]


def _histogram(bins: Tensor, weight: Tensor) -> Tensor:
    """Normalised histograms over Lab bins, smoothed with (1, 2, 1) twice along every axis."""
    counts = torch.zeros(len(bins), _BINS**3, device=bins.device)
    cube = counts.scatter_add_(1, bins, weight.flatten(1)).view(-1, _BINS, _BINS, _BINS)
    line = _line(_BINS, bins.device)
    cube = torch.einsum("nabc,xa,yb,zc->nxyz", cube, line, line, line)
    return cube.flatten(1) / cube.sum((1, 2, 3)).clamp_min(1e-8)[:, None]


def _closeness(spots: Tensor, chosen: Tensor, side: int) -> Tensor:
    """Gaussian bumps on the clicks, 3 cells wide, joined by the maximum."""
    line = torch.arange(side, device=spots.device, dtype=torch.float32)
    across, down = (torch.exp((line - spots[..., k, None]) ** 2 / (-2 * 3.0**2)) for k in (0, 1))
    down = down * chosen[..., None]
    plane = torch.zeros(len(spots), side, side, device=spots.device)
    for k in range(spots.shape[1]):
        plane = torch.maximum(plane, down[:, k, :, None] * across[:, k, None])
    return plane


def _wide(spots: Tensor, chosen: Tensor, side: int, sigma: float) -> Tensor:
    """Clicks blurred by ``sigma`` cells, the highest place one."""
    marks = torch.zeros(len(spots), side * side, device=spots.device)
    marks = marks.scatter_reduce_(1, _flat(spots, side), chosen.float(), "amax")
    blur = _gaussian(side, sigma, spots.device)
    plane = blur @ marks.view(-1, side, side) @ blur.T
    return plane / plane.flatten(1).amax(1).clamp_min(1e-8)[:, None, None]


def _smoothed(planes: Tensor, kernel: tuple[float, ...]) -> Tensor:
    """Filter ``n c h w`` with a separable kernel, mirrored at the edges."""
    reach, channels = len(kernel) // 2, planes.shape[1]
    weight = to_device(np.array(kernel), planes.device).expand(channels, 1, 1, -1)
    padded = F.pad(planes, (reach,) * 4, mode="reflect")
    across = F.conv2d(padded, weight, groups=channels)
    return F.conv2d(across, weight.transpose(2, 3), groups=channels)


@lru_cache(maxsize=16)
def _gaussian(side: int, sigma: float, device: torch.device) -> Tensor:
    """Return the matrix of ``cv2.GaussianBlur`` on lines of ``side`` cells."""
    blurred = cv2.GaussianBlur(np.eye(side), (1, 0), sigmaX=1.0, sigmaY=max(1.0, sigma))
    return torch.from_numpy(blurred.astype(np.float32)).to(device)


@lru_cache(maxsize=4)
def _line(bins: int, device: torch.device) -> Tensor:
    """Return the matrix that smooths a line with (1, 2, 1) / 4 twice, its ends going on."""
    padded = np.pad(np.eye(bins), ((1, 1), (0, 0)), mode="edge")
    once = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
    return torch.from_numpy((once @ once).astype(np.float32)).to(device)


def _border(size: Tensor, side: int) -> Tensor:
    """Ones on a strip of 6 % along the edges of pictures, as :func:`zim.classical.border_strip`."""
    strip = (0.06 * size.amin(1)).round().clamp_min(1)[:, None]
    line = torch.arange(side, device=size.device)
    within = [(line >= strip) & (line < size[:, k, None] - strip) for k in (0, 1)]
    return 1.0 - (within[0][:, :, None] & within[1][:, None]).float()


def _continued(pictures: Tensor, size: Tensor) -> Tensor:
    """Repeat the last row and column of pictures ``n c s s`` beyond their ends."""
    line = torch.arange(pictures.shape[-1], device=pictures.device)
    rows, columns = (torch.minimum(line, size[:, k, None] - 1) for k in (0, 1))
    pictures = pictures.gather(2, rows[:, None, :, None].expand(pictures.shape))
    return pictures.gather(3, columns[:, None, None].expand(pictures.shape))
