"""The original package, in its own environment (.ci/groundingdino); a tiny random model."""

import importlib.metadata
import json

import numpy as np
import pytest
import torch
from packaging.version import Version

from zim.errors import CheckpointError
from zim.images import save_rgb
from zim.testing import picture, tiny_model
from zim_grounded.cli import main
from zim_grounded.detectors import Thresholds, load_detector

# an old package on newer libraries: their deprecations are not ours to fix
pytestmark = pytest.mark.filterwarnings("ignore")

CONFIG = """
batch_size = 1
modelname = "groundingdino"
backbone = "swin_T_224_1k"
position_embedding = "sine"
pe_temperatureH = 20
pe_temperatureW = 20
return_interm_indices = [1, 2, 3]
backbone_freeze_keywords = None
enc_layers = 1
dec_layers = 1
pre_norm = False
dim_feedforward = 64
hidden_dim = 256
dropout = 0.0
nheads = 8
num_queries = 20
query_dim = 4
num_patterns = 0
num_feature_levels = 4
enc_n_points = 4
dec_n_points = 4
two_stage_type = "standard"
two_stage_bbox_embed_share = False
two_stage_class_embed_share = False
transformer_activation = "relu"
dec_pred_bbox_embed_share = True
dn_box_noise_scale = 1.0
dn_label_noise_ratio = 0.5
dn_label_coef = 1.0
dn_bbox_coef = 1.0
embed_init_tgt = True
dn_labelbook_size = 2000
max_text_len = 256
text_encoder_type = "{folder}"
use_text_enhancer = True
use_fusion_layer = True
use_checkpoint = False
use_transformer_ckpt = False
use_text_cross_attention = True
text_dropout = 0.0
fusion_dropout = 0.0
fusion_droppath = 0.1
sub_sentence_present = True
"""


def require_package() -> None:
    pytest.importorskip("groundingdino", reason="needs the extra groundingdino")
    version = Version(importlib.metadata.version("transformers"))
    if version >= Version("5"):
        pytest.skip("groundingdino-py does not run on transformers 5")


@pytest.fixture(scope="module")
def files(tmp_path_factory, vocabulary):
    require_package()
    import transformers
    from groundingdino.models import build_model  # pyright: ignore[reportMissingImports]
    from groundingdino.util.slconfig import SLConfig  # pyright: ignore[reportMissingImports]

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("original")
    bert = transformers.BertConfig(
        vocab_size=1100,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=37,
        max_position_embeddings=256,
    )
    transformers.BertModel(bert).save_pretrained(folder / "bert")
    words = sorted(vocabulary, key=lambda word: vocabulary[word])
    (folder / "bert" / "vocab.txt").write_text("\n".join(words) + "\n")
    from transformers import BertTokenizerFast  # pyright: ignore[reportAttributeAccessIssue]

    tokenizer = BertTokenizerFast(str(folder / "bert" / "vocab.txt"))
    assert tokenizer.vocab_size == 1100
    tokenizer.save_pretrained(folder / "bert")
    config = folder / "config.py"
    config.write_text(CONFIG.replace("{folder}", str(folder / "bert")))
    args = SLConfig.fromfile(str(config))
    args.device = "cpu"
    model = build_model(args)
    weights = {f"module.{k}": v for k, v in model.state_dict().items()}
    torch.save({"model": weights}, folder / "weights.pth")
    return config, folder / "weights.pth"


@pytest.mark.slow
def test_it_agrees_with_the_packages_own_prediction(files):
    from groundingdino.util.inference import (  # pyright: ignore[reportMissingImports]
        load_image,
        load_model,
        predict,
    )

    config, weights = files
    name = f"groundingdino-py:{config}:{weights}"
    detector = load_detector(name, "cpu", Thresholds(box=0.0, nms=1.0, most=99))
    photo = picture(96, 128)
    path = config.parent / "photo.png"
    save_rgb(path, photo)
    phrases = ["the dog's fur", "cat", "red ball"]
    found = detector.detect(photo, phrases)
    assert len(found) > 5
    _, pixels = load_image(str(path))
    model = load_model(str(config), str(weights), "cpu")
    caption = "the dog's fur. cat. red ball."
    boxes, scores, _ = predict(model, pixels, caption, -1.0, 0.25, "cpu")
    middle, half = boxes[:, :2].numpy(), boxes[:, 2:].numpy() / 2
    corners = np.concatenate([middle - half, middle + half], 1) * [128, 96, 128, 96]
    corners = corners.clip(0, [128, 96, 128, 96])
    for f in found:
        row = np.abs(corners - np.array(f.box)).max(1).argmin()
        np.testing.assert_allclose(corners[row], f.box, atol=0.05)
        assert f.score <= float(scores[row]) + 1e-4


@pytest.mark.slow
def test_the_command_runs_on_it(files, tmp_path, capsys):
    config, weights = files
    save_rgb(tmp_path / "photo.png", picture(96, 128))
    model = str(tiny_model().save_pretrained(tmp_path / "model"))
    words = ["cat . red ball", "--image", str(tmp_path / "photo.png"), "--model", model]
    words += ["--detector", f"groundingdino-py:{config}:{weights}", "--threshold", "0"]
    words += ["--max-boxes", "3", "--device", "cpu", "--json", "-o", str(tmp_path / "out")]
    assert main(words) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["detector"].startswith("groundingdino-py")
    assert {item["phrase"] for item in report["items"]} <= {"cat", "red ball"}


def test_its_files_are_asked_for(tmp_path):
    with pytest.raises(CheckpointError, match=r"CONFIG\.py"):
        load_detector("groundingdino-py")
    with pytest.raises(CheckpointError, match="does not exist"):
        load_detector(f"groundingdino-py:{tmp_path}/a.py:{tmp_path}/b.pth")
