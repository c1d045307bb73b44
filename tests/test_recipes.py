from pathlib import Path

import pytest
import torch

from emo import TrainConfig
from emo.recipes import (
    PLATEAU_PATIENCE,
    RAMP,
    RECIPES,
    STOP_PATIENCE,
    WARM_UP_STEPS,
    make_optimizer,
)

STEPS = 50  # an epoch


def rates(recipe, epochs, scores=None):
    """Return the learning rate of each step, the first one first."""
    config = TrainConfig(recipe=recipe, epochs=epochs)
    optimizer, schedules = make_optimizer(torch.nn.Linear(2, 2), config, STEPS)
    found = []
    for epoch in range(epochs):
        for _ in range(STEPS):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedules["every_step"].step()
        if "every_epoch" in schedules:
            schedules["every_epoch"].step(scores[epoch])
    return found


def test_classic_warms_up_and_halves_after_four_flat_epochs():
    found = rates("classic", 8, scores=[1] * 8)
    assert found[0] == pytest.approx(1e-5)
    assert found[STEPS] == pytest.approx(1e-3)  # no longer than an epoch
    assert STEPS < WARM_UP_STEPS
    assert found[5 * STEPS - 1] == pytest.approx(1e-3)
    assert found[5 * STEPS] == pytest.approx(5e-4)


def test_strong_rises_and_follows_the_cosine_to_zero():
    found = rates("strong", 8)
    assert found[0] == pytest.approx(1e-3 / STEPS)
    assert max(found) == pytest.approx(1e-3, rel=0.05)
    assert found[4 * STEPS] == pytest.approx(5e-4)
    assert found[-1] < 1e-6
    assert sorted(found[STEPS:], reverse=True) == found[STEPS:]


def test_the_classic_recipe_is_the_default_and_the_known_one():
    config = TrainConfig()
    assert (config.recipe, config.backbone, config.pretrained) == ("classic", "resnet18", True)
    assert (config.epochs, config.batch_size, config.learning_rate) == (50, 64, 1e-3)
    assert (config.alpha, config.beta, config.va_loss) == (1.0, 0.5, "mse")
    classic = RECIPES["classic"]
    assert classic.optimizer is torch.optim.Adam and classic.weight_decay == 0
    assert classic.augment == {"degrees": 15.0} and not classic.votes


def test_the_table_of_recipes_says_what_the_code_does():
    text = Path(__file__).parent.parent.joinpath("docs", "RESULTS.md").read_text("utf-8")
    config, degrees = TrainConfig(), RECIPES["classic"].augment["degrees"]
    for part in (
        f"Adam, step {config.learning_rate}, warmed up for {WARM_UP_STEPS} steps",
        f"{config.batch_size} faces, over all processes",
        f"at most {config.epochs} epochs; steps halved after {PLATEAU_PATIENCE + 1}",
        f"stopped after {STOP_PATIENCE} epochs without progress",
        f"turned by up to ±{degrees:.0f}°",
        f"{config.alpha} × cross-entropy + {config.beta} × squared error",
        f"grow over\n{RAMP} epochs",
    ):
        assert part in text, part
