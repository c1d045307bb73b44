import matplotlib

matplotlib.use("Agg")

import numpy as np
import pytest
from matplotlib.figure import Figure

from emo import plots


@pytest.fixture
def ax():
    return Figure().subplots()


def test_plane_always_spans_the_same_square(ax):
    assert plots.plot_va_plane(ax, derived=True) is ax
    assert ax.get_xlim() == ax.get_ylim() == (-1, 1)
    assert ax.get_aspect() == 1
    assert "derived" in ax.get_title()
    assert len(ax.lines) == 2 + 8


def test_confusion(ax):
    matrix = np.diag(np.arange(8))
    plots.plot_confusion(matrix, ax)
    assert [int(text.get_text()) for text in ax.texts] == matrix.ravel().tolist()
    assert ax.get_xlabel() == "predicted"


def test_classes_stand_in_rows_of_their_own(ax):
    faces = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    plots.plot_classes(faces, [2, 0, 2, -1, 0, 2], ax, columns=3)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["Neutral", "Sad"]
    shown = ax.images[0].get_array()[::4, ::4, 0]
    assert set(shown[0]) == {1, 4} and set(shown[1]) == {0, 2, 5}


def test_mosaic(ax):
    plots.plot_mosaic(np.zeros((10, 4, 4, 3), np.uint8), ax, columns=4)
    assert ax.images[0].get_array().shape == (12, 16, 3)


def test_scatter_and_reliability(ax):
    plots.plot_va_scatter([0, 1], [0.1, 0.9], ax, "arousal", ccc=0.5)
    assert ax.get_title() == "arousal: CCC 0.50"
    second = plots.plot_reliability([3, 0], [0.6, 0], [0.5, 0], Figure().subplots())
    assert second.collections[0].get_offsets().tolist() == [[0.6, 0.5]]


def test_coverage_falls_from_the_surest_face_to_the_accuracy_of_all(ax):
    plots.plot_coverage([0.9, 0.2, 0.6, 0.5], [1, 0, 1, 0], ax, threshold=0.55)
    curve, line = ax.lines
    assert curve.get_xydata().tolist() == [[0.25, 1], [0.5, 1], [0.75, 2 / 3], [1, 0.5]]
    assert line.get_xdata()[0] == 0.5


def test_precision_recall_draws_the_classes_that_are_there(ax):
    probabilities = np.full((4, 8), 0.0)
    probabilities[:, 1], probabilities[:, 6] = [0.9, 0.8, 0.3, 0.1], [0.1, 0.2, 0.7, 0.9]
    plots.plot_precision_recall(probabilities, [1, 1, 6, 6], ax)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["Happy", "Anger"]
    assert all((line.get_ydata()[-2:] == 1).all() for line in ax.lines)  # both are ranked perfectly


def test_residuals_are_means_of_a_cell(ax):
    target = np.array([[0.5, 0.5]] * 4 + [[-0.5, 0.5]])
    plots.plot_va_residuals(target, target - (0.2, 0.1), ax)
    (arrows,) = [c for c in ax.collections if hasattr(c, "U")]
    assert arrows.XY.tolist() == [[0.5, 0.5]]  # one lone face is no mean
    assert np.allclose([arrows.U, arrows.V], [[-0.2], [-0.1]])
