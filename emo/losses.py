"""Masked multi-task loss. Built by hand in notebooks/03."""

from typing import NamedTuple

import torch
from torch.nn.functional import cross_entropy, one_hot


class MultiTaskLoss(NamedTuple):
    """Scalars: `total` = alpha × `emotion` + beta × `va`; the parts are unweighted."""

    total: torch.Tensor
    emotion: torch.Tensor
    va: torch.Tensor


def multitask_loss(output, batch, alpha=1.0, beta=0.5, *, va_loss="mse", votes=False):
    """Return cross-entropy and valence/arousal loss, each over the rows that have the label.

    `output` is an `EmotionOutput`; `batch["emotion"]` (B,) holds −1 and `batch["va"]` (B, 2) NaN
    where nobody annotated. A task without any label gives 0, where a mean would give NaN.
    `va_loss`: "mse" or "ccc". `votes`: the target is the shares in `batch["votes"]` (B, 8), if any.
    """
    emotion = emotion_loss(output.logits, batch["emotion"], batch.get("votes") if votes else None)
    va = {"mse": squared_error, "ccc": ccc_loss}[va_loss](output.va, batch["va"])
    return MultiTaskLoss(alpha * emotion + beta * va, emotion, va)


def emotion_loss(logits, target, votes=None):
    """Mean cross-entropy of logits (B, 8) over rows whose target (B,) is not −1."""
    known = target >= 0
    shares = one_hot(target.clamp(min=0), logits.shape[1]).float()
    if votes is not None:
        counts = votes.nan_to_num()
        total = counts.sum(dim=1, keepdim=True)
        shares = torch.where(total > 0, counts / total.clamp(min=1e-6), shares)
    rows = cross_entropy(logits.float(), shares, reduction="none")
    return (rows * known).sum() / known.sum().clamp(min=1)


def squared_error(va, target):
    """Mean squared error of va (B, 2) over the values of target (B, 2) that are not NaN."""
    va, target, known = _masked(va, target)
    return (va - target).square().sum() / known.sum().clamp(min=1)


def ccc_loss(va, target):
    """1 − CCC of each dimension over its values that are not NaN, averaged over dimensions."""
    va, target, known = _masked(va, target)
    count, error = known.sum(dim=0).clamp(min=1), va - target
    both = torch.stack([va, target])  # (2, B, 2)
    centred = (both - both.sum(dim=1, keepdim=True) / count) * known
    spread = centred.square().sum(dim=(0, 1)) / count
    # CCC = 2 cov / (var + var + (difference of means)²) = 1 − mean squared error / denominator
    distance = spread + (error.sum(dim=0) / count).square()
    share = error.square().sum(dim=0) / count / distance.clamp(min=1e-6)
    usable = known.sum(dim=0) > 1  # few values estimate the CCC poorly, and one not at all: 0
    return (share * usable).sum() / usable.sum().clamp(min=1)


def _masked(va, target):
    """Return both (B, 2) with 0 where the target is NaN, and where it is not."""
    known = torch.isfinite(target)  # NaN is replaced: 0 × NaN would be NaN in the gradient
    return va.float() * known, target.float().where(known, 0.0), known
