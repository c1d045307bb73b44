"""Figures: computed data in, `ax` in, `ax` out. No show, no savefig, no style."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.ticker import MaxNLocator

from emo.emotions import CLASS_MEAN_VA, COLOURS, EMOTIONS

CIRCUMPLEX = {  # where Russell (1980) puts these words, as (valence, arousal)
    "excited": (0.62, 0.68),
    "content": (0.78, -0.35),
    "calm": (0.45, -0.78),
    "bored": (-0.45, -0.80),
    "gloomy": (-0.80, -0.38),
    "tense": (-0.45, 0.90),
}


def plot_class_counts(manifest, ax=None):
    """Draw the rows of each emotion as stacked bars, one shade a split."""
    ax = ax or plt.gca()
    split = manifest["split"] if "split" in manifest else np.full(len(manifest), "all")
    left = np.zeros(len(EMOTIONS))
    for name, alpha in (("train", 1.0), ("val", 0.6), ("test", 0.3), ("all", 1.0)):
        rows = manifest["emotion"][np.asarray(split == name)]
        counts = np.bincount(rows[rows >= 0].astype(int), minlength=len(EMOTIONS))
        if counts.sum():
            ax.barh(EMOTIONS, counts, left=left, color=list(COLOURS.values()), alpha=alpha)
            for i, count in enumerate(counts if name in ("train", "all") else ()):
                ax.annotate(f" {count}", (0, i), va="center", fontsize=8, color="white")
            left += counts
    ax.invert_yaxis()
    ax.set(xlabel="images (dark: train, middle: val, light: test)", ylabel="")
    return ax


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
    if derived:
        ax.set_title("derived from the class", fontsize=9, color="0.4")
    return ax


def plot_va_points(manifest, ax=None, derived=False):
    """Scatter the rows' valence and arousal on the plane, in their emotions' colours."""
    ax = plot_va_plane(ax, class_means=False, derived=derived)
    for i, name in enumerate(EMOTIONS):
        rows = manifest[manifest["emotion"] == i]
        style = {"s": 6, "alpha": 0.4, "color": COLOURS[name], "label": name}
        ax.scatter(rows["valence"], rows["arousal"], **style)
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8, markerscale=2, frameon=False)
    return ax


def plot_confusion(matrix, ax=None):
    """Draw a confusion matrix (8, 8): counts as text, share of the true class as shade."""
    ax = ax or plt.gca()
    matrix = np.asarray(matrix)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(matrix):
        colour = "white" if shares[row, column] > 0.5 else "black"
        ax.annotate(str(count), (column, row), ha="center", va="center", color=colour, fontsize=8)
    ax.set_xticks(range(len(EMOTIONS)), EMOTIONS, rotation=45, ha="right")
    ax.set_yticks(range(len(EMOTIONS)), EMOTIONS)
    ax.set(xlabel="predicted", ylabel="true")
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


def plot_history(history, ax=None):
    """Draw losses and validation scores of a training history, one curve each."""
    ax = ax or plt.gca()
    curves = {
        "train_loss": ("train loss", "#7f7f7f"),
        "val_loss": ("val loss", "#000000"),
        "val_macro_f1": ("val macro F1", "#0072B2"),
        "val_ccc_valence": ("val CCC valence", "#E69F00"),
        "val_ccc_arousal": ("val CCC arousal", "#009E73"),
    }
    for column, (label, colour) in curves.items():
        if history[column].notna().any():
            ax.plot(history["epoch"], history[column], marker="o", color=colour, label=label)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="epoch", ylim=(0, None))
    ax.legend(frameon=False, fontsize=8)
    return ax


def plot_reliability(count, confidence, correct, ax=None):
    """Draw accuracy against confidence of each bin (see `metrics.reliability`)."""
    ax = ax or plt.gca()
    ax.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    count, confidence, correct = np.array([count, confidence, correct])[:, np.asarray(count) > 0]
    ax.scatter(confidence, correct, s=200 * count / count.max(initial=1) + 10, color="#0072B2")
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="confidence", ylabel="accuracy")
    return ax


def plot_session(table, ax=None, derived=False):
    """Draw a live session's path on the plane (a `faces_table`), older parts paler."""
    ax = plot_va_plane(ax, derived=derived)
    rows = table.dropna(subset=["valence", "arousal"])
    for _, track in rows.groupby("face"):
        points = track[["valence", "arousal"]].to_numpy(float)
        lines = np.stack([points[:-1], points[1:]], axis=1)
        ages = np.linspace(0.1, 0.9, max(len(lines), 1))[: len(lines)]
        ax.add_collection(LineCollection(lines, colors=[(0, 0.27, 0.42, a) for a in ages]))
        ax.plot(*points[-1], marker="o", color="#00456b")
    return ax


def plot_timeline(table, ax=None):
    """Draw the probabilities of the face seen most over the seconds of a `faces_table`."""
    ax = ax or plt.gca()
    if len(table):
        rows = table[table["face"] == table["face"].mode()[0]]
        for name in EMOTIONS:
            ax.plot(rows["time"], rows[f"p_{name.lower()}"], color=COLOURS[name], label=name)
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8, frameon=False)
    ax.set(xlabel="seconds", ylabel="probability", ylim=(0, 1))
    return ax
