"""A ball in a field whose opacity is known, and cameras around it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from zim_sa3d.cameras import look_at
from zim_sa3d.grid_field import GridField
from zim_sa3d.space import Space


@pytest.fixture
def ball_field() -> GridField:
    """A solid red ball of radius 0.5 in the middle of an empty box."""
    line = torch.linspace(-1, 1, 33)
    z, y, x = torch.meshgrid(line, line, line, indexing="ij")
    inside = (x**2 + y**2 + z**2).sqrt() < 0.5
    raw = torch.where(inside, 12.0, -8.0)
    colour = torch.where(inside, 4.0, -4.0)
    voxels = torch.stack([raw, colour, -colour.abs(), -colour.abs()])[None]
    field = GridField(Space("box", (0.0, 0.0, 0.0), 1.0, 0.05), voxels, torch.zeros(3), 64)
    field.find_empty()
    return field


@pytest.fixture
def cameras():
    turns = np.arange(4) * 1.7
    return [
        look_at((2.5 * np.cos(a), 2.5 * np.sin(a), 0.8), (0, 0, 0), size=(24, 24), fov=40)
        for a in turns
    ]
