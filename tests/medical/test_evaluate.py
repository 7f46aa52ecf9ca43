"""The evaluation as a whole: datasets and their faults, scores by hand, resuming, the report."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from zim.errors import OutputError, ZimError
from zim.testing import tiny_model
from zim_medical.cli import main
from zim_medical.datasets import pictures
from zim_medical.evaluate import Plan, Progress, evaluate, open_run, score_picture
from zim_medical.intensity import to_rgb, value_range
from zim_medical.layouts import REGISTRY, locate, natural
from zim_medical.options import PRESETS, Protocol, threshold_of
from zim_medical.overlays import choose, sheet
from zim_medical.records import Counts, Exclusion, Pair, Picture
from zim_medical.summary import Scores, markdown, summarise
from zim_medical.table import CaseTable

MODES = (1, 2, 3, 4, 5)


def picture_of(mask: np.ndarray) -> Picture:
    pair = Pair("case", "patient", Path("i.png"), Path("m.png"))
    return Picture(pair, None, 0, np.zeros((*mask.shape, 3), np.uint8), {"all": mask})


def scores_of(mask: np.ndarray, segmenter: Any, plan: Plan | None = None) -> dict[int, float]:
    plan = plan or Plan(Protocol(), MODES, ("fake",))
    rows = score_picture(plan, "folder", picture_of(mask), {"fake": segmenter}, Progress())
    return {row["mode"]: row["iou"] for row in rows}


class Oracle:
    """Answers every prompt with the truth."""

    def __init__(self, truth: np.ndarray) -> None:
        self.truth = truth.astype(np.float32)

    def set_image(self, image: Any) -> None:
        assert image.shape[:2] == self.truth.shape

    def predict(self, *_: Any, multimask_output: bool = True, **__: Any) -> Any:
        mattes = np.stack([self.truth] * (3 if multimask_output else 1))
        return mattes, np.ones(len(mattes)), mattes


def disc(size: int = 40) -> np.ndarray:
    y, x = np.mgrid[:size, :size]
    return np.hypot(x - 21, y - 18) <= 9


def test_an_oracle_scores_one_in_every_mode() -> None:
    assert scores_of(disc(), Oracle(disc())) == dict.fromkeys(MODES, 1.0)


def test_a_box_filler_scores_what_geometry_says(box_filler: Any) -> None:
    # an L: 10 x 10 box, of which 100 - 36 pixels are the object; a second region of 2 x 3 apart
    mask = np.zeros((30, 40), bool)
    mask[5:15, 4:14] = True
    mask[5:11, 8:14] = False
    assert scores_of(mask, box_filler)[3] == pytest.approx(64 / 100)
    mask[20:22, 30:33] = True
    scores = scores_of(mask, box_filler)
    assert scores[3] == pytest.approx(64 / (100 + 6))
    assert scores[4] == pytest.approx((64 + 6) / (100 + 6))
    assert scores[5] == pytest.approx(70 / ((33 - 4) * (22 - 5)))
    boxes = [box for _, box, _ in box_filler.calls if box is not None]
    assert len({tuple(b) for b in boxes}) == len(boxes[-3:]) == 3  # equal queries are asked once


def test_mask_selection_and_the_oracle_column(box_filler: Any) -> None:
    mask = np.zeros((20, 20), bool)
    mask[4:9, 4:9] = True
    for select, expected in (("single", 1.0), ("first", 1.0), ("score", 0.0)):
        plan = Plan(replace(Protocol(), mask_select=select), (5,), ("fake",), oracle=True)
        rows = score_picture(plan, "folder", picture_of(mask), {"fake": box_filler}, Progress())
        assert rows[0]["iou"] == expected
        assert rows[0]["iou_oracle"] == 1.0
        assert rows[0]["empty_pred"] == (select == "score")


def test_thresholds_and_presets() -> None:
    assert threshold_of("sam_vit_b", 0.3) == threshold_of("hq_sam_vit_h", 0.3) == 0.5
    assert threshold_of("nano", 0.3) == threshold_of("zim_vit_b", 0.3) == 0.3
    assert PRESETS["zim"].describe() == "preset zim, unchanged"
    changed = replace(PRESETS["mazurowski"], ties="nearest")
    assert changed.describe() == "preset mazurowski, deviations: ties: random -> nearest"


def test_intensities_by_hand() -> None:
    volume = np.array([[-1000.0, -160.0], [40.0, 240.0]])
    grey = to_rgb(volume, "ct", value_range(volume, "ct"))[..., 0]
    assert grey.tolist() == [[0, 0], [128, 255]]
    positive = np.array([[0.0, 1.0], [2.0, 3.0]])
    assert to_rgb(positive, "protocol", (0, 3))[..., 0].tolist() == [[0, 85], [170, 255]]
    assert not to_rgb(np.zeros((2, 2)), "protocol", (0, 0)).any()


def collect(
    name: str, root: Path, protocol: Protocol | None = None
) -> tuple[list[Picture], Counts, list[Exclusion]]:
    dataset = REGISTRY[name]
    folder = locate(dataset, root)
    assert folder is not None
    counts, excluded = Counts(), []
    found = pictures(
        dataset, dataset.pairs(folder), protocol or Protocol(), counts, excluded.append
    )
    return list(found), counts, excluded


def test_the_five_layouts_are_found_and_read(demo: Path) -> None:
    sizes = {
        "hippocampus": (6, (50, 36)),
        "spleen": (6, (112, 128)),
        "us_kidney": (20, (192, 192)),
        "us_nerve": (28, (210, 290)),
        "xray_hip": (10, (224, 192)),
    }
    for name, (cases, shape) in sizes.items():
        found, counts, excluded = collect(name, demo)
        assert (counts.cases, excluded) == (cases, [])
        assert counts.pictures == len(found) > 0
        assert all(p.image.shape == (*shape, 3) for p in found)
        assert all(m.any() for p in found for m in p.masks.values())
        keys = [p.key for p in found]
        assert len(set(keys)) == len(keys)
    nerve, counts, _ = collect("us_nerve", demo)
    assert counts.empty == counts.pictures == 14
    assert {p.pair.patient_id for p in nerve} == {str(i) for i in range(1, 8)}
    hip, _, _ = collect("xray_hip", demo)
    assert set(hip[0].masks) == {"class1", "class2"}
    merged, _, _ = collect("xray_hip", demo, replace(Protocol(), classes="merge"))
    assert np.array_equal(merged[0].masks["all"], hip[0].masks["class1"] | hip[0].masks["class2"])
    spacings = {p.spacing for p in collect("spleen", demo, replace(Protocol(), axis="1"))[0]}
    assert [tuple(round(v, 3) for v in s) for s in spacings] == [(5.0, 1.6)]


@pytest.mark.filterwarnings("ignore")
def test_msd_lists_the_same_pairs_as_monai(demo: Path) -> None:
    from monai.data.decathlon_datalist import load_decathlon_datalist

    folder = demo / "Task04_Hippocampus"
    theirs = load_decathlon_datalist(str(folder / "dataset.json"), True, "training")
    ours = REGISTRY["hippocampus"].pairs(folder)
    expected = {(Path(e["image"]), Path(e["label"])) for e in theirs}
    assert {(pair.image, pair.mask) for pair in ours} == expected
    assert len(ours) == 6


def test_companion_files_are_passed_over_and_two_comes_before_ten(tmp_path: Path) -> None:
    for folder in ("slice/slice", "mask/mask"):
        (tmp_path / folder).mkdir(parents=True)
        for name in ("2.png", "10.png", "._2.png"):
            values = np.full((8, 6), 127, np.uint8)
            values[2:4, 1:5] = 128  # pins the cut between 127 and 128
            if name.startswith("."):
                (tmp_path / folder / name).write_bytes(bytes(16))
            else:
                Image.fromarray(values).save(tmp_path / folder / name)
    found, _, excluded = collect("us_kidney", tmp_path)
    assert [p.pair.case_id for p in found] == ["2", "10"]
    assert found[0].masks["all"].sum() == 8
    assert excluded == []
    assert sorted(["b10", "b2", "a"], key=natural) == ["a", "b2", "b10"]


def test_a_pixel_is_not_transposed(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        values = np.zeros((42, 58), np.uint8)
        values[7, 51] = 255
        Image.fromarray(values).save(tmp_path / folder / "x.png")
    (picture,), _, _ = collect("folder", tmp_path)
    assert picture.image[7, 51].tolist() == [255, 255, 255]
    assert np.argwhere(picture.masks["all"]).tolist() == [[7, 51]]


def test_every_fault_is_named_counted_and_excluded(tmp_path: Path) -> None:
    images, masks = tmp_path / "x" / "images", tmp_path / "x" / "labels"
    images.mkdir(parents=True)
    masks.mkdir()
    good = np.random.default_rng(0).random((6, 5, 1)).astype(np.float32)
    truth = np.zeros((6, 5, 1), np.uint8)
    truth[2:4, 2:4] = 1
    nan = good.copy()
    nan[0, 0] = np.nan
    cases: dict[str, tuple[np.ndarray, np.ndarray | None]] = {
        "1": (good, truth),
        "2": (good, np.zeros((6, 6, 1), np.uint8)),
        "3": (good, None),
        "4": (nan, truth),
        "5": (good, np.zeros_like(truth)),
        "6": (np.zeros((6, 5, 1, 3), np.float32), truth),
        "7": (good, truth * 7),
        "8": (good, truth.astype(np.float32) / 2),
        "10": (np.full_like(good, 7), truth),
    }
    for name, (image, mask) in cases.items():
        nib.save(nib.Nifti1Image(image, np.eye(4)), images / f"{name}.nii.gz")
        if mask is not None:
            nib.save(nib.Nifti1Image(mask, np.eye(4)), masks / f"{name}.nii.gz")
    (images / "9.nii.gz").write_bytes(b"damaged")
    for name in ("9", "11"):  # image 11 does not exist
        shutil.copy(masks / "1.nii.gz", masks / f"{name}.nii.gz")
    found, counts, excluded = collect("xray_hip", tmp_path)
    assert [p.pair.case_id for p in found] == ["1"]
    assert (counts.cases, counts.pictures) == (11, 1)
    assert counts.empty == 2  # case 5, and class 2 of case 1
    reasons = {e.case_id: e.reason for e in excluded}
    for case, words in {
        "2": "image is 6 x 5 x 1 but its mask 6 x 6 x 1",
        "3": "missing mask",
        "4": "NaN",
        "6": "4D",
        "7": "wrong labels 7",
        "8": "fractions",
        "9": "cannot be read",
        "10": "10.nii.gz: empty, all of its 30 values are 7",
        "11": "missing image: 11.nii.gz",
    }.items():
        assert words in reasons.pop(case)
    assert reasons == {}


def test_slices_of_one_grey_value_are_left_out_by_number(tmp_path: Path) -> None:
    data = np.random.default_rng(0).random((8, 9, 4)).astype(np.float32)
    data[..., 1] = 0.5
    truth = np.zeros(data.shape, np.uint8)
    truth[2:5, 3:6] = 1
    for folder, values in (("images", data), ("masks", truth)):
        (tmp_path / folder).mkdir()
        nib.save(nib.Nifti1Image(values, np.diag([-1, -1, -1, 1])), tmp_path / folder / "a.nii")
    found, _, (excluded,) = collect("folder", tmp_path)
    assert [p.index for p in found] == [0, 2, 3]
    assert "1 left out that show one grey value (slices 1; norm minmax)" in excluded.reason


def test_what_is_too_small_for_a_prompt_is_counted_as_such(tmp_path: Path, box_filler: Any) -> None:
    data = np.random.default_rng(0).random((12, 12, 3)).astype(np.float32)
    truth = np.zeros(data.shape, np.uint8)
    truth[2:6, 2:6] = 1
    truth[8, 8, 0] = truth[8, 8, 1] = 2
    truth[2:6, 2:6, 1] = 0
    for folder, values in (("images", data), ("masks", truth)):
        (tmp_path / folder).mkdir()
        nib.save(nib.Nifti1Image(values, np.diag([-1, -1, -1, 1])), tmp_path / folder / "a.nii")
    protocol = replace(Protocol(), min_area=5, classes="each")
    plan = Plan(protocol, (1,), ("fake",))
    where = {"folder": (REGISTRY["folder"], tmp_path)}
    table = open_run(tmp_path / "o", plan, where, False)
    for scored in (2, 0):  # and the same counts when it is taken up again
        progress = evaluate(plan, where, {"fake": box_filler}, table)
        assert progress.scored == scored
        assert vars(progress.counts["folder"]) == {
            "cases": 1,
            "pictures": 2,
            "empty": 0,
            "small": 2,
        }
    assert [(row["slice"], row["class"]) for row in table.rows()] == [
        ("0", "class1"),
        ("2", "class1"),
    ]


def test_an_image_and_mask_of_different_places_are_refused(demo: Path, tmp_path: Path) -> None:
    root = tmp_path / "Task09_Spleen"
    shutil.copytree(demo / "Task09_Spleen", root)
    path = root / "labelsTr" / "spleen_1.nii.gz"
    label: Any = nib.load(path)
    moved = label.affine.copy()
    moved[2, 3] += 5
    nib.save(nib.Nifti1Image(np.asarray(label.dataobj), moved), path)
    _, _, excluded = collect("spleen", tmp_path)
    assert [(e.case_id, "5 mm apart" in e.reason) for e in excluded] == [("spleen_1", True)]
    image: Any = nib.load(root / "imagesTr" / "spleen_1.nii.gz")
    image.header.set_xyzt_units("micron")  # and the mask says nothing
    nib.save(image, root / "imagesTr" / "spleen_1.nii.gz")
    nib.save(nib.Nifti1Image(np.asarray(label.dataobj), label.affine), path)
    found, _, excluded = collect("spleen", tmp_path, replace(Protocol(), axis="1"))
    assert excluded == []
    assert found[0].spacing == pytest.approx((0.005, 0.0016))
    scaled = np.diag([1e-3, 1e-3, 1e-3, 1]) @ label.affine
    mask = nib.Nifti1Image(np.asarray(label.dataobj), scaled)
    mask.header.set_xyzt_units("mm")  # another unit, the same place
    nib.save(mask, path)
    assert collect("spleen", tmp_path)[2] == []


def run_fake(folder: Path, demo: Path, segmenter: Any) -> bytes:
    plan = Plan(Protocol(), MODES, ("fake",))
    dataset = REGISTRY["us_kidney"]
    where = locate(dataset, demo)
    assert where is not None
    table = open_run(folder, plan, {"us_kidney": (dataset, where)}, False)
    evaluate(plan, {"us_kidney": (dataset, where)}, {"fake": segmenter}, table)
    return (folder / "cases.csv").read_bytes()


def test_changed_data_are_another_run(demo: Path, tmp_path: Path, box_filler: Any) -> None:
    root = tmp_path / "ct2usforkidneyseg"
    shutil.copytree(demo / "ct2usforkidneyseg", root)
    run_fake(tmp_path / "out", tmp_path, box_filler)
    mask = next((root / "mask").rglob("*.png"))
    mask.write_bytes(mask.read_bytes())
    os.utime(mask, ns=(1, 1))
    with pytest.raises(OutputError, match="holds a run with other data; give another"):
        run_fake(tmp_path / "out", tmp_path, box_filler)


def folder_set(root: Path, mask: Image.Image, name: str = "x.png") -> Path:
    for part, picture in (("images", Image.fromarray(gradient())), ("masks", mask)):
        (root / part).mkdir(parents=True, exist_ok=True)
        picture.save(root / part / (name if part == "masks" else "x.png"))
    return root


def gradient() -> np.ndarray:
    return np.add.outer(np.arange(40), np.arange(50)).astype(np.uint8)


def ball(soft: float) -> np.ndarray:
    """A disc of radius 12 whose rim is so many pixels wide, H x W in [0, 1]."""
    y, x = np.mgrid[:40, :50]
    return np.clip((12 - np.hypot(y - 20, x - 25)) / soft + 0.5, 0, 1)


@pytest.mark.parametrize(
    "kind", [*("grey", "alpha", "palette", "soft", "colour"), *("squeezed", "void", "pale")]
)
def test_masks_of_every_kind_are_read_as_they_are_meant(kind: str, tmp_path: Path) -> None:
    hard, soft = ball(1e-3) > 0.5, np.rint(255 * ball(6)).astype(np.uint8)
    colour = np.zeros((40, 50, 3), np.uint8)
    colour[hard, 0] = 255
    colour[hard & (np.arange(50) > 25)] = (0, 255, 0)
    classes = np.add.outer(np.arange(40) // 10, 4 * (np.arange(50) // 20)) + 1
    void = np.where(hard, classes, 0).astype(np.uint8)
    void[0, :5] = 255
    palette = Image.fromarray(hard.astype(np.uint8) * (1 + (np.arange(50) > 25)).astype(np.uint8))
    palette = palette.convert("P")
    palette.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    mask = {
        "grey": Image.fromarray(np.where(hard, 255, 0).astype(np.uint8)),
        "alpha": Image.fromarray(np.dstack([*[gradient()] * 3, 255 * hard]).astype(np.uint8)),
        "palette": palette,
        "soft": Image.fromarray(soft),
        "colour": Image.fromarray(colour),
        "squeezed": Image.fromarray(np.uint8(255) * hard).convert("RGB").quantize(2),
        "void": Image.fromarray(void),
        "pale": Image.fromarray(np.rint(254 * ball(6)).astype(np.uint8)),
    }[kind]
    root = folder_set(tmp_path / kind, mask)
    (found,), _, _ = collect("folder", root)
    truth = {"soft": soft >= 128, "pale": ball(6) > 0.5, "void": void > 0}
    assert np.array_equal(found.masks["all"], truth.get(kind, hard))
    each, _, excluded = collect("folder", root, Protocol(classes="each"))
    said = {"colour": "one number per class"} | dict.fromkeys(("soft", "pale"), "no labels")
    if kind in said:
        assert said[kind] in excluded[0].reason
    elif kind == "void":
        assert len(each[0].masks) == len(np.unique(void)) - 1
    else:
        names = {"palette": ["class1", "class2"]}.get(kind, ["class255"])
        assert list(each[0].masks) == names


def test_masks_that_hold_no_labels_and_names_used_twice_are_told(tmp_path: Path) -> None:
    mask = Image.fromarray(np.where(ball(1e-3) > 0.5, 255, 0).astype(np.uint8))
    root = folder_set(tmp_path / "a", mask, "x.jpg")
    _, _, excluded = collect("folder", root, Protocol(classes="each"))
    assert "the mask x.jpg is a JPEG" in excluded[0].reason
    (found,), _, _ = collect("folder", root)
    assert np.array_equal(found.masks["all"], ball(1e-3) > 0.5)
    root = folder_set(tmp_path / "b", mask)
    mask.save(root / "images" / "x.bmp")
    with pytest.raises(ZimError, match=r"x\.png has the name of another file"):
        collect("folder", root)


def test_a_killed_run_goes_on_to_the_same_table(
    demo: Path, tmp_path: Path, box_filler: Any
) -> None:
    whole = run_fake(tmp_path / "a", demo, box_filler)
    assert whole.count(b"\n") == 1 + 20 * 5
    for cut in (0, 50, 400, len(whole) // 2, len(whole) - 3):
        folder = tmp_path / f"b{cut}"
        shutil.copytree(tmp_path / "a", folder)
        (folder / "cases.csv").write_bytes(whole[:cut])  # torn in the middle of a row
        assert run_fake(folder, demo, box_filler) == whole


def test_random_ties_do_not_depend_on_what_came_before(
    demo: Path, tmp_path: Path, box_filler: Any
) -> None:
    plan = Plan(PRESETS["mazurowski"], (1,), ("fake",))
    found, _, _ = collect("us_kidney", demo)
    forward = [
        score_picture(plan, "d", p, {"f": box_filler}, Progress())[0]["prompt"] for p in found
    ]
    backward = [
        score_picture(plan, "d", p, {"f": box_filler}, Progress())[0]["prompt"] for p in found[::-1]
    ]
    assert forward == backward[::-1]


def test_sheets_of_coronal_slices_can_be_looked_at(
    demo: Path, tmp_path: Path, box_filler: Any
) -> None:
    dataset = REGISTRY["spleen"]
    where = locate(dataset, demo)
    assert where is not None
    plan = Plan(replace(Protocol(), axis="1"), (5,), ("fake",), limit=1)
    table = open_run(tmp_path, plan, {"spleen": (dataset, where)}, False)
    evaluate(plan, {"spleen": (dataset, where)}, {"fake": box_filler}, table)
    rows = choose(table, "spleen", "fake", 5, 1)
    drawn = sheet(plan, dataset, where, rows, {"fake": box_filler})
    assert drawn.shape[1] == 5 * 345 + 6 * 8  # five pictures of 345 x 230
    cell = drawn[8:238, 8:353].astype(int)
    shown = np.flatnonzero(cell.max((1, 2)) > 20)
    # 8 slices of 5 mm above one another, 128 columns of 1.6 mm
    assert (shown[-1] + 1 - shown[0]) / 345 == pytest.approx(8 * 5 / (128 * 1.6), rel=0.1)


def test_summary_by_hand(tmp_path: Path) -> None:
    plan = Plan(Protocol(), (1,), ("zim", "sam_x"))
    table = CaseTable(tmp_path / "t.csv", plan.columns)
    for patient, (a, b) in enumerate([(0.5, 0.4), (0.7, 0.8), (0.9, 0.0)]):
        common = {"dataset": "spleen", "case_id": patient, "patient_id": patient}
        common |= {"axis": 2, "slice": 0}
        common |= {"class": "all", "mode": 1, "dice": 0.5, "empty_pred": False}
        table.add([common | {"model": "zim", "iou": a}, common | {"model": "sam_x", "iou": b}])
    summary = summarise(plan, Scores(table.rows()), Progress(counts={"spleen": Counts(3, 3)}))
    first = summary["scores"][0]
    assert (first["n"], first["mean"], first["median"]) == (3, pytest.approx(0.7), 0.7)
    (compared,) = summary["comparisons"]
    assert compared["difference"] == pytest.approx(0.3)
    assert compared["p_holm"] is None  # three patients are too few
    text = markdown(summary)
    assert "| spleen | 1 | zim - sam_x: +0.300 |" in text
    assert "too few patients" in text


def test_without_data_the_command_says_what_to_get(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZIM_HOME", str(tmp_path))
    assert main(["eval", "--output", str(tmp_path / "o")]) == 1
    *each, last = capsys.readouterr().err.splitlines()
    assert len(each) == 6
    assert max(map(len, each)) < 220
    assert "no data for hippocampus, spleen, " in last
    assert "--demo" in last
    for word in ("hippocampus", "CC BY-SA 4.0", "1.5 GB", "kaggle.com", "mendeley"):
        assert any(word in line for line in each)
    assert main(["eval", "--datasets", "spleen", "--output", str(tmp_path / "o")]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 2
    assert not (tmp_path / "o").exists()
    for argv in (
        ["--modes", "6"],
        ["--modes", "1-99999999999"],
        ["--datasets", "brain"],
        ["--threshold", "2"],
        ["--surface", "--nsd-tolerance", "nan"],
    ):
        assert main(["eval", *argv]) == 2
        capsys.readouterr()
    assert main(["eval", "--root", str(tmp_path / "none")]) == 1


def test_the_command_writes_everything_and_resumes(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_model().save_pretrained(tmp_path / "tiny")
    tiny_model(seed=1).save_pretrained(tmp_path / "other")
    argv = ["eval", "--root", str(demo), "--datasets", "us_kidney,xray_hip", "--limit", "2"]
    argv += ["--models", f"{tmp_path / 'tiny'},{tmp_path / 'other'}", "--modes", "1,4,5"]
    argv += ["--overlays", "1", "--output", str(tmp_path / "o"), "--json"]
    assert main(argv) == 0
    report = json.loads(capsys.readouterr().out)
    for kind in ("csv", "report", "summary", "summary_md", "plot", "overlay_xray_hip"):
        assert Path(report["outputs"][kind]).stat().st_size > 100
    table = Path(report["outputs"]["csv"]).read_text().splitlines()
    assert {"dataset", "mode", "model", "iou"} <= set(table[0].split(","))
    assert len(table) == 1 + 2 * 2 * 3 + 2 * 2 * 2 * 3
    page = Path(report["outputs"]["report"]).read_text()
    assert "not a medical device" in page
    assert "src='http" not in page
    assert "href=" not in page
    assert page.count("data:image/") == 3
    assert "preset zim, unchanged" in page
    assert main(argv) == 0  # again: nothing left to do, the same files
    again = json.loads(capsys.readouterr().out)
    assert again["metrics"]["scored"] == 0
    assert Path(again["outputs"]["report"]).read_text() == page
    argv.remove("--json")
    assert main(argv) == 0
    streams = capsys.readouterr()
    assert (streams.out + streams.err).count("preset zim, unchanged") == 1
    assert main([*argv, "--box-margin", "2"]) == 1
    assert "other settings" in capsys.readouterr().err
