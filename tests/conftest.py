"""What several test files share: faces, a trained run, the face model. Small and made here."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from emo import EmoError, TrainConfig, fit, synth
from emo.download import face_model_path


def missing(reason):
    """Skip visibly where a part of this machine is missing; fail where it was promised."""
    if os.environ.get("EMO_REQUIRE_SLOW"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def face_model():
    """Path of the real face-detection model."""
    try:
        return face_model_path()
    except EmoError as error:
        missing(str(error))


@pytest.fixture(scope="session")
def faces(tmp_path_factory):
    """Folder of 240 synthetic faces with all labels."""
    return synth.write_dataset(tmp_path_factory.mktemp("data") / "faces", 240, seed=0, size=48)


@pytest.fixture(scope="session")
def config(faces, tmp_path_factory):
    """Config of the smallest honest training."""
    return TrainConfig(
        data_dir=str(faces),
        output_dir=str(tmp_path_factory.mktemp("outputs") / "run"),
        pretrained=False,
        image_size=32,
        epochs=2,
        batch_size=32,
    )


@pytest.fixture(scope="session")
def run(config, face_model):
    """Run folder of a ResNet-18 that was trained for two epochs."""
    fit(config)
    return Path(config.output_dir)


@pytest.fixture(scope="session")
def taught(tmp_path_factory, face_model):
    """Run folder of a ResNet-18 that has learned faces turned as little as a film's; minutes."""
    root = tmp_path_factory.mktemp("taught") / "faces"
    synth.write_dataset(root, 3200, seed=0, frontal=True)
    config = {"data_dir": str(root), "output_dir": str(root.with_name("run"))}
    config |= {"pretrained": False, "image_size": 64, "epochs": 10, "batch_size": 32}
    fit(TrainConfig(**config, recipe="strong"))
    return root.with_name("run")


@pytest.fixture
def predictions():
    """Predictions table of 200 rows with known labels, made up with a fixed seed."""
    generator = np.random.default_rng(0)
    emotion = generator.integers(0, 8, 200)
    probabilities = generator.dirichlet(np.ones(8), 200) + 0.3 * np.eye(8)[emotion]
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    table = pd.DataFrame({"image_path": [f"{i}.png" for i in range(200)], "split": "test"})
    table["emotion"] = emotion
    table[["valence", "arousal"]] = generator.uniform(-1, 1, (200, 2))
    table["pred_emotion"] = probabilities.argmax(axis=1)
    noise = generator.normal(0, 0.2, (200, 2))
    table[["pred_valence", "pred_arousal"]] = table[["valence", "arousal"]].to_numpy() + noise
    names = "neutral happy sad surprise fear disgust anger contempt".split()
    table[[f"p_{name}" for name in names]] = probabilities
    return table


@pytest.fixture(scope="session")
def real_faces():
    """Folder of real faces named by EMO_TEST_FACES."""
    folder = os.environ.get("EMO_TEST_FACES")
    if not folder or not Path(folder).is_dir():
        missing("EMO_TEST_FACES names no folder of real faces")
    return Path(folder)
