import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from emo import plots
from emo.emotions import EMOTIONS


@pytest.fixture
def ax():
    return Figure().subplots()


def test_class_counts(ax):
    manifest = pd.DataFrame({"emotion": [0, 0, 1, -1], "split": ["train", "val", "train", "test"]})
    assert plots.plot_class_counts(manifest, ax) is ax
    assert sum(bar.get_width() for bar in ax.patches) == 3
    assert [label.get_text() for label in ax.get_yticklabels()] == list(EMOTIONS)


def test_plane_always_spans_the_same_square(ax):
    assert plots.plot_va_plane(ax, derived=True) is ax
    assert ax.get_xlim() == ax.get_ylim() == (-1, 1)
    assert ax.get_aspect() == 1
    assert "derived" in ax.get_title()
    assert len(ax.lines) == 2 + 8


def test_points(ax):
    manifest = pd.DataFrame({"emotion": [1, 1], "valence": [0.5, 0.6], "arousal": [0.1, 0.2]})
    plots.plot_va_points(manifest, ax)
    drawn = np.concatenate([points.get_offsets() for points in ax.collections])
    assert drawn.tolist() == [[0.5, 0.1], [0.6, 0.2]]


def test_confusion(ax):
    matrix = np.diag(np.arange(8))
    plots.plot_confusion(matrix, ax)
    assert [int(text.get_text()) for text in ax.texts] == matrix.ravel().tolist()
    assert ax.get_xlabel() == "predicted"


def test_mosaic(ax):
    plots.plot_mosaic(np.zeros((10, 4, 4, 3), np.uint8), ax, columns=4)
    assert ax.images[0].get_array().shape == (12, 16, 3)


def test_scatter_history_and_reliability(ax):
    plots.plot_va_scatter([0, 1], [0.1, 0.9], ax, "arousal", ccc=0.5)
    assert ax.get_title() == "arousal: CCC 0.50"
    history = pd.DataFrame({"epoch": [1, 2], "train_loss": [2, 1], "val_loss": [2, 1.5]})
    history[["val_macro_f1", "val_ccc_valence", "val_ccc_arousal"]] = [[0.1, np.nan, np.nan]] * 2
    second = plots.plot_history(history, Figure().subplots())
    assert len(second.lines) == 3  # no curve of what was not scored
    third = plots.plot_reliability([3, 0], [0.6, 0], [0.5, 0], Figure().subplots())
    assert third.collections[0].get_offsets().tolist() == [[0.6, 0.5]]


def test_session(ax):
    table = pd.DataFrame({"face": [0, 0, 0, 1], "time": [0, 1, 2, 0], "valence": [0, 0.5, 1, 0]})
    table["arousal"] = table["valence"]
    plots.plot_session(table, ax)
    assert sum(len(lines.get_segments()) for lines in ax.collections) == 2
    for name in EMOTIONS:
        table[f"p_{name.lower()}"] = 0.125
    assert len(plots.plot_timeline(table, Figure().subplots()).lines) == 8
