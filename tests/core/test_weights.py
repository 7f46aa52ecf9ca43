"""Checkpoints: our format, SAM's layouts, and what happens to broken ones."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

import zim
from zim.config import PRESETS, ViTConfig, ZimConfig
from zim.errors import CheckpointError, ConfigError, DownloadError, OutputError
from zim.testing import TINY_NANO, tiny_model
from zim.weights import REGISTRY, load_sam, store


@pytest.mark.parametrize("config", [PRESETS["tiny"], TINY_NANO], ids=["vit", "conv"])
def test_save_and_load_give_the_same_model(config: ZimConfig, tmp_path: Path) -> None:
    model = tiny_model(config)
    model.save_pretrained(tmp_path / "m")
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    again = zim.Zim.from_pretrained(tmp_path / "m")
    assert again.config == config
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    assert torch.random.initial_seed() == torch.random.initial_seed()


def test_half_precision_halves_the_file_and_loads_as_float32(tmp_path: Path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path / "full")
    model.save_pretrained(tmp_path / "half", half=True)
    size = {k: (tmp_path / k / "model.safetensors").stat().st_size for k in ("full", "half")}
    assert size["half"] < 0.65 * size["full"]
    again = zim.load(tmp_path / "half", device="cpu", dtype="float32")
    assert again.dtype == torch.float32
    for a, b in zip(again.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


def test_weights_that_were_rounded_are_saved_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_model().save_pretrained(tmp_path / "exact")
    assert not caplog.messages
    zim.load(tmp_path / "exact", device="cpu", dtype="bfloat16").save_pretrained(tmp_path / "b")
    (said,) = caplog.messages
    assert str(tmp_path / "b") in said
    assert "dtype='float32'" in said


def test_loading_leaves_the_users_random_numbers_alone(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    zim.Zim.from_pretrained(tmp_path)
    zim.build("tiny", seed=1)
    assert torch.equal(torch.rand(3), expected)


def test_a_damaged_or_foreign_checkpoint_is_named(tmp_path: Path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path / "m")
    weights = tmp_path / "m" / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        zim.load(tmp_path / "m")
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"no model\.safetensors"):
        zim.load(tmp_path / "m")
    weights.write_bytes(data)
    (tmp_path / "m" / "config.json").write_text('{"name": "x"}')
    with pytest.raises(CheckpointError, match="not a ZIM configuration"):
        zim.load(tmp_path / "m")
    model.save_pretrained(tmp_path / "m")
    wider = zim.build(ZimConfig("wide", ViTConfig(embed_dim=64, depth=1, heads=2), image_size=64))
    wider.save_pretrained(tmp_path / "w")
    (tmp_path / "m" / "config.json").write_text((tmp_path / "w" / "config.json").read_text())
    with pytest.raises(CheckpointError, match="do not fit"):
        zim.load(tmp_path / "m")


def test_unwritable_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write a checkpoint"):
        tiny_model().save_pretrained(tmp_path / "file" / "sub")


def test_unknown_and_missing_models_say_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZIM_HOME", str(tmp_path))
    monkeypatch.setenv("ZIM_OFFLINE", "1")
    with pytest.raises(
        CheckpointError,
        match=r"unknown model 'vit_x'; did you mean 'vit_[lh]'\? expected one of nano",
    ):
        zim.load("vit_x")
    with pytest.raises(CheckpointError, match=r"vit_b: no weights at .*zim\.build\('vit_b'\)"):
        zim.load("vit_b")
    with pytest.raises(CheckpointError, match="is for zim matte, batch and eval"):
        zim.load("sam_vit_b")
    with pytest.raises(DownloadError, match="ZIM_OFFLINE"):
        zim.load("someone/some-model")
    with pytest.raises(ConfigError, match="unknown configuration"):
        zim.build("vit_x")
    with pytest.raises(ConfigError, match="device 'gpu' is unknown"):
        zim.load("nano", device="gpu")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(ConfigError, match="device 'cuda:2' is not here; there are 2"):
        zim.load("nano", device="cuda:2")


def test_our_weights_are_found_in_zim_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZIM_HOME", str(tmp_path))
    tiny_model().save_pretrained(tmp_path / "models" / "vit_b")
    assert zim.load("vit_b").config.name == "tiny"


def test_a_hub_id_is_read_from_the_hubs_own_cache_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What huggingface_hub leaves on disk after a download is found again without a network."""
    revision = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "models--someone--zim-tiny"
    tiny_model().save_pretrained(repo / "snapshots" / revision)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(revision)
    monkeypatch.setenv("ZIM_OFFLINE", "1")
    model = zim.Zim.from_pretrained("someone/zim-tiny", cache_dir=tmp_path)
    assert model.config.name == "tiny"


