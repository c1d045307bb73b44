import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from emo import EmoError, TrainConfig, create_model, fit
from emo.dataset import make_loader, normalise
from emo.files import read_json
from emo.losses import multitask_loss
from emo.model import load_model
from emo.runs import load_data, read_config, read_manifest
from emo.train import combined_score, make_accelerator, train_step

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
    assert_same_run(run, tmp_path / "run")


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


@pytest.fixture(scope="module")
def gaps(faces, tmp_path_factory):
    """Faces of which some miss an emotion and others valence or arousal, unevenly."""
    root = tmp_path_factory.mktemp("gaps") / "data"
    shutil.copytree(faces, root, ignore=shutil.ignore_patterns(".emo"))
    labels = pd.read_csv(root / "labels.csv").drop(columns="group")
    labels["emotion"] = labels["emotion"].astype("Int64")
    labels.loc[::3, "emotion"] = pd.NA
    labels.loc[1::7, ["valence", "arousal"]] = np.nan
    labels.loc[2::5, "arousal"] = np.nan
    labels.to_csv(root / "labels.csv", index=False)
    return root


@pytest.mark.slow
def test_two_processes_do_what_one_does(gaps, tmp_path):
    """On a CPU, with gloo: the same samples, metrics over all predictions, the same gradient."""
    script = str(Path(__file__).with_name("in_processes.py"))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    found = []
    for processes in ("1", "2"):
        out = str(tmp_path / f"{processes}.npz")
        command = [*launch, processes, script, str(gaps), out]
        subprocess.run(command, check=True, env=environment, timeout=300)
        found.append(np.load(out))
    one, two = found
    assert (one["processes"], two["processes"]) == (1, 2)
    assert np.array_equal(one["seen"], two["seen"])  # step by step the same faces
    assert not np.array_equal(one["seen"][0], one["seen"][len(one["seen"]) // 2])  # epochs differ
    assert np.array_equal(one["emotion"], two["emotion"])
    assert np.array_equal(one["va"], two["va"], equal_nan=True)
    assert one["logits"].shape == (len(one["emotion"]), 8)
    assert np.allclose(one["logits"], two["logits"], atol=1e-5)
    for name in ("val_loss", "val_macro_f1", "val_ccc_valence"):
        assert one[name] == pytest.approx(two[name], abs=1e-5), name
    for name in ("gradient_1", "gradient_2"):
        assert np.abs(one["gradient_1"]).max() > 0.01
        assert np.abs(one["gradient_1"] - two[name]).max() < 1e-5
        assert np.abs(one["gradient_1"] - one[name]).max() < 1e-5


def train_command(config, *more):
    command = [sys.executable, "-m", "emo", "train", "--no-pretrained", *more]
    for name in ("data_dir", "output_dir", "image_size", "epochs", "batch_size"):
        command += ["--" + name.replace("_", "-"), str(getattr(config, name))]
    return command


def assert_same_run(a, b):
    """Bit for bit the same weights, and no epoch twice."""
    one, two = (torch.load(path / "best_model.pth", weights_only=True) for path in (a, b))
    for name, value in one["model"].items():
        if torch.is_tensor(value):
            assert torch.equal(value, two["model"][name]), name
    columns = ["epoch", "train_loss", "val_loss", "combined_score"]
    assert pd.read_csv(a / "history.csv")[columns].equals(pd.read_csv(b / "history.csv")[columns])


def test_a_full_disk_leaves_the_last_checkpoint_whole(config, tmp_path):
    resource = pytest.importorskip("resource")
    first = dataclasses.replace(config, output_dir=str(tmp_path / "run"), epochs=1)
    fit(first)
    before = (tmp_path / "run" / "last.pth").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))  # no file may grow larger
    try:
        with pytest.raises(EmoError, match="epoch 2 is not saved: .* --resume"):
            fit(dataclasses.replace(first, epochs=2), resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "run" / "last.pth").read_bytes() == before
    assert not list((tmp_path / "run").glob(".*"))  # nothing half written
    assert len(fit(dataclasses.replace(first, epochs=2), resume=True)) == 2


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc to know how much memory it has")
def test_out_of_memory_says_what_to_try(config, tmp_path):
    """In a process that may take only 300 MB more: a batch at 224 pixels needs gigabytes."""
    script = f"""
import resource
from pathlib import Path
from emo import train
from emo.cli import main
class Training(train.Training):
    def train_epoch(self):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + 300_000_000
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        return super().train_epoch()
train.Training = Training
main(["train", "--data-dir", {config.data_dir!r}, "--output-dir", {str(tmp_path / "run")!r},
      "--no-pretrained", "--batch-size", "128"])
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "a batch of 128 images of 224 pixels does not fit" in done.stderr
    assert "use --batch-size 64, or --accumulate 2" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_batch_in_parts_moves_the_weights_alike(gaps, config):
    """Also where the parts hold different numbers of labels; batch norm apart."""
    dataset, _ = load_data(dataclasses.replace(config, data_dir=str(gaps)))
    batch = next(iter(make_loader(dataset.part("train"), 24)))
    batch["image"] = normalise(batch["image"])
    moved = []
    for parts in (1, 3):
        torch.manual_seed(0)
        model = create_model("resnet18", pretrained=False).eval()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        accelerator = make_accelerator(cpu=True)
        loss = train_step(model, optimizer, batch, parts=parts, accelerator=accelerator)
        moved.append((loss, torch.cat([p.detach().flatten() for p in model.parameters()])))
    assert moved[0][0].total.item() == pytest.approx(moved[1][0].total.item(), abs=1e-5)
    assert torch.allclose(moved[0][1], moved[1][1], atol=1e-5)


def test_a_class_without_images_is_said(faces, config, tmp_path, capsys):
    root = shutil.copytree(faces, tmp_path / "data", ignore=shutil.ignore_patterns(".emo"))
    labels = pd.read_csv(root / "labels.csv")
    labels[labels["emotion"] != 7].to_csv(root / "labels.csv", index=False)
    run = dataclasses.replace(config, data_dir=str(root), output_dir=str(tmp_path / "run"))
    fit(dataclasses.replace(run, epochs=1, recipe="strong", va_loss="ccc"))
    printed = capsys.readouterr().out
    assert "no training image shows Contempt" in printed
    assert "chosen by macro F1 + mean CCC (valence/arousal: annotated)" in printed


def test_without_a_task_the_other_is_learned_alone(config, tmp_path, capsys):
    alone = dataclasses.replace(config, output_dir=str(tmp_path / "run"), epochs=1, alpha=0)
    (row,) = fit(alone).to_dict("records")
    assert "alpha is 0" in capsys.readouterr().out
    mean_ccc = (row["val_ccc_valence"] + row["val_ccc_arousal"]) / 2
    assert row["combined_score"] == pytest.approx(mean_ccc)  # the untaught head has no say
    with pytest.raises(EmoError, match="nothing to learn"):
        fit(dataclasses.replace(alone, beta=0, output_dir=str(tmp_path / "none")))
