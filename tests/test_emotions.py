import numpy as np
import pytest

from emo import EmoError
from emo.emotions import CLASS_MEAN_VA, COLOURS, EMOTIONS, derive_va, emotion_id, ids_of_order


def test_affectnet_order():
    assert EMOTIONS == (
        "Neutral",
        "Happy",
        "Sad",
        "Surprise",
        "Fear",
        "Disgust",
        "Anger",
        "Contempt",
    )
    assert len(set(COLOURS.values())) == 8


@pytest.mark.parametrize(
    ("name", "number"),
    [("happiness", 1), ("SADNESS", 2), (" surprise ", 3), ("angry", 6), ("Contempt", 7)],
)
def test_spellings(name, number):
    assert emotion_id(name) == number


@pytest.mark.parametrize("name", ["joyful?", "3", "", "unknown"])
def test_unknown_names_and_numbers_are_refused(name):
    with pytest.raises(EmoError, match="unknown emotion"):
        emotion_id(name)


def test_orders_are_permutations():
    # anger, contempt, disgust, fear, happy, neutral, sad, surprise
    assert ids_of_order("alphabetical").tolist() == [6, 7, 5, 4, 1, 0, 2, 3]
    # neutral, happiness, surprise, sadness, anger, disgust, fear, contempt
    assert ids_of_order("ferplus").tolist() == [0, 1, 3, 2, 6, 5, 4, 7]
    with pytest.raises(EmoError, match="class order"):
        ids_of_order("mine")


def test_derived_values_are_weighted_class_means():
    votes = np.zeros((3, 8))
    votes[0, 1] = 10
    votes[1, [1, 2]] = 5
    va = derive_va(votes)
    assert va[0] == pytest.approx(CLASS_MEAN_VA[1])
    assert va[1] == pytest.approx(((0.67 - 0.63) / 2, (0.08 - 0.27) / 2), abs=1e-6)
    assert np.isnan(va[2]).all()
