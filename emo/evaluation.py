"""Predictions table → numbers, figures, report and model card. Taken apart in notebooks/04."""

import base64
import io
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import entropy
from tqdm.auto import tqdm

from emo import EmoError, metrics, plots
from emo.emotions import EMOTIONS, PROBABILITY_COLUMNS
from emo.files import atomic_path, claim, read_json, write_json
from emo.recipes import TrainConfig
from emo.recognize import NOT_SURE, create_recognizer
from emo.runs import TEMPLATES, WORDS, load_data, read_config, read_manifest
from emo.sources import VA, annotated_rows, read_table, va_state
from emo.train import combined_score

PREDICTED_VA = [f"pred_{name}" for name in VA]
CLASS_PAIR = ["emotion", "pred_emotion"]
ROUNDS = 1000  # bootstrap samples behind each interval
BY = "skin_tone"  # whose groups are compared unless told; synthetic faces have it
SHOWN, FEWEST = 12, 5  # at most: faces of a kind, or groups; at least: people in a group


def evaluate(
    run=None, *, model=None, data_dir=None, split="test", output_dir=None, against=None, by=BY
):
    """Evaluate a run, or a model file on `data_dir`; write and return its metrics.

    Writes `predictions.csv`, `metrics.json`, `report.html` and `MODEL_CARD.md` to `output_dir` or
    beside the model. `against`, a run evaluated on the same images, adds paired 95 % intervals;
    `by` is the column of the manifest whose groups are compared, where it has that column.
    """
    if (run is None) == (model is None):
        raise EmoError("name either a run folder (--run) or a model file (--model)")
    if run is None and data_dir is None:
        raise EmoError("a bare model needs data to be evaluated on: --data-dir")
    recognizer = create_recognizer(model or Path(run) / "best_model.pth")
    elsewhere = TrainConfig(data_dir=data_dir, image_size=recognizer.preprocessor.image_size)
    dataset, _ = load_data(read_config(run), run) if data_dir is None else load_data(elsewhere)
    part = dataset.part(split)
    if by not in part.manifest and by != BY:
        columns = ", ".join(part.manifest.columns)
        raise EmoError(f"the data has no column {by!r} to compare groups by; it has {columns}")
    if against is not None:  # a missing one is said before the work
        other = read_predictions(Path(against) / "predictions.csv")
        other_va = read_json(Path(against) / "metrics.json").get("va", "none")
    taught = read_manifest(Path(run) / "manifest.csv").query("split == 'train'") if run else None
    folder = Path(output_dir or run or Path(model).parent)
    va = min(va_state(part.manifest), recognizer.va, key=("none", "derived", "annotated").index)
    options = {"va": va, "temperature": recognizer.temperature, "by": by}
    with claim(folder):
        predictions = predict_dataset(recognizer, part, split, by=by)
        numbers = compute_metrics(predictions, taught, **options)
        if against is not None:
            va = va if va == other_va else "none"
            numbers["against"] = {"run": str(against)} | compare(predictions, other, va=va)
        with atomic_path(folder / "predictions.csv") as temporary:
            predictions.to_csv(temporary, index=False)
        write_json(folder / "metrics.json", numbers)
        write_report(folder, predictions, numbers, recognizer.config, part)
    return numbers


def predict_dataset(recognizer, part, split="test", batch_size=64, by=None):
    """Return a `FaceDataset`'s predictions; valence/arousal nobody annotated or taught is empty."""
    outputs, rows = [], np.arange(len(part))
    for some in tqdm(np.split(rows, rows[batch_size::batch_size]), "Predicting", unit="batch"):
        faces = list(part.images[some][..., ::-1])  # RGB → BGR
        outputs.append(recognizer.run(recognizer.preprocessor.preprocess_batch(faces)))
    logits, va = map(np.concatenate, zip(*outputs, strict=True))
    table = part.manifest.assign(split=split)[["image_path", "split", "emotion", *VA]].copy()
    table.loc[~annotated_rows(part.manifest), list(VA)] = np.nan
    table["pred_emotion"] = logits.argmax(axis=1)
    table[PREDICTED_VA] = np.nan if recognizer.va == "none" else va
    table[list(PROBABILITY_COLUMNS)] = metrics.softmax(logits, recognizer.temperature)
    kept = [name for name in {"group": 0, by: 0} if name in part.manifest and name not in table]
    return table.join(part.manifest[kept])


