import re

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, f1_score, recall_score

from emo import EmoError, evaluate
from emo.dataset import FaceDataset
from emo.emotions import PROBABILITY_COLUMNS
from emo.evaluation import compare, compute_metrics, headline, read_predictions, write_report
from emo.files import read_json
from emo.metrics import softmax
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
    worse["pred_valence"] = -worse["valence"]
    found = compare(predictions, worse.sample(frac=1, random_state=0), rounds=100)
    for name in ("accuracy", "ccc_valence"):
        low, high = found[name]["interval"]
        assert 0 < low < found[name]["difference"] < high
    assert found["ccc_arousal"]["difference"] == pytest.approx(0)
    assert "mean_ccc" not in compare(predictions, worse, va="none", rounds=20)
    numbers = compute_metrics(predictions, rounds=20) | {"against": {"run": "other"} | found}
    lines = headline(numbers)
    assert lines["accuracy minus that of other"].startswith(
        f"{found['accuracy']['difference']:+.3f}"
    )
    assert "CCC valence minus that of other" in lines
    with pytest.raises(EmoError, match="share no"):
        compare(predictions, predictions.assign(image_path="elsewhere.png"))


def test_seven_classes_leave_contempt_out_of_labels_and_answers(predictions):
    found = compute_metrics(predictions, rounds=20)["scores"]
    rows = predictions[predictions["emotion"] < 7]
    among = rows.filter(like="p_").to_numpy()[:, :7].argmax(axis=1)
    assert found["accuracy_7"] == pytest.approx(accuracy_score(rows["emotion"], among))
    assert found["macro_f1_7"] == pytest.approx(f1_score(rows["emotion"], among, average="macro"))


def test_every_headline_number_has_an_interval(predictions):
    numbers = compute_metrics(predictions, rounds=200)
    names = "accuracy macro_f1 accuracy_7 macro_f1_7 calibration_error mean_ccc ccc_valence"
    assert {*names.split(), "ccc_arousal"} == set(numbers["intervals"])
    low, high = numbers["intervals"]["ccc_arousal"]
    assert low < numbers["arousal"]["ccc"] < high
    assert all("interval" in text for name, text in headline(numbers).items() if "CCC " in name)


def test_calibration_before_and_after_temperature(predictions):
    before = compute_metrics(predictions, rounds=20)["emotion"]
    assert before["calibration_error_uncalibrated"] == pytest.approx(before["calibration_error"])
    columns = list(predictions.filter(like="p_"))
    columns = [c for c in columns if not c.startswith("pred")]
    logits = np.log(predictions[columns])
    predictions[columns] = softmax(logits, 2.0)
    after = compute_metrics(predictions, temperature=2.0, rounds=20)["emotion"]
    assert after["calibration_error_uncalibrated"] == pytest.approx(before["calibration_error"])
    assert after["calibration_error"] != pytest.approx(before["calibration_error"])
    confidence = predictions[columns].max(axis="columns")
    hit = predictions["emotion"] == predictions["pred_emotion"]
    assert after["sure"]["coverage"] == pytest.approx((confidence >= 0.35).mean())
    assert after["sure"]["accuracy"] == pytest.approx(hit[confidence >= 0.35].mean())


def test_groups_are_compared_by_mean_recall(predictions):
    predictions["skin_tone"] = np.arange(200) % 10 + 1
    predictions.loc[predictions["skin_tone"] == 10, "pred_emotion"] = 0
    found = compute_metrics(predictions, rounds=100)["groups"]
    assert list(found["recalls"]) == [str(i) for i in range(1, 11)]
    rows = predictions[predictions["skin_tone"] == 3]
    recall = recall_score(rows["emotion"], rows["pred_emotion"], average=None, zero_division=np.nan)
    shown = sorted(rows["emotion"].unique())
    expected = recall_score(rows["emotion"], rows["pred_emotion"], labels=shown, average="macro")
    assert (
        found["recalls"]["3"]["recall"]
        == pytest.approx(expected)
        == pytest.approx(np.nanmean(recall))
    )
    assert found["gap"]["between"][1] == "10"
    assert found["gap"]["interval"][0] > 0
    predictions["yaw"] = np.linspace(-30, 30, 200)
    assert len(compute_metrics(predictions, by="yaw", rounds=20)["groups"]["recalls"]) == 4
    assert compute_metrics(predictions, by="nothing", rounds=20)["groups"] is None
    predictions["group"] = predictions["skin_tone"].where(predictions["skin_tone"] > 4, np.nan)
    found = compute_metrics(predictions, rounds=20)["groups"]  # one person each, from 5 up
    assert list(found["recalls"]) == ["1", "2", "3", "4"]


