"""Predictions table → numbers, figures, report and model card. Taken apart in notebooks/04."""

import base64
import io
from functools import partial
from html import escape
from pathlib import Path
from string import Template

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from emo import metrics
from emo.dataset import FaceDataset, pack_images, split_manifest
from emo.emotions import EMOTIONS, PROBABILITY_COLUMNS
from emo.errors import EmoError
from emo.files import atomic_path, write_json
from emo.plots import plot_confusion, plot_reliability, plot_va_scatter
from emo.recognize import create_recognizer
from emo.runs import load_data, read_config, read_manifest
from emo.sources import VA, annotated_rows, read_dataset, va_state
from emo.train import combined_score

PREDICTED_VA = [f"pred_{name}" for name in VA]
CLASS_PAIR = ["emotion", "pred_emotion"]
VA_PAIRS = [*VA, *PREDICTED_VA]
ROUNDS = 1000  # bootstrap samples behind each interval
SCORES = {"accuracy": metrics.accuracy, "macro_f1": metrics.macro_f1}
VA_IN_WORDS = {  # from the least to the most that is known
    "none": "not taught; the model shows none",
    "derived": "derived from the class: class means, which nobody annotated",
    "annotated": "taught from annotators' values",
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
    va = min(va_state(part.manifest), recognizer.va, key=list(VA_IN_WORDS).index)
    numbers = compute_metrics(predictions, train_manifest, va=va)
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
    table = part.manifest[["image_path", "emotion", *VA]].copy()
    table.insert(1, "split", split)
    table.loc[~annotated_rows(part.manifest), list(VA)] = np.nan
    results = pd.DataFrame(results)
    table["pred_emotion"] = results["emotion_id"]
    table[PREDICTED_VA] = results[list(VA)].astype(float)
    table[list(PROBABILITY_COLUMNS)] = [list(p.values()) for p in results["probabilities"]]
    if "group" in part.manifest:
        table["group"] = part.manifest["group"]
    return table


def read_predictions(path):
    """Read and check a predictions table."""
    if not Path(path).is_file():
        raise EmoError(f"{path} does not exist; run: python -m emo evaluate --run {path.parent}")
    table = pd.read_csv(path)
    needed = {"image_path", *CLASS_PAIR, *VA, *PROBABILITY_COLUMNS}
    if missing := ", ".join(sorted(needed - set(table))):
        raise EmoError(f"{path} lacks the columns {missing}; write it with emo evaluate")
    return table


def compute_metrics(predictions, train_manifest=None, *, va="annotated", rounds=ROUNDS):
    """Return the numbers of `metrics.json` from a predictions table.

    Baselines use the class means of `train_manifest`. Valence and arousal that nobody annotated or
    taught the model are None. Intervals are 95 % bootstrap, by `group` where the table has one.
    """
    table = predictions[predictions["emotion"] >= 0]
    if table.empty:
        raise EmoError("no row with a known emotion to evaluate")
    probabilities = table[list(PROBABILITY_COLUMNS)].to_numpy(float)
    if not np.isfinite(probabilities).all():
        raise EmoError("the predictions hold NaN probabilities; evaluate a model that trained well")
    matrix = metrics.confusion(table["emotion"], table["pred_emotion"])
    intervals = dict(zip(SCORES, _intervals(_scores, table, CLASS_PAIR, rounds), strict=True))
    known = table.dropna(subset=VA_PAIRS) if va == "annotated" else table.iloc[:0]
    dimensions, mean_ccc = dict.fromkeys(VA), None
    if len(known):
        dimensions = {n: metrics.regression(known[n], known[f"pred_{n}"]) for n in VA}
        mean_ccc = _mean_ccc(known[VA_PAIRS].to_numpy())
        intervals["mean_ccc"] = _intervals(_mean_ccc, known, VA_PAIRS, rounds)
    f1 = metrics.macro_f1(matrix)
    return {
        "split": str(table["split"].iloc[0]) if "split" in table else "test",
        "n": len(table),
        "n_va": len(known),
        "va": va,
        "emotion": {
            "accuracy": float(metrics.accuracy(matrix)),
            "macro_f1": f1,
            "calibration_error": metrics.calibration_error(probabilities, table["emotion"]),
            "per_class": pd.DataFrame(metrics.per_class(matrix), EMOTIONS).to_dict("index"),
            "confusion": matrix.tolist(),
        },
        **dimensions,
        "mean_ccc": mean_ccc,
        "combined_score": float(combined_score(f1, mean_ccc)),
        "baselines": _baselines(table, known, train_manifest),
        "intervals": intervals,
    }


def compare(predictions, other, rounds=ROUNDS):
    """Return this table's accuracy and macro F1 minus the other's, with paired intervals."""
    both = predictions.merge(other, on="image_path", suffixes=("", "_other"))
    both = both[both["emotion"] >= 0]
    if both.empty:
        raise EmoError("the two runs share no evaluated image; use the same data and split")

    def difference(emotions):  # (N, 3): annotated, ours, theirs
        return _scores(emotions[:, :2]) - _scores(emotions[:, ::2])

    columns = [*CLASS_PAIR, "pred_emotion_other"]
    differences = difference(both[columns].to_numpy()).tolist()
    found = zip(SCORES, differences, _intervals(difference, both, columns, rounds), strict=True)
    return {"n": len(both)} | {n: {"difference": d, "interval": i} for n, d, i in found}


def write_report(folder, predictions, numbers, config):
    """Write `report.html` (one file, figures inside) and `MODEL_CARD.md`."""
    lines, data = headline(numbers), config.get("data", {})
    values = {"train": "?", "val": "?", "emo_version": ""} | data | config
    values |= {"data": data.get("name", "unknown"), "va": VA_IN_WORDS[config.get("va", "none")]}
    values["rows"] = "\n".join(f"| {name} | {text} |" for name, text in lines.items())
    _fill("model_card.md", folder / "MODEL_CARD.md", values)
    rows = [f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in lines.items()]
    values = {"backbone": escape(config["backbone"]), "rows": "".join(rows)}
    values["figures"] = "".join(_figures(predictions, numbers))
    _fill("report.html", folder / "report.html", values)


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
        lines |= {f"CCC {name}": f"{numbers[name]['ccc']:.3f}" for name in VA}
        if lookup := numbers["baselines"].get("lookup_predicted_class"):
            lines["class means instead of the VA head"] = f"mean CCC {lookup['mean_ccc']:.3f}"
    else:
        why = {
            "derived": "not scored: derived from the class, nobody annotated it",
            "none": "none: the model was not taught it, or nobody annotated it",
            "annotated": "not scored: no annotated row in this part",
        }
        lines["valence/arousal"] = why[numbers["va"]]
    for name in SCORES if (against := numbers.get("against")) else ():
        title = f"{name} minus that of {against['run']}"
        lines[title] = _with_interval(against[name]["difference"], against[name]["interval"])
    return lines


def _load_part(run, data_dir, split, recognizer):
    train_manifest = None
    if run is not None:
        train_manifest = read_manifest(Path(run) / "manifest.csv").query("split == 'train'")
    if data_dir is None:
        dataset, _ = load_data(read_config(run), run)
    else:
        manifest, size = split_manifest(read_dataset(data_dir)), recognizer.preprocessor.image_size
        dataset = FaceDataset(*pack_images(manifest, data_dir, size)[:2])
    return dataset.part(split), train_manifest


def _baselines(table, known, train_manifest):
    taught = table if train_manifest is None else train_manifest[train_manifest["emotion"] >= 0]
    commonest = np.bincount(taught["emotion"], minlength=len(EMOTIONS)).argmax()
    result = {"majority_accuracy": float((table["emotion"] == commonest).mean())}
    annotated = taught[annotated_rows(taught)]
    if train_manifest is None or known.empty or annotated.empty:
        return result
    overall, means = annotated[list(VA)].mean(), annotated.groupby("emotion")[list(VA)].mean()
    means = means.reindex(range(len(EMOTIONS))).fillna(overall).to_numpy()
    guesses = {
        "constant_mean": np.tile(overall, (len(known), 1)),
        "lookup_predicted_class": means[known["pred_emotion"].to_numpy(int)],
        "lookup_true_class": means[known["emotion"].to_numpy(int)],
    }
    truth = known[list(VA)].to_numpy()
    for name, guess in guesses.items():
        rmse = {n: metrics.regression(truth[:, i], guess[:, i])["rmse"] for i, n in enumerate(VA)}
        result[name] = {"mean_ccc": _mean_ccc(np.hstack([truth, guess])), "rmse": rmse}
    return result


def _scores(emotions):
    """Return the numbers named in `SCORES`; `emotions` (N, 2) are the columns `CLASS_PAIR`."""
    matrix = metrics.confusion(*emotions.T)
    return np.array([score(matrix) for score in SCORES.values()])


def _mean_ccc(values):
    """Return the mean CCC of both dimensions; `values` (N, 4) are the columns `VA_PAIRS`."""
    return float(np.mean([metrics.ccc(values[:, i], values[:, i + 2]) for i in (0, 1)]))


def _intervals(statistic, table, columns, rounds):
    """Bootstrap a statistic of some columns of the table, as an array (N, K)."""
    values = table[columns].to_numpy()
    return metrics.bootstrap(lambda i: statistic(values[i]), len(table), table.get("group"), rounds)


def _figures(predictions, numbers):
    """Yield figures as HTML, PNG inside; drawn without pyplot, so that threads may call it."""
    table = predictions[predictions["emotion"] >= 0]
    bins = metrics.reliability(table[list(PROBABILITY_COLUMNS)], table["emotion"])
    drawings = {
        "Confusion matrix": partial(plot_confusion, numbers["emotion"]["confusion"]),
        "Reliability: is 80 % sure right 8 times in 10?": partial(plot_reliability, *bins),
    }
    for name in VA if numbers["valence"] else ():
        draw = partial(plot_va_scatter, table[name], table[f"pred_{name}"], name=name)
        drawings[f"Predicted against annotated {name}"] = partial(draw, ccc=numbers[name]["ccc"])
    for title, draw in drawings.items():
        figure = Figure(figsize=(6, 5), layout="constrained")
        draw(ax=figure.subplots())
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110)
        image = base64.b64encode(buffer.getvalue()).decode()
        picture = f'<img alt="{escape(title)}" src="data:image/png;base64,{image}">'
        yield f"<figure>{picture}<figcaption>{escape(title)}</figcaption></figure>"


def _with_interval(value, interval):
    return f"{value:.3f} (95 % interval {interval[0]:.3f} to {interval[1]:.3f})"