def read_predictions(path):
    """Read and check a predictions table."""
    if not Path(path).is_file():
        raise EmoError(f"{path} does not exist; run: python -m emo evaluate --run {path.parent}")
    return _checked(read_table(Path(path), ()), path)


def compute_metrics(
    predictions, train_manifest=None, *, va="annotated", temperature=1.0, by=BY, rounds=ROUNDS
):
    """Return the numbers of `metrics.json` from a predictions table.

    Baselines use the class means of `train_manifest`. Valence and arousal never annotated or taught
    are None. Intervals: 95 % bootstrap, by `group` if any. `temperature` calibrated the table.
    """
    table = _checked(predictions)
    known = table[[*VA, *PREDICTED_VA]].notna().all(axis=1).to_numpy() & (va == "annotated")
    score, probabilities = _scorer(table, known), table[list(PROBABILITY_COLUMNS)].to_numpy(float)
    values = score(np.ones(len(table)))
    matrix, confidence = metrics.confusion(*table[CLASS_PAIR].to_numpy().T), probabilities.max(1)
    hit = (table["emotion"] == table["pred_emotion"]).to_numpy()
    sure, raw = confidence >= NOT_SURE, probabilities**temperature  # as if not calibrated
    answered = {"confidence": NOT_SURE, "coverage": float(sure.mean())}
    answered["accuracy"] = float(hit[sure].mean()) if sure.any() else None
    classes = pd.DataFrame(metrics.per_class(matrix), EMOTIONS)
    split = str(table["split"].iloc[0]) if "split" in table else "test"
    uncalibrated = metrics.calibration_error(raw.max(1) / raw.sum(1), hit)
    found = {name: values[name] for name in ("accuracy", "macro_f1", "calibration_error")}
    found |= {"calibration_error_uncalibrated": uncalibrated, "sure": answered}
    found |= {"per_class": classes.to_dict("index"), "confusion": matrix.tolist()}
    numbers = {"split": split, "n": len(table), "n_va": int(known.sum()), "va": va}
    numbers["emotion"] = found | {"absent": classes.index[classes["support"] == 0].tolist()}
    for name in VA:
        pair = table.loc[known, [name, f"pred_{name}"]].to_numpy().T
        numbers[name] = metrics.regression(*pair) if known.any() else None
    numbers["mean_ccc"] = mean_ccc = values.get("mean_ccc")
    numbers["combined_score"] = float(combined_score(values["macro_f1"], mean_ccc))
    numbers["baselines"] = _baselines(table, table[known], train_manifest)
    numbers["scores"] = values  # all that have an interval, by the same names
    numbers["intervals"] = dict(zip(values, _intervals(score, table, rounds), strict=True))
    numbers["groups"] = _groups(table, by, rounds) if by in table else None
    return numbers


def compare(predictions, other, *, va="annotated", rounds=ROUNDS):
    """Return this table's scores minus the other's on the shared images, with paired intervals."""
    answers = ["pred_emotion", *PREDICTED_VA, *PROBABILITY_COLUMNS]
    ours = predictions[predictions["emotion"] >= 0]
    ours = ours.merge(other[["image_path", *answers]], on="image_path", suffixes=("", "_other"))
    if ours.empty:
        raise EmoError("the two runs share no evaluated image; use the same data and split")
    theirs = ours.assign(**{name: ours[f"{name}_other"] for name in answers})
    known = ours[[*VA, *PREDICTED_VA, *(f"{name}_other" for name in PREDICTED_VA)]].notna()
    known = known.all(axis=1).to_numpy() & (va == "annotated")
    ours_score, theirs_score = _scorer(ours, known), _scorer(theirs, known)

    def difference(weights):
        before = theirs_score(weights)
        return {name: value - before[name] for name, value in ours_score(weights).items()}

    values = difference(np.ones(len(ours)))
    found = zip(values.items(), _intervals(difference, ours, rounds), strict=True)
    return {"n": len(ours)} | {n: {"difference": d, "interval": i} for (n, d), i in found}


def write_report(folder, predictions, numbers, config, part=None):
    """Write `MODEL_CARD.md` and a one-file `report.html`, with faces of `part`, a `FaceDataset`."""
    values = {"lines": headline(numbers), "numbers": numbers, "config": config}
    values["figures"] = _figures(_checked(predictions), numbers)
    values["faces"] = () if part is None else _faces(predictions, part)
    for template, name in (("model_card.md", "MODEL_CARD.md"), ("report.html", "report.html")):
        with atomic_path(folder / name) as temporary:
            temporary.write_text(TEMPLATES.get_template(template).render(values), "utf-8")


