"""Measure the synthetic faces: can they be learned, and are they trivial?

`python docs/measure_faces.py --folder build/measure` takes about a quarter of an hour on two cores;
`--real data/ferplus` adds half an hour: what the drawings are worth for real faces. A run that was
interrupted goes on where it stopped.
"""

import argparse
import dataclasses
import time
from pathlib import Path

import numpy as np
import pandas as pd
from figures import record, sample
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from emo import TrainConfig, create_recognizer, fit, synth
from emo.dataset import pack_images, resize_face, split_manifest
from emo.emotions import EMOTIONS
from emo.evaluation import evaluate
from emo.faces import MediaPipeFaceDetector
from emo.live import overlap
from emo.portrait import FACE
from emo.runs import read_manifest
from emo.sources import read_dataset

COUNT, SEED = 12_800, 1
CONFUSED = [("Fear", "Surprise"), ("Anger", "Disgust"), ("Neutral", "Contempt")]


def detector():
    """How many of 1,000 frontal faces MediaPipe finds: exactly one, over the true face."""
    shares = []
    with MediaPipeFaceDetector() as find:
        for seed in range(1000):
            face = synth.sample(seed % 8, seed=seed, frontal=True)
            found = find.detect(synth.render(face, 224))
            box = found[0][0] if len(found) == 1 else (0, 0, 0, 0)
            shares.append(overlap(box, synth.true_box(face)))
    yield "MediaPipe finds one face with IoU ≥ 0.5", np.mean(np.array(shares) >= 0.5)
    yield "mean IoU of its box and the true one", np.mean(shares)


def speed(folder):
    """Faces of 96 pixels that are drawn and written in a second."""
    start = time.perf_counter()
    synth.write_dataset(folder / "faces", COUNT, seed=SEED)
    yield "faces of 96 px a second", COUNT / (time.perf_counter() - start)


def shortcuts(folder):
    """What simple classifiers reach that should not reach much; chance is 0.125."""
    manifest = split_manifest(read_dataset(folder / "faces"), seed=0)
    images, manifest, _ = pack_images(manifest, folder / "faces", 64)
    pixels = images[np.arange(len(manifest))]
    grey = np.array([resize_face(face, 16).mean(axis=2).ravel() for face in pixels])
    corners = np.ones((64, 64), bool)
    corners[6:-6], corners[:, 6:-6] = False, False  # background, hair and shoulders
    told = pd.read_csv(folder / "faces" / "labels.csv").set_index("image_path")
    told = told.loc[manifest["image_path"], [*FACE["picture"], "occlusion", "jpeg"]]
    linear = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))  # best on val
    around = pixels[:, corners].reshape(len(manifest), -1)
    trees = HistGradientBoostingClassifier()
    rows = {
        "linear classifier, 16×16 grey pixels": (linear, grey),
        "linear classifier, the picture's corners": (linear, around),
        "boosted trees, true pose, light and noise": (trees, told),
    }
    taught, asked = ((manifest["split"] == part).to_numpy() for part in ("train", "test"))
    for name, (classifier, features) in rows.items():
        features = np.asarray(features, np.float32)
        classifier.fit(features[taught], manifest["emotion"][taught])
        yield f"{name}: accuracy", classifier.score(features[asked], manifest["emotion"][asked])


def learned(folder):
    """What a ResNet-18 learns, what it confuses, and what hiding a part of the face costs it."""
    config = TrainConfig(str(folder / "faces"), str(folder / "run"), pretrained=False)
    fit(dataclasses.replace(config, image_size=64, epochs=12, recipe="strong"), resume=True)
    numbers = evaluate(folder / "run")
    yield "ResNet-18, unseen people: accuracy", numbers["emotion"]["accuracy"]
    yield "ResNet-18, unseen people: mean CCC", numbers["mean_ccc"]
    matrix = np.array(numbers["emotion"]["confusion"])
    for pair in CONFUSED:
        one, two = (EMOTIONS.index(name) for name in pair)
        wrong = matrix[[one, two]].sum() - matrix[one, one] - matrix[two, two]
        mixed = (matrix[one, two] + matrix[two, one]) / wrong
        yield f"of the errors on {pair[0]} and {pair[1]}, taken for each other", mixed
    recognizer = create_recognizer(folder / "run" / "best_model.pth")
    people = read_manifest(folder / "run" / "manifest.csv").query("split == 'test'")
    right = {}
    for number, cover in enumerate(("nothing", *synth.COVERS)):
        faces = [synth.render(row | {"occlusion": number}, 96) for row in people.to_dict("records")]
        logits, _ = recognizer.run(recognizer.preprocessor.preprocess_batch(faces))
        right[cover] = (logits.argmax(axis=1) == people["emotion"]).mean()
        if number:
            yield f"{cover}: points of accuracy lost", 100 * (right["nothing"] - right[cover])


def real(folder, data_dir):
    """Tests across data sets, and pre-training for a tenth of a set of real faces."""
    asked = {"split": "test", "output_dir": folder / "drawn_to_real"}
    numbers = evaluate(model=folder / "run" / "best_model.pth", data_dir=data_dir, **asked)
    commonest = numbers["baselines"]["majority_accuracy"]
    yield "the commonest class of FER+'s test part, always: accuracy", commonest
    yield "taught by drawings, tested on FER+: accuracy", numbers["emotion"]["accuracy"]
    yield "taught by drawings, tested on FER+: macro F1", numbers["emotion"]["macro_f1"]
    tenth = str(sample(folder / "tenth", data_dir, train=0.1, val=0.1))
    base = TrainConfig(tenth, pretrained=False, image_size=64, epochs=15, recipe="strong")
    for start, weights in (("scratch", None), ("drawings", str(folder / "run" / "best_model.pth"))):
        scores = []
        for seed in range(3):
            run = str(folder / f"from_{start}_{seed}")
            config = dataclasses.replace(base, output_dir=run, weights=weights, seed=seed)
            fit(config, resume=True)
            emotion = evaluate(run)["emotion"]
            scores.append((emotion["accuracy"], emotion["macro_f1"]))
        for score, values in zip(("accuracy", "macro F1"), zip(*scores, strict=True), strict=True):
            title = f"a tenth of FER+, from {start}, three seeds: {score}"
            yield f"{title}, mean", np.mean(values)
            yield f"{title}, lowest", min(values)
            yield f"{title}, highest", max(values)
    model, asked["output_dir"] = folder / "from_scratch_0" / "best_model.pth", folder / "back"
    numbers = evaluate(model=model, data_dir=folder / "faces", **asked)
    yield "taught by a tenth of FER+, tested on drawings: accuracy", numbers["emotion"]["accuracy"]


def main():
    """Measure, and write each figure as it comes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("build/measure"))
    parser.add_argument("--real", help="folder of FER+, as `emo check` reads it")
    args = parser.parse_args()
    command = "python docs/measure_faces.py" + (" --real data/ferplus" if args.real else "")
    steps = [detector(), shortcuts(args.folder), learned(args.folder)]
    if not (args.folder / "faces").exists():
        steps.insert(0, speed(args.folder))
    if args.real:
        steps.append(real(args.folder, args.real))
    record(steps, args.folder, "synthetic faces", command, SEED)


if __name__ == "__main__":
    main()
