import sys
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import onnx
import pytest
import torch

from emo import (
    EmoError,
    EmotionPreprocessor,
    MediaPipeFaceDetector,
    create_recognizer,
    export_to_onnx,
    synth,
)
from emo.dataset import FaceDataset, normalise, pack_images
from emo.emotions import EMOTIONS
from emo.faces import crop_face
from emo.files import read_json, write_json
from emo.model import create_model, load_model, save_torch
from emo.recognize import STARTER
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


def test_the_preprocessor_computes_what_training_does():
    """Bit for bit, though it looks the numbers up instead of letting PyTorch compute them."""
    faces = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    images = torch.from_numpy(faces[..., ::-1].copy()).permute(0, 3, 1, 2)
    for colour in ("rgb", "grey"):
        found = EmotionPreprocessor(64, colour=colour).preprocess_batch(list(faces))
        assert torch.equal(found, normalise(images, colour=colour))
    assert EmotionPreprocessor().preprocess_batch([]).shape == (0, 3, 224, 224)


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
    save_torch(model.state_dict(), tmp_path / "w.pth")
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
    save_torch(model.state_dict(), tmp_path / "bare.pth")
    with pytest.raises(EmoError, match="model_config.json"):
        create_recognizer(tmp_path / "bare.pth")
    write_json(tmp_path / "c.json", facts)
    named = create_recognizer(tmp_path / "bare.pth", config_path=tmp_path / "c.json")
    assert named.preprocessor.image_size == 32


def test_a_config_of_another_model_is_refused(run, tmp_path):
    facts = read_json(run / "model_config.json")
    write_json(tmp_path / "size.json", facts | {"image_size": 64})
    write_json(tmp_path / "order.json", facts | {"classes": facts["classes"][::-1]})
    with pytest.raises(EmoError, match=r"size.json does not fit the model in .*image_size"):
        create_recognizer(run / "best_model.pth", tmp_path / "size.json")
    with pytest.raises(EmoError, match=r"order.json does not fit .*classes"):
        create_recognizer(run / "best_model.pth", tmp_path / "order.json")
    write_json(tmp_path / "calm.json", facts | {"temperature": 9.0})  # this one may be chosen
    assert create_recognizer(run / "best_model.pth", tmp_path / "calm.json").temperature == 9


def test_a_file_without_a_config_is_tried_with_the_one_beside_it(run, tmp_path):
    model = create_model(pretrained=False).eval()
    model.config = {"image_size": 48, "backbone": "resnet18", "classes": list(EMOTIONS)}
    export_to_onnx(model, tmp_path / "m.onnx")
    graph = onnx.load(tmp_path / "m.onnx")
    del graph.metadata_props[:]
    onnx.save(graph, tmp_path / "m.onnx")
    write_json(tmp_path / "model_config.json", read_json(run / "model_config.json"))  # 32 pixels
    with pytest.raises(EmoError, match=r"does not fit the model in .*m.onnx \(image_size"):
        create_recognizer(tmp_path / "m.onnx")
    model.config |= read_json(run / "model_config.json")
    export_to_onnx(model, tmp_path / "m.onnx")
    assert create_recognizer(tmp_path / "m.onnx").preprocessor.image_size == 32


def test_threads_do_not_mix_up_answers(run):
    recognizer = create_recognizer(run / "best_model.pth", threads=1)
    tensors = [recognizer.preprocessor.preprocess_cv2(face(i)) for i in range(8)]
    expected = [recognizer.predict(tensor) for tensor in tensors]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(recognizer.predict, tensors * 5)) == expected * 5


def test_without_keras_the_extra_is_named(monkeypatch, tmp_path):
    (tmp_path / "m.h5").write_bytes(b"whatever")
    monkeypatch.setitem(sys.modules, "keras", None)  # as if it were not installed
    with pytest.raises(EmoError, match=r"pip install 'emo\[keras\]'"):
        create_recognizer(tmp_path / "m.h5")


def test_the_starter_model_reads_faces_where_none_is_named():
    recognizer = create_recognizer()
    assert STARTER.stat().st_size <= 5_000_000
    assert recognizer.classes == list(EMOTIONS) and recognizer.va == "derived"
    grey = cv2.cvtColor(cv2.cvtColor(face(), cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    batch = recognizer.preprocessor.preprocess_batch([face(), grey])
    colour, without = recognizer.predict_batch(batch)
    shares = [list(result["probabilities"].values()) for result in (colour, without)]
    assert np.abs(np.diff(shares, axis=0)).max() < 0.05, "it was taught grey faces"
    card = STARTER.with_name("MODEL_CARD.md").read_text("utf-8")
    for word in ("derived", "MIT", "collected from", "Prohibited", "make_starter.py"):
        assert word in card
