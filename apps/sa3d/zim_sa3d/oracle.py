"""A segmenter that knows the answer: true mattes, to measure everything but the segmenter."""

from __future__ import annotations

from typing import Any

import numpy as np

from zim_sa3d.scene import Scene


class OracleSegmenter:
    """Answers clicks with the true matte of the object that most of them are on.

    Clicks on no object get everything that is no object, as a real segmenter would give the table.
    """

    def __init__(self, scene: Scene) -> None:
        """Take a scene whose views have true mattes."""
        self._scene = scene
        self._mattes: dict[str, np.ndarray] = {}

    def set_view(self, index: int) -> None:
        """Be told which view comes next."""
        view = self._scene.views[index]
        self._mattes = {name: view.matte(name) for name in self._scene.objects}

    def set_image(self, image: Any) -> None:
        """Take the picture, which is not needed."""

    def predict(
        self,
        point_coords: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        box: np.ndarray | None = None,
        mask_input: np.ndarray | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Answer one prompt; a box means the object that fills it best."""
        del mask_input, return_logits
        nothing = np.clip(1 - sum(self._mattes.values()), 0, 1).astype(np.float32)
        options = [*self._mattes.values(), nothing]
        if point_coords is not None and len(point_coords):
            xy = np.asarray(point_coords).round().astype(int)
            sign = np.where(np.asarray(point_labels) == 1, 1.0, -1.0)
            rows = np.clip(xy[:, 1], 0, nothing.shape[0] - 1)
            cols = np.clip(xy[:, 0], 0, nothing.shape[1] - 1)
            marks = [float((alpha[rows, cols] * sign).sum()) for alpha in options]
        else:
            x0, y0, x1, y1 = (0, 0, 1, 1) if box is None else np.asarray(box).round().astype(int)
            marks = [float(alpha[y0:y1, x0:x1].sum() / (1 + alpha.sum())) for alpha in options]
        best = options[int(np.argmax(marks))]
        count = 3 if multimask_output else 1
        return np.stack([best] * count), np.ones(count, np.float32), np.stack([best] * count)
