import itertools

import numpy as np
import pytest
import torch

from zim.errors import CheckpointError, PromptError
from zim.protocols import Detector
from zim_grounded.detectors import Thresholds, load_detector
from zim_grounded.text_detector import assign
from zim_grounded.transformers_detectors import GroundingDetector, OwlDetector

PHRASES = ["the dog's fur", "Cat", "red ball"]


@pytest.fixture(scope="module")
def gdino(gdino_folder) -> GroundingDetector:
    detector = load_detector(str(gdino_folder), "cpu", Thresholds(box=0.0))
    assert isinstance(detector, GroundingDetector)
    return detector


def test_it_is_a_detector_and_answers_in_the_order_of_asking(gdino, photo):
    assert isinstance(gdino, Detector)
    found = gdino.detect(photo, PHRASES)
    assert found
    order = [PHRASES.index(f.phrase) for f in found]
    assert order == sorted(order)
    for a, b in itertools.pairwise(found):
        assert a.phrase != b.phrase or a.score >= b.score
    for f in found:
        x0, y0, x1, y1 = f.box
        assert 0 <= x0 < x1 <= 128
        assert 0 <= y0 < y1 <= 96


def test_scores_are_the_librarys_own(gdino, photo):
    """Boxes and best token scores agree with transformers' post-processing, label rule aside."""
    text = "the dog's fur. cat. red ball."
    inputs = gdino.processor(images=photo, text=text, return_tensors="pt")
    with torch.inference_mode():
        outputs = gdino.model(**inputs)
    theirs = gdino.processor.post_process_grounded_object_detection(
        outputs, inputs["input_ids"], threshold=0.0, text_threshold=0.0, target_sizes=[(96, 128)]
    )[0]
    boxes = theirs["boxes"].numpy().clip(0, [128, 96, 128, 96])
    ours = gdino.candidates(photo, PHRASES)
    assert len(ours) > 5
    for f in ours:
        row = np.abs(boxes - np.array(f.box)).max(1).argmin()
        np.testing.assert_allclose(boxes[row], f.box, atol=1e-3)
        # theirs is the best of all tokens, those of other phrases and specials included
        assert f.score <= float(theirs["scores"][row]) + 1e-5
        assert f.score == pytest.approx(max(s for _, s in f.tokens), abs=1e-4)


def test_tokens_are_those_of_the_phrase(gdino, photo):
    by_phrase = {f.phrase: [t for t, _ in f.tokens] for f in gdino.candidates(photo, PHRASES)}
    known = {"the dog's fur": ["the", "dog", "'", "s", "fur"], "Cat": ["cat"]}
    known["red ball"] = ["red", "ball"]
    for phrase, tokens in by_phrase.items():
        assert tokens == known[phrase]


def test_sub_word_phrases_stay_whole(gdino, photo):
    found = gdino.candidates(photo, ["dogshouse", "zebra"])
    assert {f.phrase for f in found} <= {"dogshouse", "zebra"}
    for f in found:
        if f.phrase == "dogshouse":
            assert [t for t, _ in f.tokens] == ["dogs", "##hou", "##se"]


def test_alone_or_with_others_the_same(gdino, photo):
    other = np.ascontiguousarray(photo[::-1, :100])
    alone = gdino.candidates(photo, PHRASES)
    gdino.candidates(other, ["cat"])
    assert gdino.candidates(photo, PHRASES) == alone


def test_a_phrase_over_the_limit_is_a_clear_error(gdino, photo):
    with pytest.raises(PromptError, match=r"has 91 tokens.*at most 62; shorten"):
        gdino.detect(photo, ["dog " * 90])
    with pytest.raises(PromptError, match="no words"):
        gdino.detect(photo, ["."])


def test_forty_phrases_take_few_passes(gdino, photo):
    phrases = [f"red ball {i}" for i in range(40)]
    passes = gdino.passes(phrases)
    assert [p for some in passes for p in some] == phrases
    counts = [
        len(gdino.processor.tokenizer(" ".join(f"{p}." for p in some))["input_ids"])
        for some in passes
    ]
    assert max(counts) <= 64
    # none of the passes could have taken the next one's first phrase
    for some, following in itertools.pairwise(passes):
        text = " ".join(f"{p}." for p in [*some, following[0]])
        assert len(gdino.processor.tokenizer(text)["input_ids"]) > 64
    found = gdino.detect(photo, phrases)
    assert {f.phrase for f in found} <= set(phrases)


def test_separate_passes_ask_each_phrase_alone(gdino, photo):
    try:
        gdino.separate = True
        assert gdino.passes(PHRASES) == [[p] for p in PHRASES]
        cat = [f for f in gdino.candidates(photo, PHRASES) if f.phrase == "Cat"]
        assert cat == gdino.candidates(photo, ["Cat"])
    finally:
        gdino.separate = False


