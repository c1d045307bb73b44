"""Train, shrink and measure the starter model, `emo/assets/starter.onnx`.

`python docs/make_starter.py --real data/ferplus --frames FOLDER_OF_PHOTOS` takes about two
hours on one busy core; what was interrupted goes on where it stopped. The model's card:
emo/assets/MODEL_CARD.md.
"""

import argparse
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from figures import record
from measure_training import majority

from emo import MediaPipeFaceDetector, TrainConfig, create_recognizer, evaluate, fit
from emo.dataset import decode
from emo.evaluation import compute_metrics
from emo.export import export_run
from emo.recognize import STARTER
from emo.runs import load_data, read_config


def _noise(image):
    wave = np.random.default_rng(0).normal(0, 20, image.shape)
    return np.clip(image + wave, 0, 255).astype(np.uint8)


def _jpeg(image):
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 20])[1], 1)


def _light(image):
    return np.clip(0.5 * image, 0, 255).astype(np.uint8)


def _warm(image):
    return np.clip(image * np.array([0.7, 0.95, 1.2]), 0, 255).astype(np.uint8)  # BGR: a bulb


def _moved(image):
    side = len(image)
    moved = np.float32([[1.15, 0, -0.10 * side], [0, 1.15, -0.04 * side]])
    return cv2.warpAffine(image, moved, (side, side), borderMode=cv2.BORDER_REPLICATE)


# Change of a BGR crop, as cameras and detectors make it.
CHANGES = {
    "half the light": _light,
    "warm light": _warm,
    "noise of 20 grey levels": _noise,
    "JPEG of quality 20": _jpeg,
    "blur of 2 pixels": lambda image: cv2.GaussianBlur(image, (0, 0), 2),
    "15 % closer and moved by a tenth": _moved,
}


def reached(folder, data_dir):
    """Train, export to 8 bits, and evaluate the exported file on FER+'s test part."""
    run = folder / "run"
    config = TrainConfig(data_dir, str(run), backbone="regnet_y_400mf", pretrained=False)
    more = {"image_size": 80, "epochs": 30, "recipe": "strong", "derive_va": True}
    fit(TrainConfig(**vars(config) | more), resume=True)
    table = export_run(run, ("onnx", "int8"))
    yield "MB", (run / "model_int8.onnx").stat().st_size / 1e6
    yield "ms a face", table.loc["int8", "median_ms"]
    for name in ("model", "model_int8"):
        place, word = folder / name, {"model": "float, ", "model_int8": ""}[name]
        numbers = evaluate(
            model=run / f"{name}.onnx", data_dir=data_dir, output_dir=place, split="test"
        )
        yield from _scores(word, numbers)
        predictions = pd.read_csv(place / "predictions.csv")
        clear = predictions[predictions["image_path"].isin(majority(data_dir))]
        yield from _scores(f"{word}clear majority: ", compute_metrics(clear, va="derived"))
    for name, row in numbers["emotion"]["per_class"].items():
        yield f"recall of {name}", row["recall"]
    shutil.copy(run / "model_int8.onnx", STARTER)


def _scores(word, numbers):
    for name in ("accuracy", "macro_f1", "calibration_error"):
        title = word + name.replace("_", " ")
        yield title, numbers["scores"][name]
        for end, value in zip(("low", "high"), numbers["intervals"][name], strict=True):
            yield f"{title}, {end} end of its interval", value


def robustness(folder):
    """Accuracy of the starter on changed test faces."""
    run, recognizer = folder / "run", create_recognizer()
    dataset, _ = load_data(read_config(run), run)
    test = dataset.part("test")
    faces, known = test.images[np.arange(len(test))][..., ::-1], test.emotion.numpy() >= 0
    for name, change in CHANGES.items():
        changed = [change(np.ascontiguousarray(face)) for face in faces[known]]
        answers = recognizer.predict_batch(recognizer.preprocessor.preprocess_batch(changed))
        hits = np.array([a["emotion_id"] for a in answers]) == test.emotion.numpy()[known]
        yield f"accuracy, {name}", hits.mean()


def live(folder):
    """Photos through the detector: how often changed colours change the answer."""
    recognizer, same, faces, files = create_recognizer(), {}, 0, sorted(Path(folder).glob("*.jpg"))
    with MediaPipeFaceDetector() as detector:
        for photo in map(decode, files):
            found = recognizer.recognize(photo, detector)[:1]
            faces += len(found)
            for name in ("half the light", "warm light", "JPEG of quality 20"):
                again = recognizer.recognize(CHANGES[name](photo), detector)[:1]
                agree = [a["emotion"] == b["emotion"] for a, b in zip(found, again, strict=False)]
                same.setdefault(name, []).extend(agree)
    yield "photos with a face found", faces / len(files)
    for name, agree in same.items():
        yield f"photos with the same answer, {name}", np.mean(agree)


def main():
    """Make the file and write each figure as it comes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("build/starter"))
    parser.add_argument("--real", required=True, help="folder of FER+, as `emo check` reads it")
    parser.add_argument("--frames", help="folder of photos, one face in each")
    args = parser.parse_args()
    steps = [reached(args.folder, args.real), robustness(args.folder)]
    steps += [live(args.frames)] if args.frames else []
    command = "python docs/make_starter.py --real data/ferplus --frames data/photos"
    record(steps, args.folder, "starter", command, 0)


if __name__ == "__main__":
    main()
