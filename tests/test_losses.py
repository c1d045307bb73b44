import math

import pytest
import torch

from emo.losses import multitask_loss
from emo.model import EmotionOutput


def output(rows):
    logits = torch.zeros(rows, 8, requires_grad=True)
    va = torch.zeros(rows, 2, requires_grad=True)
    return EmotionOutput(logits, va)


def batch(emotion, va):
    return {"emotion": torch.tensor(emotion), "va": torch.tensor(va)}


def test_by_hand():
    loss = multitask_loss(output(2), batch([0, 3], [[1.0, 0.0], [0.0, 0.0]]))
    assert loss.emotion.item() == pytest.approx(math.log(8))
    assert loss.va.item() == pytest.approx(1 / 4)
    assert loss.total.item() == pytest.approx(math.log(8) + 0.5 / 4)


def test_each_term_is_the_mean_over_the_rows_that_have_the_label():
    nan = math.nan
    loss = multitask_loss(output(3), batch([0, -1, -1], [[nan, nan], [1.0, 1.0], [nan, nan]]))
    assert loss.emotion.item() == pytest.approx(math.log(8))
    assert loss.va.item() == pytest.approx(1)


def test_no_labels_give_zero_loss_and_zero_gradients():
    made = output(2)
    loss = multitask_loss(made, batch([-1, -1], [[math.nan] * 2] * 2))
    loss.total.backward()
    assert loss.total.item() == 0
    assert made.logits.grad.abs().sum() == 0
    assert made.va.grad.abs().sum() == 0


def test_missing_values_do_not_poison_the_gradients_of_others():
    made = output(2)
    multitask_loss(made, batch([1, 2], [[0.5, 0.5], [math.nan] * 2])).total.backward()
    assert torch.isfinite(made.va.grad).all()
    assert made.va.grad[1].abs().sum() == 0 < made.va.grad[0].abs().sum()


def test_weights():
    loss = multitask_loss(output(1), batch([0], [[1.0, 1.0]]), alpha=2, beta=3)
    assert loss.total.item() == pytest.approx(2 * math.log(8) + 3)
