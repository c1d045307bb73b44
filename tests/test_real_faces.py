"""The main job on real faces: FER+ and the Kaggle layout, from archive to annotated film."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from emo import MediaPipeFaceDetector, create_recognizer, evaluate
from emo.cli import main
from emo.dataset import decode
from emo.files import read_json
from emo.recognize import STARTER
from emo.window import film_writer

pytestmark = pytest.mark.slow


def emo(*args):
    main([str(a) for a in args])


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("real")


@pytest.fixture(scope="module")
def ferplus(real_faces, work):
    """Folder of FER+."""
    emo("download", "--archive", real_faces / "ferplus.zip", "--dest", work / "ferplus")
    return work / "ferplus"


@pytest.fixture(scope="module")
def first(ferplus, face_model, work):
    """Run folder of three epochs on FER+."""
    emo(
        *("train", "--data-dir", ferplus, "--backbone", "resnet18", "--no-pretrained"),
        *("--image-size", 64, "--epochs", 3, "--derive-va", "--output-dir", work / "first"),
    )
    emo("evaluate", "--run", work / "first", "--split", "test")
    emo("export", "--run", work / "first")
    return work / "first"


def test_ferplus_after_three_epochs(first):
    numbers = read_json(first / "metrics.json")
    assert numbers["n"] == 3555  # FER+'s Valid part without rows called unknown or no face
    assert numbers["emotion"]["accuracy"] > 0.65
    assert numbers["va"] == "derived"
    assert numbers["mean_ccc"] is None
    facts = read_json(first / "model_config.json")
    assert facts["colour"] == "grey"
    assert facts["va"] == "derived"
    manifest = pd.read_csv(first / "manifest.csv")
    test = manifest["image_path"].str.startswith("FER2013Valid")
    assert (manifest.loc[test, "split"] == "test").all()
    assert (manifest.loc[~test, "split"] != "test").all()


def test_every_format_on_real_faces(first):
    table = pd.DataFrame(read_json(first / "export.json")["formats"]).set_index("format")
    assert (table.drop(index="int8")["agreement"] == 1).all()
    loss = table.loc["pytorch", "val_accuracy"] - table.loc["int8", "val_accuracy"]
    assert loss < 0.02


def test_predict_on_photos(first, real_faces, capsys):
    photos = sorted((real_faces / "frames").glob("*.jpg"))
    emo("predict", "--model", first / "model.onnx", "--json", *photos)
    rows = json.loads(capsys.readouterr().out)
    found = {row["image_path"] for row in rows if "note" not in row}
    assert len(found) >= 0.9 * len(photos)
    assert {row["image_path"] for row in rows} == set(map(str, photos))
    emo("predict", "--model", first / "model.onnx", *photos)
    assert "(derived from the class)" in capsys.readouterr().out


def test_live_on_a_film_of_photos(first, real_faces, work, capsys):
    photos = [decode(p) for p in sorted((real_faces / "frames").glob("*.jpg"))[:8]]
    with film_writer(work / "film.mp4", 10) as write:
        for photo in photos:
            for _ in range(3):
                write(photo)
    emo(
        *("live", "--model", first / "model.onnx", "--camera", work / "film.mp4", "--headless"),
        *("--record", work / "out.mp4", "--log", work / "out.csv"),
    )
    table = pd.read_csv(work / "out.csv")
    assert table["time"].nunique() >= 0.8 * 24
    assert np.isfinite(table[["valence", "arousal"]]).all(axis=None)
    assert (work / "out.mp4").stat().st_size > 10_000


def test_kaggle_layout(real_faces, work, face_model, capsys):
    emo("download", "--archive", real_faces / "kaggle_layout.zip", "--dest", work / "kaggle")
    emo("check", "--data-dir", work / "kaggle")
    printed = capsys.readouterr().out
    assert "kaggle layout" in printed
    assert "label and folder disagree" in printed
    emo(
        *("train", "--data-dir", work / "kaggle", "--no-pretrained", "--image-size", 64),
        *("--epochs", 8, "--batch-size", 32, "--recipe", "strong"),  # 1,349 faces are few
        *("--output-dir", work / "kaggle-run"),
    )
    emo("evaluate", "--run", work / "kaggle-run")
    numbers = read_json(work / "kaggle-run" / "metrics.json")
    assert numbers["va"] == "none"
    assert numbers["emotion"]["accuracy"] > 1.5 * 300 / 1928  # the commonest class
    table = pd.read_csv(work / "kaggle-run" / "predictions.csv")
    assert table[["pred_valence", "pred_arousal"]].isna().all(axis=None)
    shutil.rmtree(work / "kaggle")


def test_the_starter_model_is_as_good_as_its_card_says(ferplus, work):
    numbers = evaluate(model=STARTER, data_dir=ferplus, split="test", output_dir=work / "starter")
    assert numbers["n"] == 3555 and numbers["va"] == "none", "nobody annotated it"
    assert numbers["emotion"]["accuracy"] > 0.785 and numbers["emotion"]["macro_f1"] > 0.57
    assert numbers["emotion"]["calibration_error"] < 0.04


def test_the_starter_model_through_the_detector(real_faces, face_model):
    """What a bulb's light does to the colours changes hardly an answer."""
    recognizer, same = create_recognizer(), []
    with MediaPipeFaceDetector() as detector:
        for photo in map(decode, sorted((real_faces / "frames").glob("*.jpg"))):
            warm = np.clip(photo * np.array([0.7, 0.95, 1.2]), 0, 255).astype(np.uint8)
            found = [recognizer.recognize(image, detector)[:1] for image in (photo, warm)]
            same += [a["emotion"] == b["emotion"] for a, b in zip(*found, strict=False)]
    assert len(same) >= 35 and np.mean(same) > 0.9
