"""Numbers for both tasks, each computed once over all predictions. By hand in notebooks/04."""

import numpy as np
from scipy import optimize, special

from emo import EmoError, emotions

CLASSES = len(emotions.EMOTIONS)


def confusion(target, predicted, weights=None):
    """Count (8, 8): row = target class, column = predicted class; `weights` (N,) count more."""
    cells = np.asarray(target, int) * CLASSES + np.asarray(predicted, int)
    return np.bincount(cells, weights, CLASSES**2).reshape(CLASSES, CLASSES)


def accuracy(matrix):
    """Share of correct predictions of a confusion matrix, in [0, 1]."""
    return _divide(np.trace(matrix), matrix.sum())


def per_class(matrix):
    """Return arrays precision, recall, f1 (0 where undefined) and support of each class."""
    hits = np.diag(matrix).astype(float)
    support, predicted = matrix.sum(axis=1), matrix.sum(axis=0)
    shares = {"precision": _divide(hits, predicted), "recall": _divide(hits, support)}
    return shares | {"f1": _divide(2 * hits, support + predicted), "support": support}


def macro_f1(matrix):
    """Mean F1 over all classes; a class that is absent and never predicted counts as 0."""
    return float(per_class(matrix)["f1"].mean())


def ccc(target, predicted, weights=None):
    """Concordance correlation coefficient in [−1, 1] (Lin 1989): 1 only where they are equal.

    Population variances, as in AffectNet's paper; equal constants give 0, all-zero weights NaN.
    """
    target, predicted = _pair(target, predicted)
    if weights is not None and not np.any(weights):
        return np.nan
    (a, covariance), (_, b) = np.cov(target, predicted, bias=True, aweights=weights)
    bias = np.average(target - predicted, weights=weights)
    return float(_divide(2 * covariance, a + b + bias**2))


def pearson(target, predicted):
    """Pearson correlation in [−1, 1]; 0 where one side is constant."""
    (a, covariance), (_, b) = np.cov(*_pair(target, predicted), bias=True)
    return float(_divide(covariance, np.sqrt(a * b)))


def regression(target, predicted):
    """Return mse, mae, rmse, ccc, pearson and sign agreement of one dimension."""
    target, predicted = _pair(target, predicted)
    error = predicted - target
    mse = float(np.mean(error**2))
    result = {"mse": mse, "mae": float(np.mean(np.abs(error))), "rmse": mse**0.5}
    result |= {"ccc": ccc(target, predicted), "pearson": pearson(target, predicted)}
    return result | {"sign_agreement": float(np.mean(np.sign(target) == np.sign(predicted)))}


def calibration_error(confidence, hit, weights=None, bins=15):
    """Expected calibration error (Guo et al. 2017): |confidence − accuracy| over equal bins."""
    count, confidence, correct = reliability(confidence, hit, weights, bins)
    return float(_divide(np.sum(count * np.abs(confidence - correct)), count.sum()))


def reliability(confidence, hit, weights=None, bins=15):
    """Return count, mean `confidence` (N,) and share of `hit` (N,) of each bin; 0 where empty."""
    confidence, weights = np.asarray(confidence, float), 1.0 if weights is None else weights
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    sums = (np.broadcast_to(weights * part, len(index)) for part in (1, confidence, hit))
    count, confidence, correct = (np.bincount(index, part, bins) for part in sums)
    return count, _divide(confidence, count), _divide(correct, count)


def softmax(logits, temperature=1.0):
    """Turn logits (N, C) into probabilities; a temperature above 1 makes them less sure."""
    return special.softmax(np.asarray(logits, np.float64) / temperature, axis=1)


def fit_temperature(logits, target):
    """Return the temperature in [0.25, 8] with the least cross-entropy on logits (N, C)."""
    target = np.asarray(target, int)
    if not len(target):
        return 1.0

    def loss(log_t):  # has one minimum
        chosen = softmax(logits, np.exp(log_t))[np.arange(len(target)), target]
        return -np.mean(np.log(np.maximum(chosen, 1e-12)))

    found = optimize.minimize_scalar(loss, bounds=(np.log(0.25), np.log(8)), method="bounded")
    return float(np.exp(found.x))


def bootstrap(statistic, rows, groups=None, rounds=1000, seed=0):
    """Return the 95 % percentile interval of `statistic(weights)` over resampled rows.

    `rows` is their number, `weights` (rows,) how often each one was drawn. With `groups` (rows,),
    whole groups are drawn: faces of one person are not independent. K statistics, K intervals.
    """
    generator = np.random.default_rng(seed)
    names, group = np.unique(range(rows) if groups is None else groups, return_inverse=True)
    draws = (generator.integers(0, len(names), len(names)) for _ in range(rounds))
    values = [statistic(np.bincount(drawn, minlength=len(names))[group]) for drawn in draws]
    return np.nanquantile(values, [0.025, 0.975], axis=0).T.tolist()


def _pair(target, predicted):
    target, predicted = np.asarray(target, float).ravel(), np.asarray(predicted, float).ravel()
    if target.shape != predicted.shape or not target.size:
        got = f"{target.size} targets and {predicted.size} predictions"
        raise EmoError(f"got {got}; expected the same number of each, at least one")
    if not (np.isfinite(target).all() and np.isfinite(predicted).all()):
        raise EmoError("targets or predictions hold NaN; drop the rows without annotation first")
    return target, predicted


def _divide(a, b):
    a, b = np.asarray(a, float), np.asarray(b, float)
    return np.divide(a, b, out=np.zeros(np.broadcast(a, b).shape), where=b != 0)[()]
