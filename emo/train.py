"""Train both heads: TrainConfig, fit, run folder, resume. The loop is built in notebooks/03."""

import copy
import dataclasses
import math
import time
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from torch.optim.swa_utils import AveragedModel
from tqdm.auto import tqdm

from emo import metrics
from emo.dataset import FaceDataset, augment, make_loader, normalise, pack_images, split_manifest
from emo.emotions import EMOTIONS
from emo.errors import EmoError
from emo.faces import DEFAULT_MARGIN, MediaPipeFaceDetector, measure_crop_margin
from emo.files import atomic_path, read_json, write_json
from emo.losses import multitask_loss
from emo.model import EmotionOutput, create_model, load_model, load_torch, save_weights
from emo.recognize import EmotionPreprocessor
from emo.sources import annotated_rows, fill_derived_va, read_dataset, va_state

# The classic recipe, beside what TrainConfig holds.
DEGREES = 15.0  # faces in photos are seldom tilted further
PLATEAU_FACTOR, PLATEAU_PATIENCE = 0.5, 3  # halve the step after 3 epochs without progress
WARM_UP_STEPS = 200  # from random weights, full first steps of Adam lead into a dead end
STOP_PATIENCE = 10  # epochs without progress before training ends early
AVERAGE = 0.99  # of the weights that are judged and kept: a mean over about 100 steps is calmer
# The strong recipe.
WEIGHT_DECAY = 0.05
WARM_UP = 0.1  # of all steps; the step size then shrinks along half a cosine


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
    batch_size: int = 64  # fits a 4 GB GPU at 224 pixels
    learning_rate: float = 1e-3  # Adam's usual step
    alpha: float = 1.0  # weight of the emotion loss
    beta: float = 0.5  # weight of the valence/arousal loss; 0 leaves that head untrained and unused
    # classic: Adam, steps halved on a plateau, early stopping. strong: AdamW, steps shrinking
    # along a cosine, for few epochs. Both: warm-up, averaged weights, flip and ±15° rotation.
    recipe: Literal["classic", "strong"] = "classic"
    derive_va: bool = False  # fill missing valence/arousal from class means, and say "derived"
    layout: str | None = None  # force a data layout instead of recognising it
    labels: Literal["label", "folder"] = "label"  # which label to trust on the Kaggle set
    class_order: str | None = None  # what the numbers 0–7 mean: affectnet, alphabetical, ferplus
    pack: bool = True  # decode each image once, into a file; else each epoch anew, which is slow
    seed: int = 0  # of the split, the weights, the order and the augmentation


def fit(config, *, resume=False, on_epoch=None):
    """Train as `config` says and write its run folder; return the history, one row an epoch.

    `resume` goes on from the last finished epoch of the same run (or starts it). `on_epoch` is
    called with the history so far. Ctrl-C ends training and keeps the best model so far.
    """
    _check(config)
    folder, state = _open_run(config, resume)
    manifest = _load_manifest(config, folder)
    dataset, colour = _pack(config, manifest)
    loading = DataLoaderConfiguration(use_seedable_sampler=True)
    accelerator = Accelerator(mixed_precision=_precision(), dataloader_config=loading)
    run = _Run(config, dataset, colour, accelerator)
    if state:
        run.load_state_dict(state)
    try:
        while not run.finished:
            run.run_epoch()
            if accelerator.is_main_process:
                _save_epoch(run, folder, manifest)
                print(_sentence(run.history[-1], config), flush=True)
                if on_epoch is not None:
                    on_epoch(pd.DataFrame(run.history))
    except KeyboardInterrupt:
        if not run.history:
            raise
        print(f"interrupted; keeping the best model, of epoch {run.best['epoch']}")
    if accelerator.is_main_process:
        _save_model(run, folder)
    return pd.DataFrame(run.history)


def load_data(config, folder=None):
    """Read, split and pack a config's data (or its run's manifest): (FaceDataset, colour)."""
    return _pack(config, _load_manifest(config, folder))


def _load_manifest(config, folder=None):
    if folder and (Path(folder) / "manifest.csv").is_file():
        return read_manifest(Path(folder) / "manifest.csv")
    options = {"labels": config.labels, "class_order": config.class_order}
    manifest = read_dataset(config.data_dir, config.layout, **options)
    return split_manifest(fill_derived_va(manifest) if config.derive_va else manifest, config.seed)


