"""Predictions table → numbers, figures, report and model card. Taken apart in notebooks/04."""

import base64
import io
from html import escape
from pathlib import Path
from string import Template

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from emo import metrics
from emo.dataset import FaceDataset, pack_images, split_manifest
from emo.emotions import EMOTIONS, PROBABILITY_COLUMNS
from emo.errors import EmoError
from emo.files import atomic_path, write_json
from emo.plots import plot_confusion, plot_reliability, plot_va_scatter
from emo.recognize import create_recognizer
from emo.sources import VA, read_dataset, va_state
from emo.train import annotated_rows, combined_score, load_data, read_config, read_manifest

ROUNDS = 1000  # bootstrap samples behind each interval
VA_IN_WORDS = {
    "annotated": "taught from annotators' values",
    "derived": "derived from the class: class means, which nobody annotated",
    "none": "not taught; the model shows none",
}


def evaluate(run=None, *, model=None, data_dir=None, split="test", output_dir=None, against=None):
    """Evaluate a run, or a model file on `data_dir`; write and return its metrics.

    Writes `predictions.csv`, `metrics.json`, `report.html` and `MODEL_CARD.md` to `output_dir`
    (default: the run folder, or the model's folder). `against` is another run that was evaluated
    on the same images: the difference gets a paired bootstrap interval.
    """
    if (run is None) == (model is None):
        raise EmoError("name either a run folder (--run) or a model file (--model)")
    if run is None and data_dir is None:
        raise EmoError("a bare model needs data to be evaluated on: --data-dir")
    recognizer = create_recognizer(model or Path(run) / "best_model.pth")
    part, train_manifest = _load_part(run, data_dir, split, recognizer)
    folder = Path(output_dir or run or Path(model).parent)
    predictions = predict_dataset(recognizer, part, split)
    numbers = compute_metrics(predictions, train_manifest, va=_va_state(part, recognizer))
    if against is not None:
        other = read_predictions(Path(against) / "predictions.csv")
        numbers["against"] = {"run": str(against)} | compare(predictions, other)
    with atomic_path(folder / "predictions.csv") as temporary:
        predictions.to_csv(temporary, index=False)
    write_json(folder / "metrics.json", numbers)
    write_report(folder, predictions, numbers, recognizer.config)
    return numbers


def predict_dataset(recognizer, part, split="test", batch_size=64):
    """Return the predictions table of a `FaceDataset`: labels, predictions and probabilities.

    Valence and arousal of the labels are filled only where annotators gave them; predicted ones
    are empty for a model that was never taught them.
    """
    results = []
    for start in tqdm(range(0, len(part), batch_size), "Predicting", unit="batch"):
        rows = np.arange(start, min(start + batch_size, len(part)))
        faces = list(part.images[rows][..., ::-1])  # RGB → BGR
        results += recognizer.predict_batch(recognizer.preprocessor.preprocess_batch(faces))
    manifest = part.manifest
    target = manifest[list(VA)].copy()
    target[~annotated_rows(manifest)] = np.nan
    table = pd.DataFrame({"image_path": manifest["image_path"], "split": split})
    table["emotion"] = manifest["emotion"]
    table[list(VA)] = target
    table["pred_emotion"] = [result["emotion_id"] for result in results]
    for name in VA:
        table[f"pred_{name}"] = pd.Series([result[name] for result in results], dtype=float)
    probabilities = [list(result["probabilities"].values()) for result in results]
    table[list(PROBABILITY_COLUMNS)] = np.array(probabilities)
    if "group" in manifest:
        table["group"] = manifest["group"]
    return table


def read_predictions(path):
    """Read and check a predictions table."""
    if not Path(path).is_file():
        raise EmoError(f"{path} does not exist; run: python -m emo evaluate --run {path.parent}")
    table = pd.read_csv(path)
    needed = {"image_path", "emotion", "pred_emotion", *VA, *PROBABILITY_COLUMNS}
    if needed - set(table):
        missing = ", ".join(sorted(needed - set(table)))
        raise EmoError(f"{path} lacks the columns {missing}; write it with emo evaluate")
    return table