def test_assignment_by_hand():
    #                  the  dog  .   cat  .
    scores = np.array([[0.1, 0.9, 0.0, 0.3, 0.0],
                       [0.2, 0.1, 0.9, 0.4, 0.0],   # the dot is nobody's token
                       [0.1, 0.5, 0.0, 0.5, 0.0],   # a tie goes to the first
                       [0.1, 0.2, 0.0, 0.8, 0.0]])  # fmt: skip
    boxes = np.array([[0, 0, 10, 10], [-5, 2, 8, 30], [1, 1, 4, 4], [50, 50, 60, 60]], float)
    tokens = ["the", "dog", ".", "cat", "."]
    found = assign(scores, boxes, [(0, 2), (3, 4)], ["The dog", "cat"], tokens, (20, 20))
    assert [(f.phrase, f.box, f.score) for f in found] == [
        ("The dog", (0, 0, 10, 10), 0.9),
        ("The dog", (1, 1, 4, 4), 0.5),
        ("cat", (0, 2, 8, 20), 0.4),  # cut to the picture; the last box lies outside and is gone
    ]
    assert found[0].tokens == (("the", 0.1), ("dog", 0.9))


def test_owlv2_runs_and_boxes_use_the_padded_square(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    text = {"vocab_size": 600, "hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "max_position_embeddings": 16}
    text |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    vision = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 64, "patch_size": 16}
    config = transformers.Owlv2Config(text_config=text, vision_config=vision, projection_dim=32)
    model = transformers.Owlv2ForObjectDetection(config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "box_head" in name or "logit_s" in name:  # fresh ones saturate
                value.normal_(0, 0.05)
    letters = "abcdefghijklmnopqrstuvwxyz "
    vocab = {"!": 0, "<|startoftext|>": 1, "<|endoftext|>": 2}  # a first id of 0 means no query
    for c in letters:
        vocab.setdefault(c, len(vocab))
        vocab.setdefault(f"{c}</w>", len(vocab))
    tokenizer = transformers.CLIPTokenizerFast(vocab=vocab, merges=[])
    images = transformers.Owlv2ImageProcessor(size={"height": 64, "width": 64})
    processor = transformers.Owlv2Processor(images, tokenizer)
    folder = tmp_path / "owl"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    detector = load_detector(str(folder), "cpu", Thresholds(box=0.0, nms=1.0, most=999))
    assert isinstance(detector, OwlDetector)
    picture = np.random.default_rng(0).integers(0, 255, (40, 80, 3), np.uint8)
    found = detector.detect(picture, ["dog", "cat"])
    assert found
    inputs = detector.processor(images=picture, text=[["dog", "cat"]], return_tensors="pt")
    with torch.inference_mode():
        outputs = detector.model(**inputs)
    theirs = detector.processor.post_process_grounded_object_detection(
        outputs, threshold=0.0, target_sizes=[(40, 80)], text_labels=[["dog", "cat"]]
    )[0]
    boxes = theirs["boxes"].numpy().clip(0, [80, 40, 80, 40])
    for f in found:
        same = np.abs(boxes - np.array(f.box)).max(1) < 1e-3
        same &= np.abs(theirs["scores"].numpy() - f.score) < 1e-5
        assert f.phrase in [theirs["text_labels"][row] for row in np.flatnonzero(same)]
    with pytest.raises(PromptError, match="takes 3 to 16"):
        detector.detect(picture, ["a very long phrase indeed"])


def test_missing_weights_are_one_message(monkeypatch, tmp_path):
    monkeypatch.setenv("ZIM_OFFLINE", "1")
    monkeypatch.setenv("ZIM_HOME", str(tmp_path))
    with pytest.raises(CheckpointError) as caught:
        load_detector("gdino-base")
    text = str(caught.value)
    for part in ("IDEA-Research/grounding-dino-base", "930 MB", "Apache-2.0", str(tmp_path)):
        assert part in text
    assert "\n" not in text


def test_weights_placed_by_hand_are_found(monkeypatch, tmp_path, gdino_folder):
    monkeypatch.setenv("ZIM_HOME", str(tmp_path))
    (tmp_path / "detectors").mkdir()
    (tmp_path / "detectors" / "gdino-tiny").symlink_to(gdino_folder)
    detector = load_detector("gdino-tiny", "cpu")
    assert detector.name == "gdino-tiny"
    assert detector.thresholds.box == 0.3


def test_other_models_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="unknown detector 'yolo'"):
        load_detector("yolo")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match="'bert'"):
        load_detector(str(tmp_path))