def _pack(config, manifest):
    images, kept, colour = pack_images(manifest, config.data_dir, config.image_size, config.pack)
    if missing := len(manifest) - len(kept):
        print(f"{missing:,} unreadable images are skipped: emo check --data-dir {config.data_dir}")
    return FaceDataset(images, kept), colour


def read_manifest(path):
    """Read the manifest of a run folder."""
    return pd.read_csv(path, dtype={"split": str, "group": str, "image_path": str})


def read_config(run):
    """Return the `TrainConfig` of a run folder."""
    path = Path(run) / "config.json"
    if not path.is_file():
        raise EmoError(f"{run} is no run folder (no config.json); train one: python -m emo train")
    known = TrainConfig.__dataclass_fields__
    return TrainConfig(**{name: value for name, value in read_json(path).items() if name in known})


def combined_score(macro_f1, mean_ccc):
    """The score that selects a model: macro F1 + mean CCC, or macro F1 alone without it."""
    return macro_f1 if mean_ccc is None or math.isnan(mean_ccc) else macro_f1 + mean_ccc


class _Run:
    """The moving parts of one training: model, optimizer, schedule, best weights, history."""

    def __init__(self, config, dataset, colour, accelerator):
        torch.manual_seed(config.seed)
        self.config, self.colour, self.accelerator = config, colour, accelerator
        self.train_part, self.val_part = dataset.part("train"), dataset.part("val")
        size, images = config.batch_size, len(self.train_part)
        if images < size:
            fault = f"batch size {size} is larger than the {images} training images"
            raise EmoError(f"{fault}; use --batch-size {max(2, images // 4)}")
        self.va = va_state(self.train_part.manifest) if config.beta else "none"
        if config.weights:
            self.network = load_model(config.weights)
            self.network.config = {n: self.network.config[n] for n in ("backbone", "classes")}
        else:
            self.network = create_model(config.backbone, pretrained=config.pretrained)
        self.network.to(memory_format=torch.channels_last)
        self.average = AveragedModel(self.network, multi_avg_fn=_average, use_buffers=True)
        self.average.to(accelerator.device)
        optimizer, schedules = _optimizer(self.network, config, config.epochs * (images // size))
        train = make_loader(self.train_part, size, shuffle=True, seed=config.seed, drop_last=True)
        val = make_loader(self.val_part, 2 * size)
        # `model` is `network`, wrapped where several processes train it.
        prepared = accelerator.prepare(self.network, optimizer, train, val)
        self.model, self.optimizer, self.train_loader, self.val_loader = prepared
        self.parts = {"model": self.network, "average": self.average, "optimizer": self.optimizer}
        self.parts |= schedules
        self.epoch, self.history, self.best = 0, [], {"score": -math.inf, "epoch": 0, "model": None}

    def run_epoch(self):
        """Train and validate; step the schedule, keep the best weights, add a history row."""
        start = time.perf_counter()
        loss, speed = self.train_epoch()
        self.epoch += 1
        row = {"epoch": self.epoch, "train_loss": loss} | self.validate()
        row |= {"learning_rate": self.optimizer.param_groups[0]["lr"], "images_per_second": speed}
        score = row["combined_score"]
        if "every_epoch" in self.parts:
            self.parts["every_epoch"].step(score)
        if score > self.best["score"]:
            weights = copy.deepcopy(self.average.module.state_dict())
            self.best = {"score": score, "epoch": self.epoch, "model": weights}
        self.history.append(row | {"seconds": time.perf_counter() - start})

    def train_epoch(self):
        """Go once through the training part; return the mean loss and images per second."""
        torch.manual_seed(self.config.seed * 100_003 + self.epoch)  # resumes without a stored state
        self.train_loader.set_epoch(self.epoch)
        self.model.train()
        start, losses = time.perf_counter(), []
        step = self.config.batch_size * self.accelerator.num_processes  # images
        title = f"Epoch {self.epoch + 1}/{self.config.epochs}"
        bar = tqdm(self.train_loader, title, unit=" images", unit_scale=step, leave=False)
        for batch in bar:
            image = augment(normalise(batch["image"], colour=self.colour), DEGREES)
            output = self.model(image.contiguous(memory_format=torch.channels_last))
            loss = multitask_loss(output, batch, self.config.alpha, self.config.beta)
            self.accelerator.backward(loss.total)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.parts["every_step"].step()
            self.average.update_parameters(self.network)
            losses.append(loss.total.detach())
            if len(losses) % 10 == 0:
                bar.set_postfix(loss=f"{losses[-1]:.3f}")
        mean_loss = torch.stack(losses).mean().item()
        if not math.isfinite(mean_loss):
            cure = f"use a smaller --learning-rate than {self.config.learning_rate}"
            raise EmoError(f"the loss became {mean_loss}; {cure}")
        return mean_loss, len(losses) * step / (time.perf_counter() - start)

    def validate(self):
        """Return loss and metrics over all predictions of the val part at once."""
        output, batch = self.predict_val()
        loss = multitask_loss(output, batch, self.config.alpha, self.config.beta).total.item()
        known = batch["emotion"] >= 0
        matrix = metrics.confusion(batch["emotion"][known], output.logits[known].argmax(dim=1))
        f1, cccs = metrics.macro_f1(matrix), [math.nan, math.nan]
        rows = torch.from_numpy(annotated_rows(self.val_part.manifest))
        if self.va == "annotated" and rows.any():
            cccs = [metrics.ccc(batch["va"][rows, i], output.va[rows, i]) for i in (0, 1)]
        return {
            "val_loss": loss,
            "val_accuracy": float(metrics.accuracy(matrix)),
            "val_macro_f1": f1,
            "val_ccc_valence": cccs[0],
            "val_ccc_arousal": cccs[1],
            "combined_score": combined_score(f1, sum(cccs) / 2),
        }

    @torch.no_grad()
    def predict_val(self):
        """Return (output, labels) of the whole val part, on the CPU, in its order."""
        self.average.eval()
        parts = []
        for batch in self.val_loader:
            image = normalise(batch["image"], colour=self.colour)
            with self.accelerator.autocast():
                output = self.average(image.contiguous(memory_format=torch.channels_last))
            part = (output.logits, output.va, batch["emotion"], batch["va"])
            parts.append([t.float().cpu() for t in self.accelerator.gather_for_metrics(part)])
        logits, va, emotion, target = (torch.cat(column) for column in zip(*parts, strict=True))
        return EmotionOutput(logits, va), {"emotion": emotion.long(), "va": target}

    @property
    def finished(self):
        """Whether the last epoch is done or early stopping ends the run."""
        stalled = self.epoch - self.best["epoch"] >= STOP_PATIENCE
        return self.epoch >= self.config.epochs or (stalled and self.config.recipe == "classic")

    def state_dict(self):
        """Return everything that a resumed run needs, as plain values and tensors."""
        plain = {"epoch": self.epoch, "history": self.history, "best": self.best}
        return {name: part.state_dict() for name, part in self.parts.items()} | plain

    def load_state_dict(self, state):
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        self.epoch, self.history, self.best = state["epoch"], state["history"], state["best"]


def _average(averages, weights, steps):
    """Move the averages towards the weights, faster at first; counters are copied."""
    share = max(1 - AVERAGE, 1 / (1 + float(steps)))
    for average, weight in zip(averages, weights, strict=True):
        if average.is_floating_point():
            average.lerp_(weight, share)
        else:
            average.copy_(weight)


def _optimizer(model, config, steps):
    """Return the optimizer and the recipe's schedules: of every step and of every epoch."""
    rate, schedules = config.learning_rate, torch.optim.lr_scheduler
    if config.recipe == "classic":
        optimizer = torch.optim.Adam(model.parameters(), lr=rate)
        warm_up = schedules.LinearLR(optimizer, 0.01, total_iters=WARM_UP_STEPS)
        plateau = {"factor": PLATEAU_FACTOR, "patience": PLATEAU_PATIENCE}
        plateau = schedules.ReduceLROnPlateau(optimizer, mode="max", **plateau)
        return optimizer, {"every_step": warm_up, "every_epoch": plateau}

    def share(step):
        return min((step + 1) / (WARM_UP * steps), 0.5 * (1 + math.cos(math.pi * step / steps)))

    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=WEIGHT_DECAY)
    return optimizer, {"every_step": schedules.LambdaLR(optimizer, share)}


def _check(config):
    least = {"epochs": 1, "batch_size": 2, "learning_rate": 1e-9, "alpha": 0, "beta": 0}
    for name, lowest in least.items():
        if not getattr(config, name) >= lowest:  # NaN is refused, too
            raise EmoError(f"{name} is {getattr(config, name)}; expected {lowest} or more")
    other = load_model(config.weights).config["backbone"] if config.weights else config.backbone
    if other != config.backbone:
        raise EmoError(f"{config.weights} holds a {other}; use --backbone {other} to start from it")


def _open_run(config, resume):
    """Return (folder, state): a new folder and None, or a run to resume and its last state."""
    folder = Path(config.output_dir)
    if not (folder / "config.json").exists():
        if folder.is_dir() and any(folder.iterdir()):
            raise EmoError(f"{folder} is not empty and holds no run; choose another --output-dir")
        return folder, None
    if not resume:
        raise EmoError(f"{folder} holds a run already; use --resume or another --output-dir")
    before = read_config(folder)
    free = {"output_dir", "pack"} | ({"epochs"} if config.recipe == "classic" else set())
    for name, value in dataclasses.asdict(config).items():
        if value != (old := getattr(before, name)) and name not in free:
            fault = f"was trained with {name}={old!r}, not {value!r}"
            raise EmoError(f"{folder} {fault}; choose another --output-dir for the new settings")
    last = folder / "last.pth"
    return folder, load_torch(last) if last.is_file() else None


def _precision():
    """Half precision where the hardware computes it: it doubles the speed."""
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    flags = Path("/proc/cpuinfo")
    has = flags.is_file() and "avx512_bf16" in flags.read_text(errors="replace")
    return "bf16" if has and not torch.backends.mps.is_available() else "no"


def _save_epoch(run, folder, manifest):
    write_json(folder / "config.json", dataclasses.asdict(run.config))
    if not (folder / "manifest.csv").exists():
        with atomic_path(folder / "manifest.csv") as temporary:
            manifest.to_csv(temporary, index=False)
    with atomic_path(folder / "last.pth") as temporary:
        torch.save(run.state_dict(), temporary)
    with atomic_path(folder / "history.csv") as temporary:
        pd.DataFrame(run.history).to_csv(temporary, index=False)


def _save_model(run, folder):
    """Fit the temperature and measure the framing, then write the model with its config."""
    model, config = run.average.module, run.config
    model.load_state_dict(run.best["model"])
    output, batch = run.predict_val()
    known = batch["emotion"] >= 0
    row = run.history[run.best["epoch"] - 1]
    sizes = {"train": len(run.train_part), "val": len(run.val_part)}
    model.config = {
        "backbone": config.backbone,
        "classes": list(EMOTIONS),
        **vars(EmotionPreprocessor(config.image_size, colour=run.colour)),
        "crop_margin": _crop_margin(run.train_part),
        "temperature": metrics.fit_temperature(output.logits[known], batch["emotion"][known]),
        "va": run.va,
        "data": {"name": Path(config.data_dir).name} | sizes,
        "metrics": {k: v for k, v in row.items() if k.startswith(("val_", "combined")) and v == v},
        "emo_version": version("emo"),
    }
    save_weights(model, folder / "model_weights.pth")
    checkpoint = {"model": model.state_dict(), "epoch": run.best["epoch"]}
    checkpoint |= {"config": dataclasses.asdict(config), "history": run.history}
    with atomic_path(folder / "best_model.pth") as temporary:
        torch.save(checkpoint, temporary)
    write_json(folder / "model_config.json", model.config)


def _crop_margin(part):
    """Measure how tightly the training faces are framed; the default where none is found."""
    rows = np.linspace(0, len(part) - 1, min(len(part), 200)).astype(int)
    faces = part.images[rows][..., ::-1]  # RGB → BGR
    with MediaPipeFaceDetector() as detector:
        margin = measure_crop_margin(np.ascontiguousarray(faces), detector)
    return DEFAULT_MARGIN if margin is None else margin


def _sentence(row, config):
    text = f"epoch {row['epoch']}/{config.epochs} · loss {row['train_loss']:.3f}"
    names = {"val_loss": "val loss", "val_accuracy": "accuracy", "val_macro_f1": "macro F1"}
    names |= {"val_ccc_valence": "CCC valence", "val_ccc_arousal": "CCC arousal"}
    for column, name in names.items():
        text += f" · {name} {row[column]:.3f}" if row[column] == row[column] else ""
    return text + f" · {row['images_per_second']:.0f} images/s"
