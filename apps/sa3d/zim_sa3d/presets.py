"""Manual prompts of SA3D by scene, in pixels of the pictures at a quarter of full size.

They index the first view of the training split. Nothing heavy is imported here.
"""

from __future__ import annotations

#: pictures are made this much smaller unless asked otherwise
FACTOR = 4
POINTS: dict[str, tuple[tuple[int, int], ...]] = {
    "trex": ((300, 300), (800, 480), (680, 600), (500, 400), (430, 400)),
    "horns": ((450, 300), (480, 500)),
    "horns_center": ((450, 300), (480, 500)),
    "horns_left": ((150, 400), (50, 520)),
    "fortress": ((400, 500), (500, 300)),
    "orchids": ((400, 300), (400, 180), (800, 580), (750, 300)),
    "room": ((450, 625), (425, 600)),
    "kitchen": ((400, 300), (500, 200)),
    "bonsai": ((450, 250), (450, 150)),
    "garden": ((380, 200), (380, 135)),
}
#: scenes photographed from all around (mip-NeRF 360); the others face forward (LLFF)
INWARD = ("kitchen", "bonsai", "garden", "bicycle", "counter", "stump", "flowers", "treehill")
LLFF = ("fern", "flower", "fortress", "horns", "leaves", "orchids", "room", "trex")