def compute_metrics(predictions, train_manifest=None, *, va="annotated", rounds=ROUNDS):
    """Return the numbers of `metrics.json` from a predictions table.

    Baselines use the class means of `train_manifest`. Valence and arousal are None where nobody
    annotated them or the model was never taught them. Intervals are 95 % bootstrap, drawn by
    `group` where the table has one.
    """
    table = predictions[predictions["emotion"] >= 0]
    if table.empty:
        raise EmoError("no row with a known emotion to evaluate")
    probabilities = table[list(PROBABILITY_COLUMNS)].to_numpy(float)
    if not np.isfinite(probabilities).all():
        raise EmoError("the predictions hold NaN probabilities; evaluate a model that trained well")
    emotion = table["emotion"].to_numpy(int)
    matrix = metrics.confusion(emotion, table["pred_emotion"])
    classes = {k: v.tolist() for k, v in metrics.per_class(matrix).items()}
    known = table.dropna(subset=[*VA, "pred_valence", "pred_arousal"])
    dimensions = {name: None for name in VA}
    if va == "annotated" and len(known):
        dimensions = {n: metrics.regression(known[n], known[f"pred_{n}"]) for n in VA}
    mean_ccc = np.mean([d["ccc"] for d in dimensions.values()]) if dimensions["valence"] else None
    f1 = metrics.macro_f1(matrix)
    return {
        "split": str(table["split"].iloc[0]) if "split" in table else "test",
        "n": len(table),
        "n_va": len(known) if dimensions["valence"] else 0,
        "va": va,
        "emotion": {
            "accuracy": float(metrics.accuracy(matrix)),
            "macro_f1": f1,
            "calibration_error": metrics.calibration_error(probabilities, emotion),
            "per_class": {
                name: {key: values[i] for key, values in classes.items()}
                for i, name in enumerate(EMOTIONS)
            },
            "confusion": matrix.tolist(),
        },
        **dimensions,
        "mean_ccc": None if mean_ccc is None else float(mean_ccc),
        "combined_score": float(combined_score(f1, mean_ccc)),
        "baselines": _baselines(table, known if dimensions["valence"] else None, train_manifest),
        "intervals": _intervals(table, known if dimensions["valence"] else None, rounds),
    }


def compare(predictions, other, rounds=ROUNDS):
    """Return this table's accuracy and macro F1 minus the other's, with paired intervals."""
    both = predictions.merge(other, on="image_path", suffixes=("", "_other"))
    both = both[both["emotion"] >= 0]
    if both.empty:
        raise EmoError("the two runs share no evaluated image; use the same data and split")
    emotion = both["emotion"].to_numpy(int)
    mine, theirs = both["pred_emotion"].to_numpy(int), both["pred_emotion_other"].to_numpy(int)
    result = {"n": len(both)}
    for name, score in (("accuracy", metrics.accuracy), ("macro_f1", metrics.macro_f1)):

        def difference(i, score=score):
            a, b = metrics.confusion(emotion[i], mine[i]), metrics.confusion(emotion[i], theirs[i])
            return score(a) - score(b)

        groups = both.get("group")
        interval = metrics.bootstrap(difference, len(both), groups, rounds)
        result[name] = {"difference": float(difference(slice(None))), "interval": interval}
    return result


def write_report(folder, predictions, numbers, config):
    """Write `report.html` (one file, figures inside) and `MODEL_CARD.md`."""
    lines, data = headline(numbers), config.get("data", {})
    values = {"train": "?", "val": "?", "emo_version": ""} | data | config
    values |= {"data": data.get("name", "unknown"), "va": VA_IN_WORDS[config.get("va", "none")]}
    values["rows"] = "\n".join(f"| {name} | {text} |" for name, text in lines.items())
    _fill("model_card.md", folder / "MODEL_CARD.md", values)
    rows = [f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in lines.items()]
    figures = [
        f'<figure><img alt="{escape(name)}" src="data:image/png;base64,{image}">'
        f"<figcaption>{escape(name)}</figcaption></figure>"
        for name, image in _figures(predictions, numbers).items()
    ]
    values = {"backbone": escape(config["backbone"]), "rows": "".join(rows)}
    _fill("report.html", folder / "report.html", values | {"figures": "".join(figures)})


def _fill(template, path, values):
    text = Path(__file__).with_name(template).read_text("utf-8")
    with atomic_path(path) as temporary:
        temporary.write_text(Template(text).substitute(values), "utf-8")


def headline(numbers):
    """Return the few lines that a person reads first, as text by name."""
    emotion, intervals = numbers["emotion"], numbers["intervals"]
    lines = {
        "images": f"{numbers['n']} ({numbers['split']})",
        "accuracy": _with_interval(emotion["accuracy"], intervals["accuracy"]),
        "macro F1 (8 classes)": _with_interval(emotion["macro_f1"], intervals["macro_f1"]),
        "calibration error": f"{emotion['calibration_error']:.3f}",
        "always the commonest class": f"accuracy {numbers['baselines']['majority_accuracy']:.3f}",
    }
    if numbers["mean_ccc"] is not None:
        lines["mean CCC"] = _with_interval(numbers["mean_ccc"], intervals["mean_ccc"])
        for name in VA:
            lines[f"CCC {name}"] = f"{numbers[name]['ccc']:.3f}"
        table = numbers["baselines"].get("lookup_predicted_class")
        if table:
            lines["class means instead of the VA head"] = f"mean CCC {table['mean_ccc']:.3f}"
    else:
        why = {
            "derived": "not scored: derived from the class, nobody annotated it",
            "none": "none: the model was not taught it, or nobody annotated it",
            "annotated": "not scored: no annotated row in this part",
        }
        lines["valence/arousal"] = why[numbers["va"]]
    for name, change in numbers.get("against", {}).items():
        if isinstance(change, dict):
            text = _with_interval(change["difference"], change["interval"])
            lines[f"{name} minus that of {numbers['against']['run']}"] = text
    return lines


