"""The eight classes in AffectNet's order, and other people's orders and spellings of them."""

import tomllib
from pathlib import Path

import numpy as np

from emo import EmoError

EMOTIONS = ("Neutral", "Happy", "Sad", "Surprise", "Fear", "Disgust", "Anger", "Contempt")
PROBABILITY_COLUMNS = tuple(f"p_{name.lower()}" for name in EMOTIONS)

_FACTS = tomllib.loads(Path(__file__).with_name("emotions.toml").read_text("utf-8"))
_CLASSES = {name: _FACTS["classes"][name] for name in EMOTIONS}  # whatever the file's order
COLOURS = {name: facts["colour"] for name, facts in _CLASSES.items()}
CLASS_MEAN_VA = np.array([facts["mean_va"] for facts in _CLASSES.values()], np.float32)  # (8, 2)
# What the integers 0–7 of other data sets mean, as AffectNet names in their order.
CLASS_ORDERS = {"affectnet": EMOTIONS, "alphabetical": sorted(EMOTIONS)} | _FACTS["orders"]
_ID_OF = {w: i for i, n in enumerate(EMOTIONS) for w in [n.lower(), *_CLASSES[n]["also"]]}


def is_emotion_name(name):
    """Tell whether `name` is one of the eight emotions, in any case and usual spelling."""
    return str(name).strip().lower() in _ID_OF


def emotion_id(name):
    """Return the AffectNet id 0–7 of an emotion's name, in any case and usual spelling."""
    if not is_emotion_name(name):  # nor is a number: what 3 means depends on the data set
        raise EmoError(f"unknown emotion {name!r}; expected {', '.join(EMOTIONS)} or a synonym")
    return _ID_OF[str(name).strip().lower()]


def ids_of_order(order):
    """Return the array (8,) from a data set's class numbers to AffectNet ids, by `CLASS_ORDERS`."""
    if order not in CLASS_ORDERS:
        raise EmoError(f"unknown class order {order!r}; expected {', '.join(CLASS_ORDERS)}")
    return np.array([emotion_id(name) for name in CLASS_ORDERS[order]])


def derive_va(votes):
    """Return *derived* valence/arousal (N, 2) in [−1, 1]: class means by `votes` (N, 8)."""
    votes = np.asarray(votes, dtype=np.float64)
    total = votes.sum(axis=1, keepdims=True)  # without a vote: NaN
    return votes / np.where(total > 0, total, np.nan) @ CLASS_MEAN_VA