def _sam_like(model: zim.Zim) -> dict[str, torch.Tensor]:
    state = {k: v for k, v in model.state_dict().items() if "pixel_decoder" not in k}
    return {k: torch.randn_like(v) for k, v in state.items()}


def test_load_sam_reports_what_is_new(tmp_path: Path) -> None:
    model = zim.build("tiny", seed=0)
    state = _sam_like(model)
    state["mask_decoder.output_upscaling.0.bias"] = torch.zeros(8)
    torch.save({"model": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "sam.pth")
    report = load_sam(model, tmp_path / "sam.pth")
    assert report == len(state) - 1
    assert isinstance(report, int)
    assert report.unused == ("mask_decoder.output_upscaling.0.bias",)
    assert all("pixel_decoder" in name for name in report.new)
    for name in state.keys() - set(report.unused):
        assert torch.equal(model.state_dict()[name], state[name])


def test_positions_of_another_image_size_are_interpolated(tmp_path: Path) -> None:
    source = zim.build("tiny", seed=0)
    torch.save(_sam_like(source), tmp_path / "sam.pth")
    from dataclasses import replace

    target = zim.build(replace(PRESETS["tiny"], image_size=96), seed=1)
    report = load_sam(target, tmp_path / "sam.pth")
    assert "image_encoder.pos_embed" in report.resized
    assert "image_encoder.blocks.1.attn.rel_pos_h" in report.resized
    assert not any("blocks.0.attn" in name for name in report.resized)  # windows keep their size


def test_a_sam_of_another_size_is_refused_before_anything_changes(tmp_path: Path) -> None:
    bigger = zim.build(ZimConfig("big", ViTConfig(embed_dim=64, depth=3, heads=2), image_size=64))
    torch.save(_sam_like(bigger), tmp_path / "big.pth")
    model = zim.build("tiny", seed=0)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(CheckpointError, match="choose the configuration of the same size"):
        load_sam(model, tmp_path / "big.pth")
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())


def test_a_file_that_is_not_sam_is_refused(tmp_path: Path) -> None:
    model = zim.build("tiny", seed=0)
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(CheckpointError, match="not a PyTorch checkpoint"):
        load_sam(model, tmp_path / "text.pth")
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="holds no SAM image encoder"):
        load_sam(model, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="no such file"):
        load_sam(model, tmp_path / "missing.pth")


def test_a_pickled_module_is_refused_without_pytorchs_advice(tmp_path: Path) -> None:
    path = tmp_path / "module.pth"
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(
        CheckpointError, match="it holds more than tensors, or is damaged"
    ) as caught:
        store.read_state(path)
    assert str(caught.value).isprintable()


def test_every_registry_row_states_its_licence_and_source() -> None:
    for row in REGISTRY.values():
        assert row.licence
        assert row.source
        assert row.config in PRESETS
        assert row.bundled == row.installed() or not row.bundled


def test_the_bundled_weights_are_the_registered_ones() -> None:
    row = REGISTRY["nano"]
    data = row.path().read_bytes()
    assert len(data) == row.bytes
    assert hashlib.sha256(data).hexdigest() == row.sha256
    assert len(data) <= 40e6
    model = zim.load("nano", device="cpu", dtype="float32")
    assert model.config == PRESETS["nano"]


def test_a_hub_whose_name_is_unknown_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ZIM_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example:8443")
    monkeypatch.setattr(store.urllib.request, "getproxies", dict)
    asked: list[tuple[str, int]] = []
    monkeypatch.setattr(store.socket, "getaddrinfo", lambda *where: asked.append(where))
    assert not store.cache_only()
    assert asked == [("mirror.example", 8443)]
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example:abc")
    assert not store.cache_only()
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example:8443")

    def unknown(*where: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(store.socket, "getaddrinfo", unknown)
    assert store.cache_only()
    monkeypatch.setattr(store.urllib.request, "getproxies", lambda: {"no": "localhost"})
    assert store.cache_only()
    monkeypatch.setattr(store.urllib.request, "getproxies", lambda: {"https": "http://proxy:3128"})
    assert not store.cache_only()
    monkeypatch.setenv("ZIM_OFFLINE", "1")
    assert store.cache_only()