def test_rows_without_a_group_stand_alone(predictions):
    predictions["group"] = np.where(np.arange(200) < 100, np.nan, np.arange(200) // 10).astype(
        object
    )
    assert compute_metrics(predictions, rounds=20)["intervals"]["accuracy"]


def test_bad_tables(predictions, tmp_path):
    with pytest.raises(EmoError, match="no row of"):
        compute_metrics(predictions.assign(emotion=-1))
    with pytest.raises(EmoError, match="NaN"):
        compute_metrics(predictions.assign(p_happy=np.nan))
    predictions.drop(columns="p_sad").to_csv(tmp_path / "predictions.csv")
    with pytest.raises(EmoError, match="p_sad"):
        read_predictions(tmp_path / "predictions.csv")
    with pytest.raises(EmoError, match="NaN or text"):  # some labels are words, none is dropped
        words = predictions["emotion"].astype(object).where(predictions["emotion"] != 1, "Happy")
        compute_metrics(predictions.assign(emotion=words))
    with pytest.raises(EmoError, match="0 to 7"):
        compute_metrics(predictions.assign(emotion=8))
    with pytest.raises(EmoError, match="NaN or text"):
        compute_metrics(predictions.assign(pred_emotion="Happy"))
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
    mistakes = int((table["emotion"] != table["pred_emotion"]).sum())
    assert page.count("<img") == 7 + min(mistakes, 12)
    assert "Where predictions are drawn to" in page
    assert f"{numbers['emotion']['accuracy']:.3f}" in (tmp_path / "MODEL_CARD.md").read_text()


def test_a_bare_model_on_other_data(run, faces, tmp_path):
    model = run / "model_weights.pth"
    numbers = evaluate(model=model, data_dir=faces, split="val", output_dir=tmp_path)
    assert numbers["split"] == "val"
    with pytest.raises(EmoError, match="--data-dir"):
        evaluate(model=model)
    with pytest.raises(EmoError, match="either a run"):
        evaluate()
    with pytest.raises(EmoError, match="no column 'mood'"):
        evaluate(run, by="mood")
    with pytest.raises(EmoError, match="predictions.csv does not exist"):
        evaluate(run, against=tmp_path / "nowhere", output_dir=tmp_path)


def test_disputed_faces_are_those_whose_votes_differ(predictions, tmp_path):
    votes = np.eye(8, dtype=float)[np.zeros(200, int)]
    votes[7] = [0.5, 0.5, 0, 0, 0, 0, 0, 0]
    table = predictions[["emotion", "valence", "arousal"]].copy()
    table[list(PROBABILITY_COLUMNS)] = votes
    part = FaceDataset(np.zeros((200, 32, 32, 3), np.uint8), table)
    numbers = compute_metrics(predictions.assign(skin_tone=np.arange(200) % 3), rounds=20)
    config = {"backbone": "resnet18", "image_size": 32, "colour": "rgb", "va": "annotated"}
    write_report(tmp_path, predictions, numbers, config, part)
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "Groups: skin tone" in page
    disputed = page[page.index("most disputed") :]
    assert disputed.index("labelled Neutral 50%, Happy 50%") < disputed.index("labelled Neutral;")
    card = (tmp_path / "MODEL_CARD.md").read_text("utf-8")
    for word in ("research only", "Article 5(1)(f)", "| Contempt |", "Mean recall by skin tone"):
        assert word in card
