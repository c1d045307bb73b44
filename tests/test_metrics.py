import numpy as np
import pytest
import torch
from scipy.stats import pearsonr
from sklearn.metrics import confusion_matrix, f1_score, log_loss, precision_recall_fscore_support
from torchmetrics.functional import concordance_corrcoef
from torchmetrics.functional.classification import multiclass_calibration_error

from emo import EmoError, metrics


@pytest.fixture(params=range(5))
def labels(request):
    generator = np.random.default_rng(request.param)
    classes = 8 if request.param else 3  # the first case lacks five classes
    target = generator.integers(0, classes, 300)
    guess = np.where(generator.random(300) < 0.6, target, generator.integers(0, classes, 300))
    return target, guess


def test_classification_agrees_with_scikit_learn(labels):
    target, guess = labels
    matrix = metrics.confusion(target, guess)
    assert (matrix == confusion_matrix(target, guess, labels=range(8))).all()
    assert metrics.accuracy(matrix) == pytest.approx((target == guess).mean())
    options = {"labels": range(8), "average": None, "zero_division": 0}
    expected = precision_recall_fscore_support(target, guess, **options)
    for name, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        assert metrics.per_class(matrix)[name] == pytest.approx(values)
    options["average"] = "macro"
    assert metrics.macro_f1(matrix) == pytest.approx(f1_score(target, guess, **options))


def test_ccc_by_hand():
    # means 2 and 3, population variances 2/3, covariance 2/3: 2·(2/3) / (2/3 + 2/3 + 1)
    assert metrics.ccc([1, 2, 3], [2, 3, 4]) == pytest.approx(4 / 7)
    assert metrics.ccc([1, 2, 3], [1, 2, 3]) == pytest.approx(1)
    assert metrics.ccc([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)


def test_regression_agrees_with_other_libraries():
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(2, 500))
    b = 0.5 * a + 0.3 * b + 0.1
    scores = metrics.regression(a, b)
    unbiased = concordance_corrcoef(torch.tensor(b), torch.tensor(a)).item()
    assert scores["ccc"] == pytest.approx(unbiased, abs=2e-3)  # they divide by n − 1
    assert scores["pearson"] == pytest.approx(pearsonr(a, b)[0])
    assert scores["rmse"] == pytest.approx(np.sqrt(scores["mse"]))
    assert scores["mae"] == pytest.approx(np.abs(a - b).mean())


def test_degenerate_input_is_defined():
    assert metrics.ccc([1, 1], [1, 1]) == 0
    assert metrics.ccc([1, 1], [0, 2]) == 0
    assert metrics.pearson([1, 1], [0, 2]) == 0
    assert metrics.macro_f1(np.zeros((8, 8), int)) == 0
    with pytest.raises(EmoError, match="NaN"):
        metrics.ccc([1, np.nan], [1, 1])
    with pytest.raises(EmoError, match="same number"):
        metrics.ccc([], [])


def test_calibration_error_agrees_with_torchmetrics():
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet(np.ones(8), 400)
    target = generator.integers(0, 8, 400)
    expected = multiclass_calibration_error(
        torch.tensor(probabilities), torch.tensor(target), num_classes=8, n_bins=15
    ).item()
    confidence, hit = probabilities.max(axis=1), probabilities.argmax(axis=1) == target
    assert metrics.calibration_error(confidence, hit) == pytest.approx(expected, abs=1e-6)


def test_temperature_finds_the_scale_of_overconfident_logits():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(4000, 8))
    target = np.array([generator.choice(8, p=p) for p in metrics.softmax(logits)])
    temperature = metrics.fit_temperature(3 * logits, target)
    assert temperature == pytest.approx(3, rel=0.1)
    before, after = metrics.softmax(3 * logits), metrics.softmax(3 * logits, temperature)
    assert log_loss(target, after) < log_loss(target, before)


def test_bootstrap_covers_the_mean_and_widens_with_groups():
    generator = np.random.default_rng(0)
    means = generator.normal(size=20)
    values = np.repeat(means, 20)
    low, high = metrics.bootstrap(lambda w: np.average(values, weights=w), 400, rounds=300)
    assert low < values.mean() < high
    groups = np.repeat(np.arange(20), 20)
    wide = metrics.bootstrap(lambda w: np.average(values, weights=w), 400, groups, rounds=300)
    assert wide[1] - wide[0] > 2 * (high - low)


def test_weights_are_repetitions(labels):
    target, guess = labels
    generator = np.random.default_rng(1)
    weights, confidence = generator.integers(0, 4, len(target)), generator.random(len(target))
    again, a, b = np.repeat(np.arange(len(target)), weights), *generator.normal(size=(2, 300))
    matrix = metrics.confusion(target[again], guess[again])
    assert (metrics.confusion(target, guess, weights) == matrix).all()
    assert metrics.ccc(a, b, weights) == pytest.approx(metrics.ccc(a[again], b[again]))
    error = metrics.calibration_error(confidence, target == guess, weights)
    repeated = metrics.calibration_error(confidence[again], (target == guess)[again])
    assert error == pytest.approx(repeated)
    assert np.isnan(metrics.ccc(a, b, np.zeros(300)))  # no row was drawn
