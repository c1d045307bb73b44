"""Figures: computed data in, `ax` in, `ax` out. No show, no savefig, no style."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.metrics import precision_recall_curve

from emo.emotions import CLASS_MEAN_VA, COLOURS, EMOTIONS

# Where Russell (1980) puts these words, as (valence, arousal).
CIRCUMPLEX = {"excited": (0.62, 0.68), "content": (0.78, -0.35), "calm": (0.45, -0.78)}
CIRCUMPLEX |= {"bored": (-0.45, -0.80), "gloomy": (-0.80, -0.38), "tense": (-0.45, 0.90)}


def plot_mosaic(images, ax=None, columns=8, title=""):
    """Tile RGB uint8 images (N, S, S, 3) into one picture, `columns` a row."""
    ax = ax or plt.gca()
    images = np.asarray(images, np.uint8)
    size, missing = images.shape[1], -len(images) % columns
    images = np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0)), constant_values=255)
    grid = images.reshape(-1, columns, size, size, 3).swapaxes(1, 2)
    ax.imshow(grid.reshape(-1, columns * size, 3))
    ax.set(xticks=[], yticks=[], title=title)
    return ax


def plot_classes(images, emotion, ax=None, columns=12, seed=0):
    """Draw a row of `columns` faces, RGB uint8 (N, S, S, 3), of each `emotion` (N,)."""
    rows = np.random.default_rng(seed).permutation(len(emotion))
    emotion = np.asarray(emotion)[rows]
    classes = np.unique(emotion[emotion >= 0])  # −1: unknown
    chosen = [np.resize(rows[emotion == i][:columns], columns) for i in classes]
    faces = images[np.concatenate(chosen)]
    ax, size = plot_mosaic(faces, ax, columns), faces.shape[1]
    ax.set_yticks(size / 2 + size * np.arange(len(classes)), [EMOTIONS[i] for i in classes])
    ax.tick_params(length=0)
    return ax


def plot_va_plane(ax=None, class_means=True, derived=False):
    """Draw the empty valence–arousal plane, −1 to 1, with circumplex words and class means."""
    ax = ax or plt.gca()
    ax.axhline(0, color="0.8", linewidth=1, zorder=0)
    ax.axvline(0, color="0.8", linewidth=1, zorder=0)
    ax.add_patch(plt.Circle((0, 0), 1, fill=False, color="0.85", zorder=0))
    for word, place in CIRCUMPLEX.items():
        ax.annotate(word, place, color="0.6", ha="center", va="center", fontsize=8, style="italic")
    for name, place in zip(EMOTIONS, CLASS_MEAN_VA, strict=True) if class_means else ():
        ax.plot(*place, marker="D", color=COLOURS[name], markeredgecolor="white", markersize=8)
        # Anger and Contempt are neighbours: one label goes below.
        below = {"va": "top", "xytext": (0, -7)} if name == "Anger" else {"xytext": (0, 7)}
        ax.annotate(name, place, textcoords="offset points", ha="center", fontsize=8, **below)
    ax.set(xlim=(-1, 1), ylim=(-1, 1), aspect="equal", xlabel="valence", ylabel="arousal")
    ax.set_title("derived from the class" if derived else "", fontsize=9, color="0.4")
    return ax


def plot_confusion(matrix, ax=None):
    """Draw a confusion matrix (8, 8): counts as text, share of the true class as shade."""
    from seaborn import heatmap  # here, because it takes a second

    shares = matrix / np.maximum(np.sum(matrix, axis=1, keepdims=True), 1)
    style = {"annot": matrix, "fmt": "d", "annot_kws": {"size": 8}, "cbar": False, "square": True}
    names = {"xticklabels": EMOTIONS, "yticklabels": EMOTIONS}
    ax = heatmap(shares, vmin=0, vmax=1, cmap="Blues", ax=ax, **style, **names)
    ax.set(xlabel="predicted", ylabel="true")
    ax.tick_params(axis="x", rotation=45)  # eight names side by side would touch
    return ax


def plot_va_scatter(target, predicted, ax=None, name="valence", ccc=None):
    """Draw predicted against annotated values of one dimension, (N,) each, in [−1, 1]."""
    ax = ax or plt.gca()
    ax.plot([-1, 1], [-1, 1], color="0.7", linewidth=1, zorder=0)
    ax.scatter(target, predicted, s=8, alpha=0.35, color="#0072B2")
    title = name if ccc is None else f"{name}: CCC {ccc:.2f}"
    ax.set(xlim=(-1, 1), ylim=(-1, 1), aspect="equal", title=title)
    ax.set(xlabel=f"annotated {name}", ylabel=f"predicted {name}")
    return ax


def plot_reliability(count, confidence, correct, ax=None):
    """Draw accuracy against confidence of each bin (see `metrics.reliability`)."""
    ax = ax or plt.gca()
    ax.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    count, confidence, correct = np.array([count, confidence, correct])[:, np.asarray(count) > 0]
    ax.scatter(confidence, correct, s=200 * count / count.max(initial=1) + 10, color="#0072B2")
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="confidence", ylabel="accuracy")
    return ax


def plot_coverage(confidence, hit, ax=None, threshold=0.35):
    """Draw accuracy among the surest faces against their share (see `metrics.reliability`)."""
    ax = ax or plt.gca()
    order, answered = np.argsort(-np.asarray(confidence)), np.arange(1, len(hit) + 1)
    ax.plot(answered / len(hit), np.cumsum(np.asarray(hit)[order]) / answered, color="#0072B2")
    share = np.mean(np.asarray(confidence) >= threshold)
    ax.axvline(share, color="#D55E00", linestyle="--", label=f"confidence {threshold}")
    ax.legend(frameon=False)
    ax.set(xlabel="share of faces that get an answer", ylabel="accuracy among them", ylim=(0, 1.02))
    return ax


def plot_precision_recall(probabilities, target, ax=None):
    """Draw precision against recall of each class in `target` (N,); `probabilities` are (N, 8)."""
    ax = ax or plt.gca()
    for i in np.unique(target):
        precision, recall, _ = precision_recall_curve(np.asarray(target) == i, probabilities[:, i])
        ax.plot(recall, precision, color=COLOURS[EMOTIONS[i]], label=EMOTIONS[i])
    ax.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    ax.legend(frameon=False, fontsize=8)
    return ax


def plot_va_residuals(target, predicted, ax=None, cells=8):
    """Draw arrows on the plane from annotated to predicted values (N, 2), a mean for each cell."""
    ax = plot_va_plane(ax, class_means=False)
    target, predicted = np.asarray(target, float), np.asarray(predicted, float)
    column, row = np.clip((target.T + 1) / 2 * cells, 0, cells - 1).astype(int)
    groups = pd.DataFrame(np.hstack([target, predicted - target])).groupby([row, column])
    means = groups.mean()[groups.size() >= 3]  # a mean of fewer says little
    style = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.006}
    ax.quiver(*means.to_numpy().T, color="#D55E00", **style)
    return ax
