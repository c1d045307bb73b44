import dataclasses
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from emo import TrainConfig, create_model, fit
from emo.errors import EmoError
from emo.files import read_json
from emo.losses import multitask_loss
from emo.model import load_model
from emo.train import combined_score, load_data, read_config, read_manifest

HISTORY = (
    "epoch train_loss val_loss val_accuracy val_macro_f1 val_ccc_valence val_ccc_arousal "
    "combined_score learning_rate images_per_second seconds"
).split()
MODEL_CONFIG = (
    "backbone classes image_size mean std colour crop_margin temperature va data metrics "
    "emo_version"
).split()


def test_run_folder(run, config):
    files = {path.name for path in run.iterdir()}
    assert files >= {
        "config.json",
        "manifest.csv",
        "history.csv",
        "last.pth",
        "best_model.pth",
        "model_weights.pth",
        "model_config.json",
    }
    history = pd.read_csv(run / "history.csv")
    assert list(history.columns) == HISTORY
    assert history["epoch"].tolist() == [1, 2]
    facts = read_json(run / "model_config.json")
    assert list(facts) == MODEL_CONFIG
    assert facts["va"] == "annotated"
    assert facts["colour"] == "rgb"
    assert 0 <= facts["crop_margin"] <= 1
    assert set(read_manifest(run / "manifest.csv")["split"]) == {"train", "val", "test"}
    assert read_config(run) == config
    model = load_model(run / "best_model.pth")
    assert model.config == facts
    twin = create_model("resnet18", pretrained=False)
    twin.load_state_dict(torch.load(run / "model_weights.pth", weights_only=True))
    assert twin.config == facts


def test_selection_score():
    assert combined_score(0.5, 0.25) == 0.75
    assert combined_score(0.5, float("nan")) == 0.5
    assert combined_score(0.5, None) == 0.5


def test_one_batch_can_be_overfitted(faces):
    torch.manual_seed(0)
    model = create_model("resnet18", pretrained=False).train()
    batch = {
        "image": torch.randn(16, 3, 32, 32),
        "emotion": torch.arange(16) % 8,
        "va": torch.rand(16, 2) * 2 - 1,
    }
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(25):
        loss = multitask_loss(model(batch["image"]), batch).total
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.2


def test_a_resumed_run_ends_like_an_uninterrupted_one(run, config, tmp_path):
    """Bit for bit, on a CPU; the epoch that was finished is not run again."""
    stopped = dataclasses.replace(config, output_dir=str(tmp_path / "run"), epochs=1)
    fit(stopped)
    rows = []
    fit(dataclasses.replace(stopped, epochs=2), resume=True, on_epoch=rows.append)
    assert len(rows) == 1
    whole = torch.load(run / "best_model.pth", weights_only=True)
    again = torch.load(tmp_path / "run" / "best_model.pth", weights_only=True)
    for name, value in whole["model"].items():
        if torch.is_tensor(value):
            assert torch.equal(value, again["model"][name]), name
    columns = ["epoch", "train_loss", "val_loss", "combined_score"]
    a, b = (pd.read_csv(folder / "history.csv")[columns] for folder in (run, tmp_path / "run"))
    assert a.equals(b)


def test_a_finished_run_is_not_trained_again(run, config):
    before = (run / "last.pth").stat().st_mtime_ns
    assert len(fit(config, resume=True)) == 2
    assert (run / "last.pth").stat().st_mtime_ns == before


def test_a_run_can_start_from_the_weights_of_another(run, config, tmp_path):
    weights, new = str(run / "best_model.pth"), str(tmp_path / "run")
    fit(dataclasses.replace(config, output_dir=new, epochs=1, learning_rate=1e-9, weights=weights))
    before, after = (load_model(path) for path in (weights, f"{new}/best_model.pth"))
    assert set(load_model(f"{new}/last.pth").config) == {
        "backbone",
        "classes",
    }  # none of the other's
    for one, two in zip(before.parameters(), after.parameters(), strict=True):
        assert torch.allclose(one, two, atol=1e-5)
    with pytest.raises(EmoError, match="holds a resnet18; use --backbone resnet18"):
        fit(dataclasses.replace(config, backbone="mobilenet_v2", weights=weights))


def test_ctrl_c_keeps_the_best_model(config, tmp_path):
    def interrupt(history):
        raise KeyboardInterrupt

    stopped = dataclasses.replace(config, output_dir=str(tmp_path / "run"), epochs=9)
    history = fit(stopped, on_epoch=interrupt)
    assert len(history) == 1
    assert load_model(tmp_path / "run" / "best_model.pth").config["image_size"] == 32


def test_derived_values_train_the_head_and_are_never_scored(faces, config, tmp_path):
    root = shutil.copytree(faces, tmp_path / "data", ignore=shutil.ignore_patterns(".emo"))
    labels = pd.read_csv(root / "labels.csv").drop(columns=["valence", "arousal"])
    labels.to_csv(root / "labels.csv", index=False)
    derived = dataclasses.replace(
        config, data_dir=str(root), output_dir=str(tmp_path / "run"), epochs=1, derive_va=True
    )
    history = fit(derived)
    assert history["val_ccc_valence"].isna().all()
    assert history["combined_score"].equals(history["val_macro_f1"].rename("combined_score"))
    assert read_json(tmp_path / "run" / "model_config.json")["va"] == "derived"
    dataset, _ = load_data(derived, tmp_path / "run")
    assert np.isfinite(dataset.va.numpy()).all()
    none = dataclasses.replace(derived, output_dir=str(tmp_path / "none"), derive_va=False)
    fit(none)
    assert read_json(tmp_path / "none" / "model_config.json")["va"] == "none"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 5000}, "batch size 5000 is larger"),
        ({"epochs": 0}, "epochs is 0"),
        ({"image_size": 7}, "image size 7 is out of range"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"learning_rate": 1e30}, "smaller --learning-rate"),
        ({"backbone": "resnet99"}, "unknown backbone"),
        ({"data_dir": "nowhere"}, "01_download"),
    ],
)
def test_bad_settings_get_one_sentence(config, tmp_path, change, message):
    bad = dataclasses.replace(config, output_dir=str(tmp_path / "run"), **change)
    with pytest.raises(EmoError, match=message):
        fit(bad)


def test_a_folder_is_never_mixed_up(run, config, tmp_path):
    with pytest.raises(EmoError, match="holds a run already"):
        fit(config)
    with pytest.raises(EmoError, match="learning_rate=0.001, not 0.1"):
        fit(dataclasses.replace(config, learning_rate=0.1), resume=True)
    (tmp_path / "thesis.txt").write_text("years")
    with pytest.raises(EmoError, match="not empty"):
        fit(TrainConfig(data_dir=config.data_dir, output_dir=str(tmp_path)))
    with pytest.raises(EmoError, match="no run folder"):
        read_config(tmp_path)
