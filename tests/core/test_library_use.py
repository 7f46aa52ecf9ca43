"""What people do with the package as a library, beside the plain way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import zim
from zim import api
from zim.errors import ConfigError, ImageError, PromptError
from zim.images import load_image, read_alpha
from zim.mask_record import Deferred, MaskRecord
from zim.model import fast
from zim.prompts import Prompt, scribble_points
from zim.refine import refine
from zim.result import Matte
from zim.rle import decode_rle
from zim.testing import TINY_NANO, disc, picture, tiny_model
from zim.viz import draw_prompts

RGB = picture(60, 80)
SIZE = (60, 80)
CLICK: dict[str, Any] = {"points": [(30, 25)]}


def set_up(model: zim.Zim | None = None) -> zim.ZimPredictor:
    predictor = zim.ZimPredictor(model or tiny_model(TINY_NANO))
    predictor.set_image(RGB)
    return predictor


# -- weights


def copy_data(model: zim.Zim, other: zim.Zim) -> None:
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        a.data.copy_(b.data)
    for a, b in zip(model.buffers(), other.buffers(), strict=True):
        a.data.copy_(b.data)


def copy_by_numpy(model: zim.Zim, other: zim.Zim) -> None:
    pairs = zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    for a, b in pairs:
        a.numpy()[...] = b.numpy()


@pytest.mark.parametrize("write", [copy_data, copy_by_numpy])
def test_weights_written_behind_torchs_back_are_noticed(
    write: Callable[[zim.Zim, zim.Zim], None],
) -> None:
    model, other = (tiny_model(TINY_NANO, seed) for seed in (0, 1))
    predictor, wanted = set_up(model), set_up(other).predict_batch([CLICK])[0]
    assert np.abs(predictor.predict_batch([CLICK])[0] - wanted).max() > 0.1
    write(model, other)
    predictor.set_image(RGB)
    np.testing.assert_array_equal(predictor.predict_batch([CLICK])[0], wanted)


def test_weights_are_watched_after_they_were_replaced() -> None:
    model, other = (tiny_model(TINY_NANO, seed) for seed in (0, 1))
    predictor = set_up(model)
    predictor.predict_batch([CLICK])
    model.load_state_dict(tiny_model(TINY_NANO, 2).state_dict(), assign=True)
    predictor.set_image(RGB)
    predictor.predict_batch([CLICK])
    copy_by_numpy(model, other)
    predictor.set_image(RGB)
    wanted = set_up(other).predict_batch([CLICK])[0]
    np.testing.assert_array_equal(predictor.predict_batch([CLICK])[0], wanted)


def test_what_is_no_plain_memory_is_left_alone() -> None:
    freed = torch.ones(4)
    freed.untyped_storage().resize_(0)
    odd = (
        freed,
        torch.ones(1).expand(1 << 33),
        torch.eye(3).to_sparse(),
        torch.ones(2, device="meta"),
        torch.ones(2, 3).to_mkldnn(),
        torch.ones(0),
    )
    assert all(fast._trace(tensor) == b"" for tensor in odd)
    plain = torch.arange(12.0)
    assert len(fast._trace(plain)) == 16
    assert fast._trace(plain[4:]) == fast._trace(plain[4:].clone())


def test_a_folder_named_like_a_model_is_nothing_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = api._state_of("nano")
    (tmp_path / "nano").mkdir()
    (tmp_path / "nano" / "dangling").symlink_to("nowhere")
    assert api._state_of("nano") == before
    (tmp_path / "mine.safetensors").touch()
    alone = api._state_of("mine.safetensors")
    (tmp_path / "mine.json").touch()
    assert api._state_of("mine.safetensors") != alone


def test_a_model_folder_is_read_again_when_its_files_change(tmp_path: Path) -> None:
    alphas = []
    for seed in (0, 1):
        tiny_model(seed=seed).save_pretrained(tmp_path / "model")
        for _ in range(2):
            matte = zim.matte(RGB, model=str(tmp_path / "model"), **CLICK)
            alphas.append(matte.alpha)
    np.testing.assert_array_equal(alphas[0], alphas[1])
    assert not np.array_equal(alphas[1], alphas[2])


def test_types_and_devices_may_be_torchs_own(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    model = zim.load(tmp_path, dtype=torch.float32, device=torch.device("cpu"))
    assert model.dtype == torch.float32
    with pytest.raises(ConfigError, match=r"int8. is unknown"):
        zim.load(tmp_path, dtype=torch.int8)
    with pytest.raises(ConfigError, match="from_pretrained"):
        zim.ZimPredictor("nano")  # pyright: ignore[reportArgumentType]


# -- pictures


@pytest.mark.parametrize("mode", ["I", "F"])
def test_integers_of_32_bits_are_read_by_their_range(mode: str) -> None:
    grey = Image.fromarray(RGB).convert("L")
    np.testing.assert_array_equal(load_image(grey.convert(mode)).rgb[..., 0], np.asarray(grey))
    mask = (disc(*SIZE) > 0.5).astype(np.int32)
    for scale in (1, 255, 65535):
        assert read_alpha(Image.fromarray(mask * scale)).max() == 1.0


def test_byte_order_is_not_a_type() -> None:
    deep = RGB.astype(np.uint16) * 257
    np.testing.assert_array_equal(load_image(deep.astype(">u2")).rgb, RGB)


def test_only_arrays_are_bgr(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(RGB).save(path)
    predictor = set_up()
    for given in (path, str(path), path.read_bytes(), Image.fromarray(RGB)):
        predictor.set_image(given, "BGR")
        np.testing.assert_array_equal(predictor.image, RGB)
    planes = torch.from_numpy(RGB[..., ::-1].copy()).permute(2, 0, 1)
    for given in (RGB[..., ::-1], planes):
        predictor.set_image(given, "BGR")
        np.testing.assert_array_equal(predictor.image, RGB)


@pytest.mark.parametrize(
    "given",
    ["x.jpg", b"x", Path("x.jpg"), Image.new("RGB", (4, 4)), None, RGB, torch.from_numpy(RGB)],
)
def test_a_batch_of_pictures_is_a_list(given: Any) -> None:
    with pytest.raises(ImageError, match="expected a list of pictures"):
        set_up().set_image_batch(given)


def test_an_empty_name_is_no_folder() -> None:
    with pytest.raises(ImageError, match="name of the picture is empty"):
        load_image("")


# -- prompts


def test_prompts_of_other_pictures_are_refused() -> None:
    predictor = set_up()
    mask = np.zeros((100, 100), np.float32)
    mask[20:40, 20:40] = 1
    for size, kind in (((500, 500), {"points": [(490, 490)]}), ((100, 100), {"mask": mask})):
        with pytest.raises(PromptError, match=r"outside|shape"):
            predictor.predict_batch([Prompt.create(size, **kind)])
    by_hand = Prompt([[30, 25]], [1])  # pyright: ignore[reportArgumentType]
    found = predictor.predict_batch([by_hand])[0]
    np.testing.assert_array_equal(found, predictor.predict_batch([CLICK])[0])


def test_prompts_are_compared_by_identity() -> None:
    one, other = (Prompt.create(SIZE, points=[(3, 4)]) for _ in range(2))
    assert one == one
    assert one != other
    assert len({one, other}) == 2
    assert other in [one, other]


def test_bfloat16_and_lists_are_numbers_too() -> None:
    predictor, mask = set_up(), torch.from_numpy(disc(*SIZE)).float()
    coords = torch.tensor([[30.0, 25.0]])
    wanted = predictor.predict(coords, [1])[0]
    np.testing.assert_array_equal(predictor.predict(coords.bfloat16(), [1])[0], wanted)
    moved = predictor.transform.apply_coords_torch(coords[None], SIZE)
    half = predictor.transform.apply_coords_torch(coords[None].bfloat16(), SIZE)
    torch.testing.assert_close(half, moved, rtol=0, atol=0)
    labels = torch.ones(1, 1)
    a = predictor.predict_torch(moved, labels)[0]
    b = predictor.predict_torch(moved.numpy(), labels.tolist())[0]  # pyright: ignore
    torch.testing.assert_close(a, b, rtol=0, atol=0)
    low = torch.from_numpy(predictor.predict(coords, [1], multimask_output=False)[2])
    for name, value in (("mask", mask), ("low_res", low)):
        exact, rounded = (
            predictor.predict_batch([{name: v}])[0] for v in (value, value.bfloat16())
        )
        np.testing.assert_allclose(exact, rounded, atol=0.2)


def test_painted_scribbles_come_in_every_form() -> None:
    painted = np.zeros(SIZE, np.uint8)
    painted[20:30, 10:60] = 255
    wanted = scribble_points(painted, SIZE)
    forms: list[Any] = [
        torch.from_numpy(painted),
        Image.fromarray(painted),
        np.repeat(painted[..., None], 3, 2),
        painted[..., None],
        Image.fromarray(painted).convert("RGB"),
        painted > 0,
        torch.from_numpy(painted)[None],
        torch.from_numpy(painted).expand(3, *SIZE),
        Image.fromarray(painted).convert("P"),
        Image.fromarray(painted).convert("RGBA"),
        Image.fromarray(painted).convert("1"),
    ]
    red = Image.new("RGBA", (SIZE[1], SIZE[0]), (200, 30, 30, 0))
    red.putalpha(Image.fromarray(painted))
    forms.append(red)
    for form in forms:
        np.testing.assert_array_equal(scribble_points(form, SIZE), wanted)


# -- what SAM's notebooks use


def test_sams_attributes_and_padding() -> None:
    predictor = zim.ZimPredictor(tiny_model(TINY_NANO))
    assert not predictor.is_image_set
    with pytest.raises(ImageError, match="set_image"):
        _ = predictor.original_size
    predictor.set_image(RGB)
    assert predictor.is_image_set
    assert predictor.original_size == SIZE
    assert predictor.input_size == (48, 64)
    transform = predictor.transform
    assert transform.get_preprocess_shape(60, 80, 64) == (48, 64)
    tensor = torch.from_numpy(RGB).permute(2, 0, 1)[None].float()
    shrunk = transform.apply_image_torch(tensor)
    assert shrunk.shape == (1, 3, 48, 64)
    near = torch.tensor(transform.apply_image(RGB)).permute(2, 0, 1).float()
    assert (shrunk[0] - near).abs().mean() < 1
    assert transform.apply_boxes(np.array([8, 12, 40, 36]), SIZE).shape == (1, 4)
    ragged = predictor.predict(
        np.array([[[30, 25], [0, 0]], [[30, 25], [60, 40]]]), np.array([[1, -1], [1, 0]])
    )[0]
    alone = predictor.predict(np.array([[30, 25]]), np.array([1]))[0]
    np.testing.assert_allclose(ragged[0], alone, atol=1e-5)


# -- results


def test_a_matte_takes_alpha_in_any_type_and_refuses_what_is_none() -> None:
    alpha = disc(*SIZE).astype(np.float32)
    eight = np.rint(alpha * 255).astype(np.uint8)
    forms: list[Any] = [eight, eight.astype(np.uint16) * 257, torch.from_numpy(alpha)]
    forms += [alpha.astype(np.float64), torch.from_numpy(alpha).bfloat16(), alpha.tolist()]
    for form in forms:
        matte = Matte(RGB, form)
        assert matte.alpha.dtype == np.float32
        np.testing.assert_allclose(matte.alpha, alpha, atol=0.01)
    for kind in (bool, np.uint8, np.int64):
        binary: Any = (alpha > 0.5).astype(kind)
        np.testing.assert_array_equal(Matte(RGB, binary).alpha, alpha > 0.5)
    assert Matte(RGB, alpha * np.float32(1.04)).alpha.max() == 1
    broken = alpha.copy()
    broken[3, 4] = np.nan
    for form in (broken, alpha * 255, eight.astype(np.int32) * -1):
        with pytest.raises(ImageError, match="a matte"):
            Matte(RGB, form)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ImageError, match="a matte's picture is a list"):
        Matte(RGB.tolist(), alpha)  # pyright: ignore[reportArgumentType]


def test_results_are_the_callers() -> None:
    predictor = set_up()
    wanted = predictor.predict_batch([CLICK])[0]
    matte = zim.matte(RGB, model=predictor, **CLICK)
    colours = matte.foreground().copy()
    for array in (matte.foreground(), matte.foreground("none")):
        array[:] = 0
    np.testing.assert_array_equal(matte.foreground(), colours)
    np.testing.assert_array_equal(matte.image, RGB)
    matte.image[:] = 0
    np.testing.assert_array_equal(predictor.predict_batch([CLICK])[0], wanted)


def test_records_never_show_how_they_are_made() -> None:
    record = MaskRecord(area=3, alpha=Deferred(lambda: np.ones(2), keep=True))
    np.testing.assert_array_equal(record.setdefault("alpha"), np.ones(2))
    assert record.setdefault("score", 0.5) == record["score"] == 0.5
    record = MaskRecord(area=3, alpha=Deferred(lambda: np.ones(2), keep=False))
    key, value = record.popitem()
    assert key == "alpha"
    np.testing.assert_array_equal(value, np.ones(2))


# -- arguments


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"stability_score_offset": 1.0}, "space='logit'"),
        ({"stability_score_offset": 0.5}, "space='logit'"),
        ({"stability_score_offset": -0.3}, "at least 0"),
        ({"points_per_side": "8"}, "whole number"),
        ({"points_per_side": 4.5}, "whole number"),
        ({"points_per_batch": 2.5}, "whole number"),
        ({"max_masks": 1.5}, "whole number"),
        ({"crop_n_layers": 1.5}, "whole number"),
        ({"crop_n_points_downscale_factor": 0.5}, "whole number"),
        ({"min_mask_region_area": float("nan")}, "0 or more"),
        ({"min_mask_region_area": "5"}, "expected a number"),
        ({"stability_score_offset": "x"}, "expected a number"),
        ({"point_grids": [np.array([[0.5, np.nan]])]}, "from 0 to 1"),
        ({"point_grids": [np.array([[0.5, 2.0]])]}, "from 0 to 1"),
        ({"point_grids": [np.array([0.5, 0.5, 0.1])]}, "N x 2"),
    ],
)
def test_search_arguments_are_checked_at_once(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        zim.ZimAutomaticMaskGenerator(tiny_model(TINY_NANO), **arguments)


def test_numpys_integers_are_numbers() -> None:
    generator = zim.ZimAutomaticMaskGenerator(
        tiny_model(TINY_NANO),
        points_per_side=np.int64(2),  # pyright: ignore[reportArgumentType]
        points_per_batch=np.int64(3),  # pyright: ignore[reportArgumentType]
        max_masks=np.int32(2),  # pyright: ignore[reportArgumentType]
        pred_iou_thresh=0,
        stability_score_thresh=0,
    )
    assert len(generator.generate(RGB)) <= 2


def test_small_things_are_one_line() -> None:
    with pytest.raises(ImageError, match="2 points but 1 labels"):
        draw_prompts(RGB, points=[(1, 2), (3, 4)], labels=[1])
    np.testing.assert_array_equal(draw_prompts(RGB, points=[]), RGB)
    with pytest.raises(ImageError, match="a dictionary with size"):
        decode_rle({"size": [2, 2]})
    with pytest.raises(ImageError, match="proportions"):
        refine(RGB, np.zeros((10, 80), np.float32))
    with pytest.raises(ImageError, match="a picture is a str"):
        refine("x.png", np.zeros((10, 80), np.float32))  # pyright: ignore


def test_numpys_errors_may_be_strict() -> None:
    with np.errstate(all="raise"):
        predictor = set_up()
        assert np.isfinite(predictor.predict_batch([CLICK, {"box": (10, 8, 50, 44)}])[0]).all()
