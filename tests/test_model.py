import pickle

import pytest
import torch
from torchvision.models import mobilenet_v2, resnet18

from emo import EmoError, create_model
from emo.model import load_model, save_torch


@pytest.mark.parametrize(("backbone", "features"), [("resnet18", 512), ("mobilenet_v2", 1280)])
def test_shapes(backbone, features):
    model = create_model(backbone, pretrained=False).eval()
    image = torch.randn(3, 3, 64, 64)
    logits, va = model(image)
    assert logits.shape == (3, 8)
    assert va.shape == (3, 2)
    assert va.abs().max() <= 1
    assert model.backbone(image).shape == (3, features)
    assert model(image).logits is not None


@pytest.mark.parametrize("backbone", ["resnet99", "squeezenet1_0"])
def test_other_backbones_are_refused(backbone):
    with pytest.raises(EmoError, match="resnet18"):
        create_model(backbone, pretrained=False)


@pytest.mark.parametrize(
    ("name", "build", "file"),
    [
        ("resnet18", resnet18, "resnet18-f37072fd.pth"),
        ("mobilenet_v2", mobilenet_v2, "mobilenet_v2-7ebf99e0.pth"),
    ],
)
def test_pretrained_weights_are_loaded(name, build, file, tmp_path, monkeypatch):
    """The real loading code, on a state dict that stands in for ImageNet's."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    source = build()
    torch.save(source.state_dict(), folder / file)
    monkeypatch.setattr("torch.hub.download_url_to_file", None)
    key = "features.0.0.weight" if name == "mobilenet_v2" else "conv1.weight"
    try:
        model = create_model(name)
    except TypeError:
        pytest.fail("the cached file was not used")
    assert torch.equal(model.backbone.state_dict()[key], source.state_dict()[key])


def test_without_the_host_one_clear_sentence(tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise OSError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    with pytest.raises(EmoError, match="--no-pretrained"):
        create_model("resnet18")


def test_weights_round_trip_with_their_config(tmp_path):
    model = create_model("resnet18", pretrained=False).eval()
    model.config["image_size"] = 48
    save_torch(model.state_dict(), tmp_path / "w.pth")
    again = load_model(tmp_path / "w.pth")
    image = torch.randn(2, 3, 48, 48)
    assert torch.equal(again(image).logits, model(image).logits)
    assert again.config == model.config
    plain = create_model("resnet18", pretrained=False)
    plain.load_state_dict(torch.load(tmp_path / "w.pth", weights_only=True))
    assert plain.config["image_size"] == 48


class _Bomb:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_a_pickle_that_would_run_code_is_refused(tmp_path, capsys):
    torch.save({"model": _Bomb()}, tmp_path / "bomb.pth")
    with pytest.raises(EmoError, match="could run code"):
        load_model(tmp_path / "bomb.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(EmoError):
        load_model(tmp_path / "raw.pth")
    assert "must not run" not in capsys.readouterr().out


def test_damaged_and_foreign_files(tmp_path):
    with pytest.raises(EmoError, match="does not exist"):
        load_model(tmp_path / "none.pth")
    torch.save({"a": torch.zeros(3)}, tmp_path / "foreign.pth")
    with pytest.raises(EmoError, match="no emo model"):
        load_model(tmp_path / "foreign.pth")
    whole = (tmp_path / "foreign.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EmoError, match="damaged|plain weights"):
        load_model(tmp_path / "cut.pth")
