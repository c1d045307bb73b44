"""Measure training on FER+: what the strong recipe reaches, and what its parts are worth.

`python docs/measure_training.py --real data/ferplus` takes most of an hour for each seed of the
full run and half an hour for each seed of the ablation, on two idle cores. What was interrupted
goes on where it stopped.
"""

import argparse
import dataclasses
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from figures import record, sample
from torch.nn.functional import one_hot
from torchvision.transforms import GaussianBlur, RandomErasing

from emo import TrainConfig, evaluate, fit, train
from emo.dataset import augment
from emo.evaluation import compute_metrics
from emo.losses import multitask_loss
from emo.recipes import RECIPES

EPOCHS = 28  # of the full run
SMALL = {"image_size": 48, "epochs": 10}  # of the ablation, on a quarter of the training faces
STRONG = RECIPES["strong"]
PRIOR = np.array([8478, 6198, 2907, 2929, 539, 157, 2028, 138]) / 23374  # of FER+'s train part


def _some(change, share):
    """Return `augment` followed by `change` for that share of the images, each by itself."""

    def changed(images, **options):
        images = augment(images, **options)
        return torch.stack([change(i) if torch.rand(1) < share else i for i in images])

    return {"augment": changed}


def _light(image):
    contrast, brightness = 0.6 * torch.rand(2) + torch.tensor([0.7, -0.3])
    return contrast * image + brightness


def _smoothed(output, batch, *args, **options):
    shares = 0.9 * one_hot(batch["emotion"].clamp(min=0), 8) + 0.1 / 8
    return multitask_loss(output, batch | {"votes": shares}, *args, **options | {"votes": True})


def _balanced(output, batch, *args, **options):
    logits = output.logits + 0.5 * torch.tensor(PRIOR).log().float()  # Menon et al. 2021
    return multitask_loss(output._replace(logits=logits), batch, *args, **options)


# Name: what changes in the recipe, and what replaces a function of emo.train.
VARIANTS = {
    "classic recipe": ("classic", {}, {}),
    "strong recipe": ("strong", {}, {}),
    "strong without votes": ("strong", {"votes": False}, {}),
    "strong without crops and shifts": ("strong", {"augment": {"degrees": 15.0}}, {}),
    "strong, label smoothing for votes": ("strong", {}, {"multitask_loss": _smoothed}),
    "strong and logit adjustment": ("strong", {}, {"multitask_loss": _balanced}),
    "strong and erasing": ("strong", {}, _some(RandomErasing(1.0), 0.25)),
    "strong and blur": ("strong", {}, _some(GaussianBlur(3), 0.25)),
    "strong and light": ("strong", {}, _some(_light, 1.0)),
}


def majority(data_dir):
    """Return the test images whose label most annotators chose, as published figures count.

    Barsoum et al. (2016): single votes are dropped; one class must hold more than half of the rest.
    """
    votes = pd.read_csv(Path(data_dir, "FER2013Valid", "label.csv"), header=None)
    counts = votes.iloc[:, 2:12].to_numpy(float)
    counts[counts <= 1] = 0
    clear = (counts.max(axis=1) > counts.sum(axis=1) / 2) & (counts.argmax(axis=1) < 8)
    return "FER2013Valid/" + votes[0][clear]


def reached(folder, data_dir, seeds):
    """What the strong recipe reaches on the whole training part."""
    rows = []
    for seed in range(seeds):
        config = TrainConfig(data_dir, str(folder / f"strong_{seed}"), pretrained=False, seed=seed)
        config = dataclasses.replace(config, image_size=64, epochs=EPOCHS, recipe="strong")
        minutes = fit(config, resume=True)["seconds"].sum() / 60
        numbers = evaluate(config.output_dir)
        rows.append((numbers["emotion"]["accuracy"], numbers["emotion"]["macro_f1"], minutes))
        for name, value in zip(("accuracy", "macro F1", "minutes"), rows[-1], strict=True):
            yield f"strong recipe, seed {seed}: {name}", value
        for name in ("accuracy", "macro_f1"):
            for end, value in zip(("low", "high"), numbers["intervals"][name], strict=True):
                yield f"strong recipe, seed {seed}: {name}, {end} end of its interval", value
        table = pd.read_csv(Path(config.output_dir) / "predictions.csv")
        clear = compute_metrics(table[table["image_path"].isin(majority(data_dir))])
        yield f"strong recipe, seed {seed}, clear majority: images", clear["n"]
        for name in ("accuracy", "macro_f1"):
            yield f"strong recipe, seed {seed}, clear majority: {name}", clear["emotion"][name]
            for end, value in zip(("low", "high"), clear["intervals"][name], strict=True):
                title = f"{name}, {end} end of its interval"
                yield f"strong recipe, seed {seed}, clear majority: {title}", value
    if seeds > 1:
        for name, values in zip(("accuracy", "macro F1"), np.array(rows).T, strict=False):
            yield f"strong recipe, {seeds} seeds: {name}, mean", values.mean()
            yield f"strong recipe, {seeds} seeds: {name}, standard deviation", values.std(ddof=1)


def ablation(folder, data_dir, seeds, jobs):
    """What the parts are worth: scores on the validation part, because they choose the recipe."""
    quarter = str(sample(folder / "quarter", data_dir, train=0.25))
    asked = [(name, seed) for seed in range(seeds) for name in VARIANTS]

    options = {"max_tasks_per_child": 1, "mp_context": multiprocessing.get_context("spawn")}
    with ProcessPoolExecutor(jobs, **options) as pool:  # each variant changes its own process
        waiting = [pool.submit(_train_variant, folder, quarter, jobs, *which) for which in asked]
        runs = [future.result() for future in waiting]
    table = pd.DataFrame(runs, columns=["name", "accuracy", "macro F1"]).groupby("name")
    for name in VARIANTS:
        for score in ("accuracy", "macro F1"):
            values = table[score].get_group(name)
            yield f"a quarter, {name}, {seeds} seeds: {score} (val), mean", values.mean()


def _train_variant(folder, data_dir, jobs, name, seed):
    torch.set_num_threads(max(1, torch.get_num_threads() // jobs))
    recipe, changes, functions = VARIANTS[name]
    RECIPES[recipe] = dataclasses.replace(RECIPES[recipe], **changes)
    for attribute, function in functions.items():
        setattr(train, attribute, function)
    place = str(folder / f"{name.replace(' ', '_')}_{seed}")
    config = TrainConfig(data_dir, place, pretrained=False, recipe=recipe, seed=seed)
    history = fit(dataclasses.replace(config, **SMALL), resume=True)
    best = history.loc[history["combined_score"].idxmax()]
    return name, best["val_accuracy"], best["val_macro_f1"]


def main():
    """Measure, and write each figure as it comes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("build/measure_training"))
    parser.add_argument("--real", required=True, help="folder of FER+, as `emo check` reads it")
    parser.add_argument("--seeds", type=int, default=1, help="of the full run; 0 leaves it out")
    parser.add_argument("--ablation-seeds", type=int, default=1, help="0 leaves it out")
    parser.add_argument("--jobs", type=int, default=2, help="runs of the ablation at a time")
    args = parser.parse_args()
    counts = f"--seeds {args.seeds} --ablation-seeds {args.ablation_seeds}"
    command = f"python docs/measure_training.py --real data/ferplus {counts}"
    steps = []
    if args.seeds:
        steps.append(reached(args.folder, args.real, args.seeds))
    if args.ablation_seeds:
        steps.append(ablation(args.folder, args.real, args.ablation_seeds, args.jobs))
    record(steps, args.folder, "FER+", command, "0 and up")


if __name__ == "__main__":
    main()
