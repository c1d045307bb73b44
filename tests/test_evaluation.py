import re

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, f1_score

from emo import evaluate
from emo.errors import EmoError
from emo.evaluation import compare, compute_metrics, headline, read_predictions
from emo.files import read_json
from emo.runs import read_manifest


def test_numbers_of_a_table(predictions):
    numbers = compute_metrics(predictions, rounds=200)
    target, guess = predictions["emotion"], predictions["pred_emotion"]
    assert numbers["emotion"]["accuracy"] == pytest.approx(accuracy_score(target, guess))
    assert numbers["emotion"]["macro_f1"] == pytest.approx(f1_score(target, guess, average="macro"))
    assert np.sum(numbers["emotion"]["confusion"]) == 200 == numbers["n"] == numbers["n_va"]
    assert numbers["mean_ccc"] == pytest.approx(
        (numbers["valence"]["ccc"] + numbers["arousal"]["ccc"]) / 2
    )
    assert numbers["combined_score"] == pytest.approx(
        numbers["emotion"]["macro_f1"] + numbers["mean_ccc"]
    )
    for name, value in (("accuracy", numbers["emotion"]["accuracy"]), ("mean_ccc", None)):
        low, high = numbers["intervals"][name]
        assert low < (value or numbers[name]) < high


@pytest.mark.parametrize("va", ["derived", "none"])
def test_values_that_nobody_annotated_are_not_scored(predictions, va):
    if va == "none":
        predictions[["pred_valence", "pred_arousal"]] = np.nan
    numbers = compute_metrics(predictions, va=va, rounds=20)
    assert numbers["valence"] is None
    assert numbers["mean_ccc"] is None
    assert numbers["n_va"] == 0
    assert numbers["combined_score"] == numbers["emotion"]["macro_f1"]
    assert "CCC" not in " ".join(headline(numbers))


def test_baselines_by_hand(predictions):
    train = pd.DataFrame({"emotion": [0, 0, 1], "valence": [0.0, 0.2, 1.0], "arousal": 0.5})
    baselines = compute_metrics(predictions, train, rounds=20)["baselines"]
    assert baselines["majority_accuracy"] == (predictions["emotion"] == 0).mean()
    assert baselines["constant_mean"]["mean_ccc"] == pytest.approx(0)
    error = predictions["valence"] - 0.4
    assert baselines["constant_mean"]["rmse"]["valence"] == pytest.approx((error**2).mean() ** 0.5)


def test_comparison_of_a_table_with_itself_and_with_a_worse_one(predictions):
    same = compare(predictions, predictions, rounds=100)
    assert same["accuracy"] == {"difference": 0, "interval": [0, 0]}
    worse = predictions.assign(pred_emotion=(predictions["emotion"] + 1) % 8)
    low, high = compare(predictions, worse, rounds=100)["accuracy"]["interval"]
    assert 0 < low < high
    with pytest.raises(EmoError, match="share no"):
        compare(predictions, predictions.assign(image_path="elsewhere.png"))


def test_bad_tables(predictions, tmp_path):
    with pytest.raises(EmoError, match="no row"):
        compute_metrics(predictions.assign(emotion=-1))
    with pytest.raises(EmoError, match="NaN"):
        compute_metrics(predictions.assign(p_happy=np.nan))
    predictions.drop(columns="p_sad").to_csv(tmp_path / "predictions.csv")
    with pytest.raises(EmoError, match="p_sad"):
        read_predictions(tmp_path / "predictions.csv")
    with pytest.raises(EmoError, match="does not exist"):
        read_predictions(tmp_path / "none.csv")


def test_one_class_only_is_defined(predictions):
    numbers = compute_metrics(predictions.assign(emotion=3, pred_emotion=3), rounds=20)
    assert numbers["emotion"]["accuracy"] == 1
    assert numbers["emotion"]["macro_f1"] == 1 / 8


def test_a_run_gets_its_files(run, tmp_path):
    numbers = evaluate(run, output_dir=tmp_path)
    assert numbers == read_json(tmp_path / "metrics.json")
    assert list(numbers)[:4] == ["split", "n", "n_va", "va"]
    assert numbers["va"] == "annotated"
    table = pd.read_csv(tmp_path / "predictions.csv")
    columns = "image_path split emotion valence arousal pred_emotion pred_valence pred_arousal"
    columns = columns.split() + [
        f"p_{n}" for n in "neutral happy sad surprise fear disgust anger contempt".split()
    ]
    assert list(table.columns[:16]) == columns
    manifest = read_manifest(run / "manifest.csv").set_index("image_path")
    assert (manifest.loc[table["image_path"], "split"] == "test").all()
    assert (manifest.loc[table["image_path"], "emotion"].to_numpy() == table["emotion"]).all()
    page = (tmp_path / "report.html").read_text()
    assert not re.search(r'(src|href)="https?:', page)
    assert page.count("<img") == 4
    assert f"{numbers['emotion']['accuracy']:.3f}" in (tmp_path / "MODEL_CARD.md").read_text()


def test_a_bare_model_on_other_data(run, faces, tmp_path):
    model = run / "model_weights.pth"
    numbers = evaluate(model=model, data_dir=faces, split="val", output_dir=tmp_path)
    assert numbers["split"] == "val"
    with pytest.raises(EmoError, match="--data-dir"):
        evaluate(model=model)
    with pytest.raises(EmoError, match="either a run"):
        evaluate()
