import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.ops

from zim.model.named_objects import NamedObjects, NamedObjectsConfig, boxes_of
from zim_training.detector.evaluate import frozen
from zim_training.detector.names import COLOURS, name_of, named_files, unicode_names
from zim_training.detector.scenes import CompositeMaker, colours_of
from zim_training.detector.train import (
    DetectorConfig,
    DetectorTrainer,
    _giou,
    losses_of,
    targets_of,
)

DATA = Path("../shared/data")
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data")


def test_names_come_from_file_names():
    table = unicode_names()
    assert name_of("foregrounds/fluent_1f955.png", table) == "carrot"
    assert name_of("foregrounds/noto_1f430.png", table) == "rabbit"  # RABBIT FACE
    assert name_of("foregrounds/fluent_1f600.png", table) is None  # a face
    assert name_of("foregrounds/fluent_1f9d1-200d-1f680.png", table) is None  # a sequence
    assert name_of("foregrounds/cut_threestudio_dog1_rgba_239.png", table) == "dog"
    assert name_of("foregrounds/cut_trellis-2_0a34fae7.png", table) is None


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((220, 20, 20), "red"),
        ((250, 150, 20), "orange"),
        ((250, 230, 40), "yellow"),
        ((40, 180, 60), "green"),
        ((30, 90, 220), "blue"),
        ((130, 40, 200), "purple"),
        ((250, 120, 180), "pink"),
        ((120, 70, 30), "brown"),
        ((15, 15, 15), "black"),
        ((250, 250, 250), "white"),
        ((128, 128, 128), "grey"),
    ],
)
def test_colours_have_their_names(rgb, name):
    assert name in COLOURS
    picture = np.full((8, 8, 3), rgb, np.uint8)
    assert colours_of(picture, np.full((8, 8), 255, np.uint8)) == (name,)
    assert colours_of(picture, np.zeros((8, 8), np.uint8)) == ()


def test_giou_agrees_with_torchvision():
    rng = torch.Generator().manual_seed(0)
    boxes = torch.rand(2, 50, 4, generator=rng) * 20
    boxes[..., 2:] += boxes[..., :2] + 0.5
    theirs = torchvision.ops.generalized_box_iou(boxes[0], boxes[1]).diagonal()
    torch.testing.assert_close(_giou(boxes[0], boxes[1]), theirs)


def test_boxes_of_distances_by_hand():
    sides = torch.zeros(1, 4, 2, 3)
    sides[0, :, 1, 2] = torch.tensor([5.0, 6.0, 7.0, 8.0])
    # the middle of row 1, column 2 of an 8 pixel grid is (20, 12)
    assert boxes_of(sides)[0, :, 1, 2].tolist() == [15, 6, 27, 20]


@needs_data
def test_composites_repeat_and_boxes_hold_their_things():
    maker = CompositeMaker(DATA, "dev", side=96)
    a, b = maker.make((1, 2)), maker.make((1, 2))
    assert (a.image == b.image).all()
    assert len({t.name for t in a.things}) == len(a.things) == 4
    for x0, y0, x1, y1 in a.boxes:
        assert 0 <= x0 < x1 <= 96
        assert 0 <= y0 < y1 <= 96
    targets = targets_of([a], maker.names, 12)
    assert targets.centre.max() == 1
    middles = {(int((b[1] + b[3]) / 16), int((b[0] + b[2]) / 16)) for b in a.boxes}
    found = {tuple(i) for i in (targets.centre[0, 0] == 1).nonzero().tolist()}
    assert found == middles


@needs_data
def test_training_learns_a_little_and_leaves_a_loadable_detector(tmp_path):
    trainer = DetectorTrainer(
        DetectorConfig(minutes=0.08, batch=4, side=96, width=16), DATA, tmp_path
    )
    made = [trainer.maker.make((9, i)) for i in range(8)]
    pictures = torch.from_numpy(np.stack([m.image for m in made])).permute(0, 3, 1, 2) / 255
    targets = targets_of(made, trainer.maker.names, 12)

    def total() -> float:
        with torch.no_grad():
            return float(sum(losses_of(trainer.model(pictures), targets).values()))

    before = total()
    trainer.fit()
    assert trainer.step > 3
    assert total() < before
    config = NamedObjectsConfig.from_dict(json.loads((tmp_path / "model.json").read_text()))
    assert config.names == tuple(named_files(DATA))
    NamedObjects(config)


@needs_data
@pytest.mark.slow
def test_the_frozen_composites_ask_for_every_name():
    made = frozen(DATA)
    assert len(made) == 300
    assert {m.things[0].name for m in made} == set(named_files(DATA))