def _load_part(run, data_dir, split, recognizer):
    config = read_config(run) if run is not None else None
    train_manifest = read_manifest(Path(run) / "manifest.csv") if run is not None else None
    if data_dir is None:
        dataset, _ = load_data(config, run)
    else:
        manifest = split_manifest(read_dataset(data_dir))
        images, manifest, _ = pack_images(manifest, data_dir, recognizer.preprocessor.image_size)
        dataset = FaceDataset(images, manifest)
    if train_manifest is not None:
        train_manifest = train_manifest[train_manifest["split"] == "train"]
    return dataset.part(split), train_manifest


def _va_state(part, recognizer):
    data = "annotated" if annotated_rows(part.manifest).any() else va_state(part.manifest)
    states = ("none", "derived", "annotated")
    return min(data, recognizer.va, key=states.index)


def _baselines(table, known, train_manifest):
    counts = np.bincount(table["emotion"], minlength=len(EMOTIONS))
    source = table if train_manifest is None else train_manifest[train_manifest["emotion"] >= 0]
    commonest = np.bincount(source["emotion"], minlength=len(EMOTIONS)).argmax()
    result = {"majority_accuracy": float(counts[commonest] / counts.sum())}
    if known is None or train_manifest is None:
        return result
    annotated = train_manifest[annotated_rows(train_manifest) & (train_manifest["emotion"] >= 0)]
    if annotated.empty:
        return result
    overall = annotated[list(VA)].mean().to_numpy()
    means = np.tile(overall, (len(EMOTIONS), 1))
    for emotion, rows in annotated.groupby("emotion"):
        means[emotion] = rows[list(VA)].mean()
    guesses = {
        "constant_mean": np.tile(overall, (len(known), 1)),
        "lookup_predicted_class": means[known["pred_emotion"].to_numpy(int)],
        "lookup_true_class": means[known["emotion"].to_numpy(int)],
    }
    for name, guess in guesses.items():
        scores = [metrics.regression(known[n], guess[:, i]) for i, n in enumerate(VA)]
        result[name] = {
            "mean_ccc": float(np.mean([s["ccc"] for s in scores])),
            "rmse": {n: s["rmse"] for n, s in zip(VA, scores, strict=True)},
        }
    return result


def _intervals(table, known, rounds):
    emotion, predicted = table["emotion"].to_numpy(int), table["pred_emotion"].to_numpy(int)

    def score(function):
        return lambda i: function(metrics.confusion(emotion[i], predicted[i]))

    groups = table.get("group")
    result = {
        "accuracy": metrics.bootstrap(score(metrics.accuracy), len(table), groups, rounds),
        "macro_f1": metrics.bootstrap(score(metrics.macro_f1), len(table), groups, rounds),
    }
    if known is not None:
        pairs = [(known[n].to_numpy(), known[f"pred_{n}"].to_numpy()) for n in VA]

        def mean_ccc(i):
            return np.mean([metrics.ccc(target[i], guess[i]) for target, guess in pairs])

        groups = known.get("group")
        result["mean_ccc"] = metrics.bootstrap(mean_ccc, len(known), groups, rounds)
    return result


def _figures(predictions, numbers):
    """Return figures by title as base64 PNG; drawn without pyplot, so that threads may call it."""
    from matplotlib.figure import Figure

    table = predictions[predictions["emotion"] >= 0]
    probabilities = table[list(PROBABILITY_COLUMNS)].to_numpy(float)
    bins = metrics.reliability(probabilities, table["emotion"])
    drawings = {
        "Confusion matrix": lambda ax: plot_confusion(numbers["emotion"]["confusion"], ax),
        "Reliability: is 80 % sure right 8 times in 10?": lambda ax: plot_reliability(*bins, ax),
    }
    for name in VA if numbers["valence"] else ():
        drawings[f"Predicted against annotated {name}"] = lambda ax, name=name: plot_va_scatter(
            table[name], table[f"pred_{name}"], ax, name, numbers[name]["ccc"]
        )
    images = {}
    for title, draw in drawings.items():
        figure = Figure(figsize=(6, 5), layout="constrained")
        draw(figure.subplots())
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110)
        images[title] = base64.b64encode(buffer.getvalue()).decode()
    return images


def _with_interval(value, interval):
    return f"{value:.3f} (95 % interval {interval[0]:.3f} to {interval[1]:.3f})"