def headline(numbers):
    """Return the few lines that a person reads first, as text by name, which may hold a bar."""
    return dict(line.rsplit(" | ", 1) for line in WORDS.headline(numbers).splitlines())


def _checked(predictions, where="the predictions table"):
    """Return the rows with a known emotion, their numbers as numbers, or say what is wrong."""
    needed = [*CLASS_PAIR, *PROBABILITY_COLUMNS, *VA, *PREDICTED_VA]
    if missing := ", ".join(c for c in ("image_path", *needed) if c not in predictions):
        raise EmoError(f"{where} lacks the columns {missing}; write it with emo evaluate")
    table = predictions.assign(**predictions[needed].apply(pd.to_numeric, errors="coerce"))
    table = table[~(table["emotion"] < 0)].reset_index(drop=True)  # NaN stays, to be refused
    if table.empty:
        raise EmoError(f"no row of {where} has a known emotion: there is nothing to evaluate")
    if not np.isfinite(table[needed[:10]]).all(axis=None):
        raise EmoError(f"{where} holds NaN or text; evaluate a model that trained well")
    if not table[CLASS_PAIR].isin(range(len(EMOTIONS))).all(axis=None):
        raise EmoError(f"{where} holds emotions other than 0 to 7; write it with emo evaluate")
    return table.astype(dict.fromkeys(CLASS_PAIR, int))


def _scorer(table, known):
    """Return a function: weights (N,) → scores by name, of valence and arousal for `known` rows."""
    emotion, answer = table[CLASS_PAIR].to_numpy().T
    probabilities = table[list(PROBABILITY_COLUMNS)].to_numpy(float)
    confidence, hit, basic = probabilities.max(axis=1), emotion == answer, emotion < 7
    among = probabilities[basic, :7].argmax(axis=1)  # the answer if contempt is not offered
    va = table.loc[known, [*VA, *PREDICTED_VA]].to_numpy(float).T

    def score(weights):
        eight = metrics.confusion(emotion, answer, weights)
        seven = metrics.confusion(emotion[basic], among, weights[basic])
        scores = {"accuracy": metrics.accuracy(eight), "macro_f1": metrics.macro_f1(eight)}
        scores["accuracy_7"] = metrics.accuracy(seven)
        scores["macro_f1_7"] = metrics.per_class(seven)["f1"][:7].mean()
        scores["calibration_error"] = metrics.calibration_error(confidence, hit, weights)
        if known.any():
            cccs = [metrics.ccc(va[i], va[i + 2], weights[known]) for i in (0, 1)]
            scores |= dict(zip((f"ccc_{name}" for name in VA), cccs, strict=True))
            scores["mean_ccc"] = sum(cccs) / 2
        return scores

    return score


def _people(table):
    """Return whom each face belongs to: its `group`, or itself where it has none."""
    own = table["image_path"]
    return table.get("group", own).astype(object).fillna(own).astype(str)


def _intervals(score, table, rounds):
    return metrics.bootstrap(lambda w: list(score(w).values()), len(table), _people(table), rounds)


def _groups(table, column, rounds):
    """Return the mean recall of each group, with intervals, and the gap from best to worst."""
    values = table[column]
    if pd.api.types.is_numeric_dtype(values) and values.nunique() > SHOWN:
        values = pd.qcut(values, 4, duplicates="drop")
    people = _people(table).groupby(values, observed=True).nunique()
    names = sorted(people[people >= FEWEST].nlargest(SHOWN).index)
    rows = {str(name): np.flatnonzero(values == name) for name in names}
    if len(rows) < 2:
        return None
    pairs = {name: table.loc[chosen, CLASS_PAIR].to_numpy().T for name, chosen in rows.items()}

    def recalls(weights):
        found = {}
        for name, chosen in rows.items():
            each = metrics.per_class(metrics.confusion(*pairs[name], weights[chosen]))
            classes = np.count_nonzero(each["support"]) or np.nan  # NaN: nobody of it was drawn
            found[name] = each["recall"].sum() / classes
        return found

    def with_gap(weights):
        return (found := recalls(weights)) | {"gap": found[best] - found[worst]}

    values = recalls(np.ones(len(table)))
    best, worst = max(values, key=values.get), min(values, key=values.get)
    *spread, gap = _intervals(with_gap, table, rounds)
    gap = {"between": [best, worst], "recall": values[best] - values[worst], "interval": gap}
    facts = zip(values.items(), spread, rows.values(), strict=True)
    found = {name: {"recall": r, "interval": i, "n": len(n)} for (name, r), i, n in facts}
    return {"column": column, "recalls": found, "gap": gap}


