"""Numbers do not rot: the same faces everywhere, and a small training that ends where it did."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from test_colab import find_python, need_uv, sh

from emo import TrainConfig, evaluate, fit, synth, train

pytestmark = pytest.mark.slow
GOLDEN = Path(__file__).with_name("golden.json")
DIGEST = """
import hashlib, sys
from emo import synth
folder = synth.write_dataset(sys.argv[1], 64, seed=7, size=64)
digest = hashlib.sha256()
for path in sorted(folder.rglob("*")):
    digest.update(path.read_bytes() if path.is_file() else b"")
print(digest.hexdigest())
"""


def test_the_same_faces_in_every_process_and_python(tmp_path):
    """Three Pythons with the same NumPy and OpenCV draw the same bytes."""
    import importlib.metadata as found

    from test_colab import UV

    need_uv()
    names = ("numpy", "pandas", "opencv-contrib-python", "joblib", "tqdm")
    wanted = [f"{name}=={found.version(name)}" for name in names] + ["filelock"]
    digests = set()
    for version in ("3.11", "3.12", "3.13"):
        venv = tmp_path / version
        sh(UV, "venv", "-q", "--python", find_python(version), venv)
        sh(UV, *"pip install -q --python".split(), venv / "bin" / "python", *wanted)
        env = os.environ | {
            "PYTHONPATH": str(Path(synth.__file__).parents[1]),
            "PYTHONHASHSEED": version[2:],
        }
        command = [venv / "bin" / "python", "-c", DIGEST, tmp_path / f"faces{version}"]
        digests.add(subprocess.run(command, env=env, check=True, capture_output=True).stdout)
    here = [sys.executable, "-c", DIGEST, tmp_path / "here"]
    digests.add(subprocess.run(here, check=True, capture_output=True).stdout)
    assert len(digests) == 1


def small_training(folder):
    """Scores of the golden run: ResNet-18 on 1,600 drawn faces, 48 pixels, 8 epochs, seed 0."""
    faces = synth.write_dataset(folder / "faces", 1600, seed=0, size=64, frontal=True)
    config = {"data_dir": str(faces), "output_dir": str(folder / "run"), "pretrained": False}
    fit(TrainConfig(**config, image_size=48, epochs=8, batch_size=32, recipe="strong"))
    return evaluate(folder / "run", split="val")["scores"]


def test_a_small_training_ends_where_it_did(tmp_path, face_model, monkeypatch):
    """Within the tolerance that golden.json states: another CPU adds in another order."""
    plain = functools.partial(train.make_accelerator, cpu=True, mixed_precision="no")
    monkeypatch.setattr(train, "make_accelerator", plain)
    golden = json.loads(GOLDEN.read_text())
    AcceleratorState._reset_state(True)  # of the tests before, which may have chosen bf16
    try:
        scores = small_training(tmp_path)
    finally:
        AcceleratorState._reset_state(True)
    found = {name: scores[name] for name in golden["scores"]}
    assert found == pytest.approx(golden["scores"], abs=golden["tolerance"])
