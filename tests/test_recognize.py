import cv2
import numpy as np
import pytest
import torch

from emo import EmotionPreprocessor, MediaPipeFaceDetector, create_recognizer, synth
from emo.dataset import FaceDataset, normalise, pack_images
from emo.emotions import EMOTIONS
from emo.errors import EmoError
from emo.faces import crop_face
from emo.files import read_json, write_json
from emo.model import load_model, save_weights
from emo.recognize import predict_files
from emo.sources import read_dataset


@pytest.fixture(scope="module")
def recognizer(run):
    return create_recognizer(run / "best_model.pth")


def face(seed=0, size=60):
    return synth.render(synth.sample(seed=seed), size=size)


def test_default_preprocessor():
    tensor = EmotionPreprocessor().preprocess_cv2(np.full((50, 40, 3), (255, 0, 0), np.uint8))
    assert tensor.shape == (1, 3, 224, 224)
    blue = [-0.485 / 0.229, -0.456 / 0.224, (1 - 0.406) / 0.225]  # BGR in, RGB out
    assert tensor[0, :, 0, 0].tolist() == pytest.approx(blue)
    assert EmotionPreprocessor().preprocess_batch([face(), face(1, 90)]).shape[0] == 2
    with pytest.raises(EmoError, match="'rgb' or 'grey'"):
        EmotionPreprocessor(colour="bgr")


def test_contract_of_a_prediction(recognizer):
    tensor = recognizer.preprocessor.preprocess_cv2(face())
    result = recognizer.predict(tensor)
    assert list(result) == [
        "emotion",
        "emotion_id",
        "confidence",
        "probabilities",
        "valence",
        "arousal",
    ]
    assert list(result["probabilities"]) == list(EMOTIONS)
    assert sum(result["probabilities"].values()) == pytest.approx(1)
    assert result["emotion"] == EMOTIONS[result["emotion_id"]]
    assert result["confidence"] == max(result["probabilities"].values())
    assert -1 <= result["valence"] <= 1
    assert recognizer.predict(tensor[0]) == result


def test_batches_agree_with_single_faces(recognizer):
    tensors = recognizer.preprocessor.preprocess_batch([face(i) for i in range(70)])
    many = recognizer.predict_batch(tensors)
    assert len(many) == 70
    for i in (0, 63, 64, 69):
        single = recognizer.predict(tensors[i])
        assert single["valence"] == pytest.approx(many[i]["valence"], abs=1e-5)
        assert single["probabilities"] == pytest.approx(many[i]["probabilities"], abs=1e-5)
    assert recognizer.predict_batch(tensors[:0]) == []


def test_probabilities_use_the_fitted_temperature(recognizer):
    tensor = recognizer.preprocessor.preprocess_cv2(face())
    logits, _ = recognizer.run(tensor)
    expected = torch.softmax(torch.tensor(logits[0]) / recognizer.temperature, dim=0)
    assert list(recognizer.predict(tensor)["probabilities"].values()) == pytest.approx(
        expected.tolist(), abs=1e-5
    )


def test_one_path(recognizer, face_model, tmp_path):
    """The same face as training sees it and through detector → crop → preprocessor."""
    frame, _ = next(iter(synth.animate(seconds=1, fps=1)))
    with MediaPipeFaceDetector() as detector:
        bbox, _ = detector.detect_single_face(frame)
        crop = detector.crop_face(frame, bbox, recognizer.crop_margin)
        (live,) = recognizer.recognize(frame, detector)
    cv2.imwrite(str(tmp_path / "a.png"), crop)
    (tmp_path / "labels.csv").write_text("image_path,emotion\na.png,1\n")
    size = recognizer.preprocessor.image_size
    images, manifest, _ = pack_images(read_dataset(tmp_path), tmp_path, size)
    batch = FaceDataset(images, manifest)[0]
    trained = normalise(batch["image"][None], colour=recognizer.preprocessor.colour)
    seen = recognizer.preprocessor.preprocess_cv2(crop_face(frame, bbox, recognizer.crop_margin))
    assert torch.equal(trained, seen)
    assert live["bbox"] == bbox
    assert recognizer.predict(trained)["probabilities"] == live["probabilities"]


def test_a_model_never_taught_valence_and_arousal_returns_none(run, tmp_path):
    model = load_model(run / "best_model.pth")
    model.config = model.config | {"va": "none"}
    save_weights(model, tmp_path / "w.pth")
    recognizer = create_recognizer(tmp_path / "w.pth")
    result = recognizer.predict(recognizer.preprocessor.preprocess_cv2(face()))
    assert result["valence"] is None
    assert result["arousal"] is None


def test_wrong_shapes(recognizer):
    with pytest.raises(EmoError, match=r"expected \(B, 3, 32, 32\)"):
        recognizer.predict(torch.zeros(1, 3, 64, 64))
    with pytest.raises(EmoError, match="predict_batch"):
        recognizer.predict(torch.zeros(2, 3, 32, 32))


def test_bad_files(run, tmp_path):
    with pytest.raises(EmoError, match="ends in"):
        create_recognizer(tmp_path / "model.zip")
    with pytest.raises(EmoError, match="does not exist"):
        create_recognizer(tmp_path / "model.onnx")
    for suffix in (".onnx", ".pt", ".pth", ".h5"):
        (tmp_path / f"broken{suffix}").write_bytes(b"\0" * 500)
        with pytest.raises(EmoError, match="broken"):
            create_recognizer(tmp_path / f"broken{suffix}")
    with pytest.raises(EmoError, match="cpu or cuda"):
        create_recognizer(run / "best_model.pth", device="tpu")


def test_config_path_and_missing_config(run, tmp_path):
    model = load_model(run / "best_model.pth")
    facts = read_json(run / "model_config.json")
    model.config = {"backbone": "resnet18", "classes": list(EMOTIONS)}
    save_weights(model, tmp_path / "bare.pth")
    with pytest.raises(EmoError, match="model_config.json"):
        create_recognizer(tmp_path / "bare.pth")
    write_json(tmp_path / "c.json", facts)
    named = create_recognizer(tmp_path / "bare.pth", config_path=tmp_path / "c.json")
    assert named.preprocessor.image_size == 32


def test_files(recognizer, face_model, tmp_path):
    frame, _ = next(iter(synth.animate(seconds=1, fps=1)))
    cv2.imwrite(str(tmp_path / "scene.png"), frame)
    cv2.imwrite(str(tmp_path / "wall.png"), np.full((99, 99, 3), 127, np.uint8))
    (tmp_path / "text.png").write_text("hello")
    paths = [tmp_path / name for name in ("scene.png", "wall.png", "text.png")]
    with MediaPipeFaceDetector() as detector:
        rows = predict_files(recognizer, paths, detector)
    assert rows[0]["emotion"] in EMOTIONS
    assert [row.get("note") for row in rows] == [None, "no face found", "unreadable"]
    (crop,) = predict_files(recognizer, paths[:1])
    assert "bbox" not in crop