def _baselines(table, known, train_manifest):
    taught = table if train_manifest is None else train_manifest[train_manifest["emotion"] >= 0]
    commonest = np.bincount(taught["emotion"], minlength=len(EMOTIONS)).argmax()
    result = {"majority_accuracy": float((table["emotion"] == commonest).mean())}
    annotated = taught[annotated_rows(taught)]
    if train_manifest is None or known.empty or annotated.empty:
        return result
    overall, means = annotated[list(VA)].mean(), annotated.groupby("emotion")[list(VA)].mean()
    means = means.reindex(range(len(EMOTIONS))).fillna(overall)
    guesses = {"constant_mean": known.assign(**overall)}
    guesses["lookup_predicted_class"] = means.loc[known["pred_emotion"]]
    guesses["lookup_true_class"] = means.loc[known["emotion"]]
    for name, guess in guesses.items():
        scores = pd.DataFrame({n: metrics.regression(known[n], guess[n]) for n in VA}).T
        result[name] = {"mean_ccc": scores["ccc"].mean(), "rmse": scores["rmse"].to_dict()}
    return result


def _figures(table, numbers):
    """Yield (title, PNG in base64) of each figure."""
    probabilities = table[list(PROBABILITY_COLUMNS)].to_numpy(float)
    answers = probabilities.max(axis=1), (table["emotion"] == table["pred_emotion"]).to_numpy()
    bins, ranked = metrics.reliability(*answers), (probabilities, table["emotion"])
    yield "Confusion matrix", _drawn(plots.plot_confusion, numbers["emotion"]["confusion"])
    yield "Precision and recall of each class", _drawn(plots.plot_precision_recall, *ranked)
    yield "Reliability: is 80 % sure right 8 times in 10?", _drawn(plots.plot_reliability, *bins)
    yield "Fewer answers, better answers", _drawn(plots.plot_coverage, *answers, threshold=NOT_SURE)
    if not numbers["valence"]:
        return
    known = table.dropna(subset=[*VA, *PREDICTED_VA])
    known = known.sample(min(len(known), 20_000), random_state=0)  # more make one blot
    for name in VA:
        options = {"name": name, "ccc": numbers[name]["ccc"]}
        picture = _drawn(plots.plot_va_scatter, known[name], known[f"pred_{name}"], **options)
        yield f"Predicted against annotated {name}", picture
    pair = known[list(VA)].to_numpy(), known[PREDICTED_VA].to_numpy()
    yield "Where predictions are drawn to", _drawn(plots.plot_va_residuals, *pair)


def _drawn(plot, *data, **options):
    """Return a figure as PNG in base64; drawn without pyplot, so that threads may call it."""
    figure, buffer = Figure(figsize=(6, 5), layout="constrained"), io.BytesIO()
    plot(*data, ax=figure.subplots(), **options)
    figure.savefig(buffer, format="png", dpi=110)
    return base64.b64encode(buffer.getvalue()).decode()


def _faces(predictions, part):
    """Yield (title, [(PNG in base64, shares of the labels, answer, confidence)]) of faces."""
    confidence = predictions[list(PROBABILITY_COLUMNS)].to_numpy(float).max(axis=1)
    emotion, answer = predictions[CLASS_PAIR].to_numpy().T
    votes = np.eye(9, 8)[emotion] if part.votes is None else part.votes.nan_to_num().numpy()
    wrong = np.flatnonzero((emotion >= 0) & (emotion != answer))
    rows = {"The most confident mistakes": wrong[np.argsort(-confidence[wrong])]}
    if part.votes is not None:
        doubt = np.nan_to_num(entropy(votes, axis=1))
        rows["The most disputed faces: annotators do not agree"] = np.argsort(-doubt)
    for title, order in rows.items():
        shown = []
        for row, face in zip(order, part.images[order[:SHOWN]], strict=False):
            png = cv2.imencode(".png", face[..., ::-1])[1]  # RGB → BGR
            labels = pd.Series(votes[row], EMOTIONS).nlargest(2).to_dict()
            picture = base64.b64encode(png).decode()
            shown.append((picture, labels, EMOTIONS[answer[row]], confidence[row]))
        yield title, shown
