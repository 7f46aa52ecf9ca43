import numpy as np
import pytest
import torch

from zim.errors import CheckpointError, DownloadError, PromptError
from zim.protocols import Segmenter
from zim.segmenters import load_segmenter
from zim.segmenters.classical import band_trimap
from zim.segmenters.matte_anything import MatteAnything
from zim.testing import disc, picture
from zim.weights.rivals import RIVALS

transformers = pytest.importorskip("transformers")


def tiny_sam(kind: str):
    torch.manual_seed(0)
    if kind == "sam2":
        backbone = transformers.Sam2HieraDetConfig(
            hidden_size=8,
            num_attention_heads=1,
            image_size=[128, 128],
            blocks_per_stage=[1, 1, 2, 1],
            embed_dim_per_stage=[8, 16, 32, 64],
            num_attention_heads_per_stage=[1, 1, 1, 1],
            window_size_per_stage=[4, 4, 4, 4],
            global_attention_blocks=[3],
        )
        vision = transformers.Sam2VisionConfig(
            backbone_config=backbone,
            backbone_channel_list=[64, 32, 16, 8],
            backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]],
            fpn_hidden_size=256,
        )
        config = transformers.Sam2Config(
            vision_config=vision, prompt_encoder_config={"image_size": 128}
        )
        return transformers.Sam2Model(config)
    prefix = "SamHQ" if kind == "sam_hq" else "Sam"
    vision = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 64,
        "global_attn_indexes": [1],
        "output_channels": 256,
        "window_size": 2,
    }
    extra = {"vit_dim": 32} if kind == "sam_hq" else {}
    config = getattr(transformers, f"{prefix}Config")(
        vision_config=vision,
        prompt_encoder_config={"image_size": 64, "image_embedding_size": 4},
        mask_decoder_config=extra,
    )
    return getattr(transformers, f"{prefix}Model")(config)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("ZIM_HOME", str(tmp_path))
    monkeypatch.setenv("ZIM_OFFLINE", "1")
    return tmp_path / "models"


@pytest.mark.parametrize("name", ["sam_vit_b", "hq_sam_vit_b", "sam2_hiera_b+"])
def test_sam_family_runs_behind_the_protocol(home, name):
    tiny_sam(RIVALS[name].family).save_pretrained(home / name)
    model = load_segmenter(name, device="cpu")
    assert isinstance(model, Segmenter)
    model.set_image(picture(48, 64))
    box = np.array([10, 8, 50, 40])
    masks, scores, low = model.predict(box=box, multimask_output=False)
    assert masks.shape == (1, 48, 64)
    assert masks.dtype == np.float32
    assert scores.shape == (1,)
    assert set(np.unique(masks)) <= {0.0, 1.0}
    logits, _, _ = model.predict(box=box, multimask_output=False, return_logits=True)
    np.testing.assert_array_equal(logits > 0, masks > 0.5)
    many, _, _ = model.predict(
        point_coords=np.array([[[20, 20]], [[40, 30]]]), point_labels=np.ones((2, 1))
    )
    assert many.shape[0] == 2
    again, _, _ = model.predict(box=box, mask_input=low, multimask_output=False)
    assert again.shape == (1, 48, 64)


@pytest.mark.parametrize("name", ["sam_vit_b", "sam2_hiera_b+"])
def test_same_logits_as_the_processor_of_transformers(home, name):
    model = tiny_sam(RIVALS[name].family).eval()
    model.save_pretrained(home / name)
    ours = load_segmenter(name, device="cpu")
    rgb = picture(64, 64)
    ours.set_image(rgb)
    got, _, _ = ours.predict(
        point_coords=np.array([[20, 20], [40, 50]]),
        point_labels=np.array([1, 0]),
        return_logits=True,
        multimask_output=False,
    )
    side = 64 if name == "sam_vit_b" else 128
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    image = torch.from_numpy(rgb).permute(2, 0, 1)[None].float()
    if side != 64:
        image = torch.nn.functional.interpolate(
            image, (side, side), mode="bilinear", antialias=True
        ).round()
    pixels = (image.permute(0, 2, 3, 1).numpy() / 255 - mean) / std
    with torch.no_grad():
        out = model(
            pixel_values=torch.from_numpy(pixels).permute(0, 3, 1, 2).float(),
            input_points=torch.tensor([[[[20.0, 20], [40, 50]]]]) * side / 64,
            input_labels=torch.tensor([[[1, 0]]]),
            multimask_output=False,
        )
    frame = torch.nn.functional.interpolate(out.pred_masks[0], (side, side), mode="bilinear")
    want = torch.nn.functional.interpolate(frame, (64, 64), mode="bilinear")[0]
    assert np.abs(got - want.numpy()).max() < (1e-4 if side == 64 else 0.5)
    assert want.std() > 0


