"""Test the models under timm's names, weights by path or from the hub, and the report of a conversion."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from model_commands import sgmodel as exit_code

import sgmodel
from sgdata import files
from sgdata.errors import SettingError, SourceError
from sgmodel.checkpoints import cards, checkpoint_folder, hub
from sgmodel.models import encoder, factory, mae, specs

TINY = encoder.EncoderConfig(image_px=32, width=64, depth=2, heads=1)


def test_timm_makes_and_runs_our_models() -> None:
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    from sgmodel import timm_models  # before timm: it lets timm's torchvision be imported

    timm = importlib.import_module("timm")
    assert len(timm.list_models("spectralgpt_*")) == 6
    with torch.device("meta"):
        model = timm.create_model("spectralgpt_base_patch8_128", num_classes=10)
        x = torch.empty(2, 12, 128, 128)
        assert sum(p.numel() for p in model.parameters()) == 85_403_904 + 7690
        assert model(x).shape == (2, 10)
        assert model.forward_features(x).shape == (2, 1024, 768)
        final, layers = model.forward_intermediates(x, indices=[2, -1])
        assert final.shape == (2, 1024, 768)
        assert [layer.shape for layer in layers] == [(2, 768, 16, 16)] * 2
        assert timm.create_model("spectralgpt_large_patch8_96")(torch.empty(1, 12, 96, 96)).shape == (1, 1024)
    small = timm_models.TimmSpectralGPT(TINY, 0).eval()
    x = torch.rand(1, 12, 32, 32)
    last = small.forward_intermediates(x, indices=1, norm=True, output_fmt="NLC", intermediates_only=True)[0]
    assert torch.equal(last, small.forward_features(x))


def test_weights_by_path_and_by_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = encoder.Encoder(TINY)
    checkpoint_folder.save(tmp_path / "mine", model, cards.ModelCard(model=specs.describe(model)))
    loaded = sgmodel.from_pretrained(tmp_path / "mine")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for name in ("nowhere", "some/model", "some/model@v1"):
        with pytest.raises(SourceError, match=f"{name}: no such file or folder; give .* hf:OWNER/NAME"):
            hub.resolve(name)
    for name in ("hf:model", "hf:../model", "hf:a/b/c", "hf:some/model@../v1"):
        with pytest.raises(SourceError, match=f"{name}: not a name on the hub"):
            hub.resolve(name)
    with pytest.raises(SettingError, match="hf:some/model: .* pip install huggingface_hub"):
        hub.resolve("hf:some/model")


def test_commands_take_no_missing_path_for_a_name_on_the_hub(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code("convert", "some/model", "--out", tmp_path / "out") == 2
    assert "some/model: no such file or folder" in capsys.readouterr().err


def test_the_hub_client_is_asked_for_no_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}

    class Client:
        @staticmethod
        def snapshot_download(name: str, **options: object) -> str:
            asked.update(options, name=name)
            return str(tmp_path)

    monkeypatch.setitem(sys.modules, "huggingface_hub", Client)
    assert hub.resolve("hf:some/model@v1") == tmp_path
    assert asked == {"name": "some/model", "revision": "v1", "allow_patterns": ["*.safetensors", "*.json"]}


def test_converter_reports_and_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = mae.MaskedAutoencoder(encoder.Encoder(TINY), mae.DecoderConfig(width=64, depth=1, heads=2))
    torch.save({"model": {f"module.{k}": v for k, v in made.state_dict().items()}}, tmp_path / "theirs.pth")
    assert exit_code("convert", tmp_path / "theirs.pth", "--out", tmp_path / "ours") == 0
    assert "encoder filled: 100.0%" in capsys.readouterr().out
    state = sgmodel.from_pretrained(tmp_path / "ours").state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in made.state_dict().items())
    half = {name: tensor for name, tensor in made.state_dict().items() if "blocks.1" not in name or "norm" in name}
    torch.save(half, tmp_path / "half.pth")
    assert exit_code("convert", tmp_path / "half.pth", "--out", tmp_path / "never") == 2
    assert "of the encoder's parameters fit" in capsys.readouterr().err
    assert not (tmp_path / "never").exists()


class Canary:
    """Makes a folder where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("checkpoint_path", "{}/weights.pth"),
        ("pretrained_cfg", "{}/weights.pth"),
        ("pretrained", True),
        ("cache_dir", "{}"),
        ("norm_layer", "os.system"),
    ],
)
def test_a_card_asks_timm_for_no_file(option: str, value: str | bool, tmp_path: Path) -> None:
    torch.save({"state_dict": Canary(tmp_path / "ran")}, tmp_path / "weights.pth")
    options = {option: value.format(tmp_path) if isinstance(value, str) else value}
    spec = specs.TaskSpec(
        kind="classifier", recipe=factory.ModelRecipe(backbone="timm:resnet18", options=options), bands=3, classes=2
    )
    files.write(tmp_path / "checkpoint" / "card.json", files.pretty_json(cards.ModelCard(model=spec)))
    with pytest.raises(SettingError, match=rf"model.options of 'resnet18': '{option}' cannot be set"):
        cards.load(tmp_path / "checkpoint")
    assert not (tmp_path / "ran").exists()
