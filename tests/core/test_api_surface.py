"""The public names of ``zim``: a change here is a change for every user."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import zim

PUBLIC = {
    "Matte",
    "Prompt",
    "Zim",
    "ZimAutomaticMaskGenerator",
    "ZimConfig",
    "ZimError",
    "ZimPredictor",
    "__version__",
    "build",
    "load",
    "matte",
    "metrics",
    "weights",
}

#: parameter names in order, as SAM's SamPredictor and this project's design promise them
SIGNATURES = {
    "load": ["name", "device", "dtype", "compile"],
    "matte": ["image", "points", "box", "scribble", "mask", "labels", "model", "refine"],
    "build": ["config", "seed"],
    "ZimPredictor.set_image": ["self", "image", "image_format"],
    "ZimPredictor.predict": [
        "self",
        "point_coords",
        "point_labels",
        "box",
        "mask_input",
        "multimask_output",
        "return_logits",
    ],
    "ZimPredictor.get_image_embedding": ["self"],
    "ZimPredictor.reset_image": ["self"],
    "ZimAutomaticMaskGenerator": [
        "model",
        "points_per_side",
        "points_per_batch",
        "pred_iou_thresh",
        "stability_score_thresh",
        "stability_score_offset",
        "box_nms_thresh",
        "crop_n_layers",
        "crop_nms_thresh",
        "crop_overlap_ratio",
        "crop_n_points_downscale_factor",
        "point_grids",
        "min_mask_region_area",
        "output_mode",
        "space",
        "mask_threshold",
        "multimask",
        "max_masks",
        "outline_contrast_thresh",
        "alpha_dtype",
    ],
    "ZimAutomaticMaskGenerator.generate": ["self", "image"],
    "Zim.save_pretrained": ["self", "folder", "half"],
}


def test_public_names() -> None:
    assert set(zim.__all__) == PUBLIC
    assert set(dir(zim)) == PUBLIC


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_public_name_loads(name: str) -> None:
    assert getattr(zim, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = zim.no_such_name  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("path", sorted(SIGNATURES))
def test_signatures(path: str) -> None:
    target = zim
    for part in path.split("."):
        target = getattr(target, part)
    assert callable(target)
    assert list(inspect.signature(target).parameters) == SIGNATURES[path]


@pytest.mark.parametrize("name", ["sad", "mse", "mae", "grad", "conn", "grad_dim", "conn_dim"])
def test_metrics_are_there(name: str) -> None:
    assert list(inspect.signature(getattr(zim.metrics, name)).parameters)[:2] == ["pred", "target"]


def test_importing_zim_is_light() -> None:
    code = "import sys, zim; sys.exit(str(sorted({'torch', 'numpy', 'cv2'} & set(sys.modules))))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "[]"
