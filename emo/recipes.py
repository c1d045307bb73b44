"""What a training depends on: its config, and two recipes. Explained in notebooks/03."""

import dataclasses
import math
from typing import Literal

import torch
from torch.optim import lr_scheduler

AVERAGE = 0.99  # of the weights that are judged and kept: a mean over about 100 steps is calmer
WARM_UP_STEPS = 200  # or an epoch: from random weights, Adam's full first steps lead to a dead end
RAMP = 20  # epochs until augmentation has its full strength: early on, easy images teach more
PLATEAU_FACTOR, PLATEAU_PATIENCE = 0.5, 3  # classic: halve the step after 3 epochs without progress
STOP_PATIENCE = 10  # classic: epochs without progress before training ends early


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Everything a run depends on; saved in its folder and in its checkpoint."""

    data_dir: str = "data/synthetic"  # folder of any layout that `emo check` knows
    output_dir: str = "outputs/run1"  # folder of this run: a new one, or the same run to resume
    backbone: str = "resnet18"  # resnet18, mobilenet_v2 or any torchvision classifier
    pretrained: bool = True  # start from ImageNet weights: better, but they must be fetched once
    weights: str | None = None  # start from this .pth file instead, such as another run's
    image_size: int = 224  # pixels a side; 224 is what ImageNet weights expect, 64 is 12× faster
    epochs: int = 50  # at most; the classic recipe ends after 10 epochs without progress
    batch_size: int = 64  # images a step, over all processes; fits a 4 GB GPU at 224 pixels
    accumulate: int = 1  # parts to compute a batch in: less memory, the same step
    learning_rate: float = 1e-3  # Adam's usual step
    alpha: float = 1.0  # weight of the emotion loss
    beta: float = 0.5  # weight of the valence/arousal loss; 0 leaves that head untrained and unused
    va_loss: Literal["mse", "ccc"] = "mse"  # squared error, or 1 − CCC: what is reported
    # classic: Adam, steps halved on a plateau, early stopping, mirror and ±15° rotation. strong:
    # a planned number of epochs, AdamW along a cosine, random crops, all annotators' votes.
    recipe: Literal["classic", "strong"] = "classic"
    derive_va: bool = False  # fill missing valence/arousal from class means, and say "derived"
    layout: str | None = None  # force a data layout instead of recognising it
    labels: Literal["label", "folder"] = "label"  # which label to trust on the Kaggle set
    class_order: str | None = None  # what the numbers 0–7 mean: affectnet, alphabetical, ferplus
    pack: bool = True  # decode each image once, into a file; else each epoch anew, which is slow
    seed: int = 0  # of the split, the weights, the order and the augmentation


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How the weights are moved. Not for the command line: change it with its measurement."""

    optimizer: type
    weight_decay: float
    planned: bool  # steps shrink along a cosine to the last epoch; else they wait for a plateau
    augment: dict  # what `emo.dataset.augment` does to a batch
    votes: bool  # learn from all annotators' votes, where there are any, not from the largest alone


CROPS = {"zoom": 0.3, "shift": 0.025}
RECIPES = {
    "classic": Recipe(torch.optim.Adam, 0.0, False, {"degrees": 15.0}, votes=False),
    "strong": Recipe(torch.optim.AdamW, 0.05, True, {"degrees": 15.0} | CROPS, votes=True),
}


def make_optimizer(model, config, steps):
    """Return the optimizer and schedules by name: every_step (`steps` an epoch), every_epoch."""
    recipe, warm = RECIPES[config.recipe], min(WARM_UP_STEPS, steps)
    options = {"lr": config.learning_rate, "weight_decay": recipe.weight_decay}
    options["fused"] = next(model.parameters()).device.type in ("cpu", "cuda")  # one pass: faster
    optimizer = recipe.optimizer(model.parameters(), **options)
    if not recipe.planned:
        plateau = lr_scheduler.ReduceLROnPlateau(optimizer, "max", PLATEAU_FACTOR, PLATEAU_PATIENCE)
        every_step = lr_scheduler.LinearLR(optimizer, 0.01, total_iters=warm)
        return optimizer, {"every_step": every_step, "every_epoch": plateau}

    def share(step):
        planned = 0.5 * (1 + math.cos(math.pi * step / (steps * config.epochs)))
        return min((step + 1) / warm, planned)

    return optimizer, {"every_step": lr_scheduler.LambdaLR(optimizer, share)}
