"""kill -9 at twenty random moments of each stage: the next run goes on, or starts clean."""

import dataclasses
import hashlib
import os
import shutil
import threading
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from killing import kill_at_random, seconds, start
from test_download import TOKEN, FakeKaggle, make_zip, tree

from emo import EmoError, evaluate, fit
from emo.dataset import pack_images
from emo.download import download_kaggle, unpack_archive
from emo.export import export_run
from emo.recognize import create_recognizer
from emo.sources import read_dataset
from emo.synth import write_dataset

pytestmark = pytest.mark.slow


def digests(folder):
    """Return {relative path: SHA-256} of every file below, hidden ones too."""
    files = sorted(p for p in Path(folder).rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def draw(dest):
    if not Path(dest).exists():
        write_dataset(dest, 64, seed=3, size=64)


def test_synth(tmp_path):
    whole = seconds(draw, tmp_path / "whole" / "faces")
    dest = tmp_path / "killed" / "faces"
    hits = kill_at_random(draw, dest, longest=whole)
    draw(dest)
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")
    assert hits >= 10


def test_unpack(tmp_path):
    generator, archive = np.random.default_rng(0), tmp_path / "faces.zip"
    with zipfile.ZipFile(archive, "w") as bundle:
        for i in range(3000):
            bundle.writestr(f"happy/{i}.jpg", generator.bytes(2000))
    whole = seconds(unpack_archive, archive, tmp_path / "whole" / "faces")
    dest = tmp_path / "killed" / "faces"
    hits = kill_at_random(unpack_archive, archive, dest, longest=whole)
    unpack_archive(archive, dest)
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")
    assert hits >= 10


def fetch(dest):
    os.environ |= {"KAGGLE_API_ENVIRONMENT": "TEST", "KAGGLE_API_TOKEN": TOKEN}
    download_kaggle("someone/faces", dest)


def test_download(tmp_path):
    """Kaggle's own client against a server that answers as Kaggle does."""
    generator = np.random.default_rng(0)
    faces = {f"happy/{i}.jpg": generator.bytes(200_000) for i in range(150)}
    server = FakeKaggle(make_zip(tmp_path / "original.zip", faces).read_bytes())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.handle_error = lambda *_: None  # a killed client leaves it with a broken pipe
    try:
        whole = seconds(fetch, tmp_path / "whole" / "faces")
        dest = tmp_path / "killed" / "faces"
        hits = kill_at_random(fetch, dest, longest=whole)
        fetch(dest)
    finally:
        server.shutdown()
        server.server_close()
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")
    assert tree(dest) == faces and hits >= 10
    kept = [path.read_bytes() for path in (tmp_path / "killed").rglob("*") if path.is_file()]
    assert not any(TOKEN.encode() in data for data in kept)


def pack(root):
    pack_images(read_dataset(root), root, 48)


def test_pack(faces, tmp_path, monkeypatch):
    monkeypatch.setattr("emo.dataset.BLOCK", 32)
    root = shutil.copytree(faces, tmp_path / "faces", ignore=shutil.ignore_patterns(".emo"))
    whole = seconds(pack, shutil.copytree(root, tmp_path / "whole"))
    hits = kill_at_random(pack, root, longest=whole)
    images, manifest, _ = pack_images(read_dataset(root), root, 48)
    again = pack_images(read_dataset(tmp_path / "whole"), tmp_path / "whole", 48)[0]
    assert len(manifest) == len(images) == 240 and np.array_equal(images, again)
    assert hits >= 5


def go_on(config, log):
    """Train, or go on; note each epoch as soon as it is saved."""
    torch.set_num_threads(1)

    def note(history):
        with open(log, "a") as file:
            file.write(f"{len(history)}\n")

    fit(config, resume=True, on_epoch=note)


def test_train(config, tmp_path):
    whole, killed = (dataclasses.replace(config, output_dir=str(tmp_path / n)) for n in "ab")
    whole, killed = (dataclasses.replace(c, epochs=4) for c in (whole, killed))
    longest = seconds(go_on, whole, tmp_path / "a.log")
    hits = kill_at_random(go_on, killed, tmp_path / "b.log", longest=longest / 2)
    go_on(killed, tmp_path / "b.log")
    a, b = (torch.load(tmp_path / n / "best_model.pth", weights_only=True)["model"] for n in "ab")
    assert all(torch.equal(v, b[n]) for n, v in a.items() if torch.is_tensor(v))
    columns = ["epoch", "train_loss", "val_loss", "combined_score"]
    a, b = (pd.read_csv(tmp_path / n / "history.csv")[columns] for n in "ab")
    assert a.equals(b)
    epochs = (tmp_path / "b.log").read_text().split()
    assert len(epochs) == len(set(epochs)), "a finished epoch was repeated"
    assert hits >= 5 and not list((tmp_path / "b").glob(".*"))


def test_evaluate(run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "run")
    longest = seconds(evaluate, folder)
    expected = {n: d for n, d in digests(folder).items() if n.endswith((".csv", "metrics.json"))}
    for name in ("metrics.json", "predictions.csv", "report.html", "MODEL_CARD.md"):
        (folder / name).unlink()
    hits = kill_at_random(evaluate, folder, longest=longest)
    evaluate(folder)
    found = digests(folder)
    assert {n: found[n] for n in expected} == expected
    assert hits >= 10 and not list(folder.glob(".*"))


def export(folder):
    export_run(folder, ("weights", "torchscript", "onnx"))


def test_export(run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "run")
    longest = seconds(export, folder)
    for name in ("model.onnx", "model_torchscript.pt", "export.json"):
        (folder / name).unlink()
    hits = kill_at_random(export, folder, longest=longest)
    for path in folder.glob("model*.onnx"):  # whole, if it is there
        create_recognizer(path)
    export(folder)
    for name in ("model.onnx", "model_torchscript.pt", "model_weights.pth"):
        create_recognizer(folder / name)
    assert hits >= 10 and not list(folder.glob(".*"))


def test_the_second_run_into_a_folder_is_refused(config, tmp_path):
    folder = tmp_path / "run"
    config = dataclasses.replace(config, output_dir=str(folder), epochs=50)
    first = start(go_on, config, tmp_path / "log")
    while not (folder / "last.pth").is_file():
        assert first.is_alive()
        first.join(0.1)
    with pytest.raises(EmoError, match="another process is working on .*run"):
        fit(config, resume=True)
    first.kill()
    first.join()
    done = pd.read_csv(folder / "history.csv")["epoch"].max()
    fit(dataclasses.replace(config, epochs=int(done)), resume=True)  # the lock died with its owner
    assert (folder / "best_model.pth").is_file()
