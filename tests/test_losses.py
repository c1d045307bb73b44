import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from emo import metrics
from emo.losses import ccc_loss, emotion_loss, multitask_loss
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


def test_votes_are_the_target_where_there_are_any():
    torch.manual_seed(0)
    logits, target = torch.randn(4, 8), torch.tensor([0, 3, 5, -1])
    votes = torch.zeros(4, 8)
    votes[0, :2] = torch.tensor([6.0, 4.0])  # counts or shares
    votes[1, 3] = 1
    votes[2] = math.nan  # nobody voted: the one class
    votes[3, 2] = 1  # no emotion: not counted
    log_p = logits.log_softmax(dim=1)
    by_hand = -(0.6 * log_p[0, 0] + 0.4 * log_p[0, 1] + log_p[1, 3] + log_p[2, 5]) / 3
    assert emotion_loss(logits, target, votes).item() == pytest.approx(by_hand.item(), abs=1e-6)
    output = EmotionOutput(logits, torch.zeros(4, 2))
    labels = {"emotion": target, "va": torch.zeros(4, 2), "votes": votes}
    plain = cross_entropy(logits[:3], target[:3]).item()
    assert multitask_loss(output, labels).emotion.item() == pytest.approx(plain)
    voted = multitask_loss(output, labels, votes=True).emotion.item()
    assert voted == pytest.approx(by_hand.item(), abs=1e-6)


def test_ccc_loss_is_one_minus_the_metric():
    torch.manual_seed(0)
    va, target = torch.rand(50, 2) * 2 - 1, torch.rand(50, 2) * 2 - 1
    target[::3, 0] = math.nan
    expected = []
    for i in (0, 1):
        known = target[:, i].isfinite()
        expected.append(1 - metrics.ccc(target[known, i], va[known, i]))
    assert ccc_loss(va, target).item() == pytest.approx(sum(expected) / 2, abs=1e-5)
    assert ccc_loss(target.nan_to_num(), target.nan_to_num()).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("known", [0, 1])
def test_ccc_loss_of_too_few_values_is_zero_and_does_no_harm(known):
    va, target = torch.zeros(3, 2, requires_grad=True), torch.full((3, 2), math.nan)
    target[:known] = 0.5
    loss = ccc_loss(va, target)
    loss.backward()
    assert loss.item() == 0
    assert va.grad.abs().sum() == 0


def test_ccc_loss_of_constant_targets_is_finite():
    va = torch.zeros(3, 2, requires_grad=True)
    loss = ccc_loss(va, torch.zeros(3, 2))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(va.grad).all()


def test_ccc_loss_does_not_move_what_nobody_annotated():
    torch.manual_seed(0)
    va, target = torch.rand(6, 2, requires_grad=True), torch.rand(6, 2)
    target[2] = math.nan
    ccc_loss(va, target).backward()
    assert (va.grad[2] == 0).all() and (va.grad[[0, 1, 3, 4, 5]] != 0).all()