def test_matte_anything_keeps_what_the_trimap_knows(home):
    tiny_sam("sam").save_pretrained(home / "sam_vit_b")
    backbone = transformers.VitDetConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=64, patch_size=16,
        num_channels=4, out_features=["stage2"],
    )  # fmt: skip
    config = transformers.VitMatteConfig(
        backbone_config=backbone,
        hidden_size=32,
        convstream_hidden_sizes=[8, 8, 8],
        fusion_hidden_sizes=[8, 8, 8, 8],
    )
    transformers.VitMatteForImageMatting(config).save_pretrained(home / "matte_anything")
    model = load_segmenter("matte_anything", device="cpu")
    assert isinstance(model, MatteAnything)
    rgb = picture(48, 64)
    model.set_image(rgb)
    mattes, scores, _ = model.predict(box=np.array([10, 8, 50, 40]))
    assert mattes.shape == (3, 48, 64)
    assert scores.shape == (3,)
    masks, _, _ = model.sam.predict(box=np.array([10, 8, 50, 40]))
    for matte, mask in zip(mattes, masks, strict=True):
        trimap = band_trimap(mask > 0.5, 2)
        known = trimap != 0.5
        np.testing.assert_array_equal(matte[known], trimap[known].astype(np.float32))


@pytest.mark.parametrize("name", ["grabcut", "closed_form"])
def test_classical_finds_a_disc(name):
    if name == "closed_form":
        pytest.importorskip("pymatting")
    model = load_segmenter(name)
    model.set_image(picture())
    truth = disc()
    mattes, _, _ = model.predict(box=np.array([14, 5, 50, 43]))
    assert np.abs(mattes[0] - truth).mean() < 0.03
    with pytest.raises(PromptError, match="positive click"):
        model.predict(point_coords=np.array([[3, 3]]), point_labels=np.array([0]))


@pytest.mark.parametrize("name", ["matting_anything", "smat"])
def test_supplied_systems_say_what_to_bring(home, name):
    with pytest.raises(CheckpointError, match=r"model\.onnx .* zim_adapter\.py"):
        load_segmenter(name)
    folder = home / name
    folder.mkdir(parents=True)
    (folder / "zim_adapter.py").write_text(
        "from zim.segmenters.classical import GrabCut\ndef load(device):\n    return GrabCut()\n"
    )
    model = load_segmenter(name)
    model.set_image(picture())
    assert model.predict(box=np.array([14, 5, 50, 43]))[0].shape == (1, 48, 64)


def test_missing_weights_name_hub_id_licence_and_place(home):
    with pytest.raises(DownloadError, match=r"facebook/sam2\.1-hiera-large .*Apache-2\.0"):
        load_segmenter("sam2_hiera_l", device="cpu")


def test_a_supplied_onnx_file(home):
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT

    def save(image_name: str) -> None:
        inputs = [
            helper.make_tensor_value_info(image_name, kind, [1, 3, None, None]),
            helper.make_tensor_value_info("point_coords", kind, [1, None, 2]),
            helper.make_tensor_value_info("point_labels", kind, [1, None]),
        ]
        output = helper.make_tensor_value_info("alpha", kind, [1, 1, None, None])
        node = helper.make_node("ReduceMax", [image_name], ["alpha"], axes=[1], keepdims=1)
        graph = helper.make_graph([node], "brightness", inputs, [output])
        opset = [helper.make_opsetid("", 13)]
        onnx.save(
            helper.make_model(graph, opset_imports=opset, ir_version=8),
            home / "smat" / "model.onnx",
        )

    pytest.importorskip("onnxruntime")
    (home / "smat").mkdir(parents=True)
    save("image")
    model = load_segmenter("smat")
    rgb = picture()
    model.set_image(rgb)
    matte = model.predict(box=np.array([14, 5, 50, 43]))[0][0]
    np.testing.assert_allclose(matte, rgb.max(axis=2) / 255, atol=1e-6)
    save("photo")
    with pytest.raises(CheckpointError, match="its inputs are photo"):
        load_segmenter("smat")
