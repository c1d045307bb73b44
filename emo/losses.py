"""Masked multi-task loss. Built by hand in notebooks/03."""

from typing import NamedTuple

import torch
from torch.nn.functional import cross_entropy


class MultiTaskLoss(NamedTuple):
    """Scalars: `total` = alpha × `emotion` + beta × `va`; the parts are unweighted."""

    total: torch.Tensor
    emotion: torch.Tensor
    va: torch.Tensor


def multitask_loss(output, batch, alpha=1.0, beta=0.5):
    """Return cross-entropy and mean squared error, each over the rows that have the label.

    `output` is an `EmotionOutput`; `batch["emotion"]` (B,) holds −1 and `batch["va"]` (B, 2) NaN
    where nobody annotated. A task without any label gives 0, where a mean would give NaN.
    """
    emotion = emotion_loss(output.logits, batch["emotion"])
    va = va_loss(output.va, batch["va"])
    return MultiTaskLoss(alpha * emotion + beta * va, emotion, va)


def emotion_loss(logits, target):
    """Mean cross-entropy of logits (B, 8) over rows whose target (B,) is not −1."""
    known = target >= 0
    total = cross_entropy(logits.float(), target.long(), ignore_index=-1, reduction="sum")
    return total / known.sum().clamp(min=1)


def va_loss(va, target):
    """Mean squared error of va (B, 2) over the values of target (B, 2) that are not NaN."""
    known = torch.isfinite(target)
    # NaN is replaced before the subtraction: 0 × NaN would still be NaN in the gradient.
    error = va.float() - torch.where(known, target, va.detach()).float()
    return (error.square() * known).sum() / known.sum().clamp(min=1)
