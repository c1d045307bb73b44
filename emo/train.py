"""Train both heads: `fit` and its loop, on one device or many. Built by hand in notebooks/03."""

import copy
import math
import time
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator, DataLoaderConfiguration, utils
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm.auto import tqdm

from emo import EmoError, emotions, faces, metrics, recipes, recognize, runs, sources
from emo.dataset import augment, make_loader, normalise
from emo.files import claim
from emo.losses import MultiTaskLoss, multitask_loss
from emo.model import EmotionOutput, create_model, load_model

PLAIN = ("epoch", "steps", "history", "best")  # of the state, beside the parts' own


def fit(config, *, resume=False, on_epoch=None):
    """Train as `config` says and write its run folder; return the history, one row an epoch.

    `resume` goes on from the last finished epoch of the same run (or starts it). `on_epoch` is
    called with the history so far. Ctrl-C ends training and keeps the best model so far.
    """
    _check(config)
    accelerator = make_accelerator()
    leader = accelerator.is_main_process
    with claim(config.output_dir) if leader else nullcontext():
        folder, state = runs.open_run(config, resume)
        with accelerator.main_process_first():  # the others then find the pack
            manifest = runs.load_manifest(config, folder)
            dataset, colour = runs.load_data(config, manifest=manifest)
        run = Training(config, dataset, colour, accelerator, state)
        if leader and not run.finished:
            print(run.describe(), flush=True)
        try:
            while not run.finished:
                run.run_epoch()
                if leader:
                    runs.save_epoch(folder, config, manifest, run.state_dict())
                    print(runs.WORDS.epoch(run.history[-1], config).strip(), flush=True)
                    if on_epoch is not None:
                        on_epoch(pd.DataFrame(run.history))
        except KeyboardInterrupt:
            if not run.history or accelerator.num_processes > 1:  # others may wait in mid-step
                raise
            print(f"interrupted; keeping the best model, of epoch {run.best['epoch']}")
        except (RuntimeError, MemoryError) as error:
            raise _out_of_memory(error, config) or error from None
        model = run.finish()
        if leader:
            runs.save_model(folder, config, model, run.state_dict())
            print(f"wrote {folder}; next: python -m emo evaluate --run {folder}")
    return pd.DataFrame(run.history)


def make_accelerator(**options):
    """Return an `Accelerator` in half precision where the hardware computes it: twice the speed."""
    plain, flags = "no", Path("/proc/cpuinfo")
    modern = flags.is_file() and "avx512_bf16" in flags.read_text(errors="replace")
    if torch.cuda.is_available() and not options.get("cpu"):
        plain, modern = "fp16", torch.cuda.is_bf16_supported(including_emulation=False)
    precision = "bf16" if modern else plain
    # A batch is divided among processes, so their number does not change what a step does.
    data = DataLoaderConfiguration(split_batches=True, use_seedable_sampler=True, non_blocking=True)
    return Accelerator(**{"mixed_precision": precision, "dataloader_config": data} | options)


def combined_score(macro_f1, mean_ccc):
    """The score that selects a model: macro F1 + mean CCC, or macro F1 alone without it."""
    return macro_f1 if mean_ccc is None or math.isnan(mean_ccc) else macro_f1 + mean_ccc


def train_step(model, optimizer, batch, alpha=1.0, beta=0.5, *, accelerator=None, parts=1, **loss):
    """Move the weights once, by the mean loss of a batch; return that `MultiTaskLoss`.

    Each label counts the same, although the batch is computed in `parts` and may be one process's
    share of a larger one. `loss` goes to `multitask_loss`.
    """
    known = torch.stack([batch["emotion"] >= 0, batch["va"].isfinite().float().mean(dim=1)])
    total, losses = known.sum(dim=1), []
    if accelerator and accelerator.num_processes > 1:
        total = accelerator.reduce(total, "mean")  # as gradients are, over processes
    chunks = zip(*(value.chunk(parts) for value in batch.values()), strict=True)
    chunks = [dict(zip(batch, chunk, strict=True)) for chunk in chunks]
    for chunk, count in zip(chunks, known.chunk(parts, dim=1), strict=True):
        last, (a, b) = chunk is chunks[-1], count.sum(dim=1) / total.clamp(min=1e-6)
        with nullcontext() if last else accelerator.no_sync(model):  # exchange gradients once
            part = multitask_loss(model(chunk["image"]), chunk, alpha * a, beta * b, **loss)
            accelerator.backward(part.total) if accelerator else part.total.backward()
        losses.append(torch.stack([part.total, part.emotion * a, part.va * b]).detach())
    optimizer.step()
    optimizer.zero_grad()
    return MultiTaskLoss(*torch.stack(losses).sum(dim=0))


class Training:
    """One training, new or from the `state_dict` of another: model, optimizer, best weights …"""

    def __init__(self, config, dataset, colour, accelerator, state=None):
        torch.manual_seed(config.seed)
        self.config, self.colour, self.accelerator = config, colour, accelerator
        self.recipe = recipes.RECIPES[config.recipe]
        self.train_part, self.val_part = dataset.part("train"), dataset.part("val")
        self.va = sources.va_state(self.train_part.manifest) if config.beta else "none"
        self.scores_va = self.va == "annotated" == sources.va_state(self.val_part.manifest)
        size, steps = config.batch_size, len(self.train_part) // config.batch_size
        _check_batch(size, len(self.train_part), accelerator.num_processes)
        if config.weights and not state:
            self.network = load_model(config.weights)
            self.network.config = {n: self.network.config[n] for n in ("backbone", "classes")}
        else:
            self.network = create_model(config.backbone, pretrained=config.pretrained and not state)
        self.network.to(accelerator.device, memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.network).eval()
        both = ([*m.parameters(), *m.buffers()] for m in (self.average, self.network))
        self.floats = [[t for t in tensors if t.is_floating_point()] for tensors in both]
        optimizer, schedules = recipes.make_optimizer(self.network, config, steps)
        train = make_loader(self.train_part, size, shuffle=True, seed=config.seed, drop_last=True)
        val = make_loader(self.val_part, 2 * size)
        # `model` is `network`, wrapped where several processes train it.
        prepared = accelerator.prepare(self.network, optimizer, train, val)
        self.model, self.optimizer, self.train_loader, self.val_loader = prepared
        self.parts = {"model": self.network, "average": self.average, "optimizer": self.optimizer}
        self.parts |= schedules | ({"scaler": accelerator.scaler} if accelerator.scaler else {})
        self.epoch, self.steps, self.history = 0, 0, []
        self.best = {"score": -math.inf, "epoch": 0, "model": None}
        try:
            for name, part in self.parts.items() if state is not None else ():
                part.load_state_dict(state[name])
            vars(self).update({name: state[name] for name in PLAIN if state is not None})
        except Exception as error:  # whatever a state of something else leads to
            fault = f"{config.output_dir}/last.pth is no state of this run ({error})"
            raise EmoError(f"{fault}; start anew in another --output-dir") from error

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
            weights = copy.deepcopy(self.average.state_dict())
            self.best = {"score": score, "epoch": self.epoch, "model": weights}
        self.history.append(row | {"seconds": time.perf_counter() - start})

    def train_epoch(self):
        """Go once through the training part; return the mean loss and images per second."""
        config, accelerator = self.config, self.accelerator
        # Seeded by the epoch, a resumed run needs no stored state; each process draws its own.
        torch.manual_seed(config.seed * 100_003 + self.epoch + 10_007 * accelerator.process_index)
        self.train_loader.set_epoch(self.epoch)
        self.model.train()
        options = {"alpha": config.alpha, "beta": config.beta, "va_loss": config.va_loss}
        options |= {"votes": self.recipe.votes, "parts": config.accumulate}
        strength = min(1.0, self.epoch / recipes.RAMP) if self.recipe.planned else 1.0
        changes = {n: v if n == "degrees" else v * strength for n, v in self.recipe.augment.items()}
        start, losses = time.perf_counter(), []
        title, silent = f"Epoch {self.epoch + 1}/{config.epochs}", not accelerator.is_main_process
        step = {"unit": " images", "unit_scale": config.batch_size}
        for batch in (bar := tqdm(self.train_loader, title, leave=False, disable=silent, **step)):
            image = augment(normalise(batch["image"], colour=self.colour), **changes)
            batch["image"] = image.contiguous(memory_format=torch.channels_last)
            loss = train_step(self.model, self.optimizer, batch, accelerator=accelerator, **options)
            self.parts["every_step"].step()
            self.steps += 1  # the average moves towards the newest weights, faster at first
            get_ema_multi_avg_fn(min(recipes.AVERAGE, 1 - 1 / self.steps))(*self.floats, None)
            losses.append(loss.total)
            if len(losses) % 10 == 0:  # reading it waits for the GPU
                self._require_finite(loss.total.item())
                bar.set_postfix(emotion=f"{loss.emotion:.3f}", va=f"{loss.va:.3f}")
        loss = self._require_finite(accelerator.reduce(torch.stack(losses).mean(), "mean").item())
        return loss, len(losses) * config.batch_size / (time.perf_counter() - start)

    def _require_finite(self, loss):
        if not math.isfinite(loss):
            cure = f"a smaller --learning-rate than {self.config.learning_rate:g}"
            raise EmoError(f"the loss became {loss:.3g}: training diverged; use {cure}")
        return loss

    def validate(self):
        """Return loss and metrics over all predictions of the val part at once."""
        output, batch = self.predict_val()
        loss = multitask_loss(output, batch, self.config.alpha, self.config.beta).total.item()
        known = batch["emotion"] >= 0
        matrix = metrics.confusion(batch["emotion"][known], output.logits[known].argmax(dim=1))
        f1, cccs = metrics.macro_f1(matrix), [math.nan, math.nan]
        if self.scores_va:
            rows = torch.from_numpy(sources.annotated_rows(self.val_part.manifest))
            cccs = [metrics.ccc(batch["va"][rows, i], output.va[rows, i]) for i in (0, 1)]
        row = {"val_loss": loss, "val_accuracy": float(metrics.accuracy(matrix))}
        row |= {"val_macro_f1": f1, "val_ccc_valence": cccs[0], "val_ccc_arousal": cccs[1]}
        # Without alpha nobody teaches the emotion head: the noise of its F1 must not choose.
        f1 = f1 if self.config.alpha else 0.0
        return row | {"combined_score": combined_score(f1, sum(cccs) / 2)}

    @torch.no_grad()
    def predict_val(self):
        """Return (output, labels) of the whole val part, on the CPU, in its order."""
        parts = []
        for buffer in self.average.buffers():  # each process has its own batch norm statistics
            buffer.copy_(utils.broadcast(buffer))
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
        stalled = self.epoch - self.best["epoch"] >= recipes.STOP_PATIENCE
        return self.epoch >= self.config.epochs or (stalled and not self.recipe.planned)

    def describe(self):
        """Say in a few lines what is trained on what, and how the best epoch is chosen."""
        absent = sorted(set(range(8)) - set(self.train_part.emotion.tolist()))
        return runs.WORDS.training(self, [emotions.EMOTIONS[i] for i in absent]).strip()

    def state_dict(self):
        """Return everything that a resumed run needs, as plain values and tensors."""
        plain = {name: getattr(self, name) for name in PLAIN}
        return {name: part.state_dict() for name, part in self.parts.items()} | plain

    def finish(self):
        """Return the best model with its config: temperature and framing are measured here."""
        model, config, part = self.average, self.config, self.train_part
        model.load_state_dict(self.best["model"])
        output, batch = self.predict_val()
        known = batch["emotion"] >= 0
        rows = np.linspace(0, len(part) - 1, min(len(part), 200)).astype(int)
        with faces.MediaPipeFaceDetector() as detector:
            margin = faces.measure_crop_margin(part.images[rows][..., ::-1], detector)  # RGB → BGR
        row = self.history[self.best["epoch"] - 1]  # whose scores are kept, but for NaN
        sizes = {"train": len(part), "val": len(self.val_part)}
        model.config |= {  # beside its backbone and classes
            **vars(recognize.EmotionPreprocessor(config.image_size, colour=self.colour)),
            "crop_margin": faces.DEFAULT_MARGIN if margin is None else margin,
            "temperature": metrics.fit_temperature(output.logits[known], batch["emotion"][known]),
            "va": self.va,
            "data": {"name": Path(config.data_dir).name} | sizes,
            "metrics": {k: v for k, v in row.items() if k[:3] in ("val", "com") and v == v},
            "emo_version": version("emo"),
        }
        return model


def _check(config):
    least = {"epochs": 1, "batch_size": 2, "accumulate": 1, "learning_rate": 1e-9}
    for name, lowest in (least | {"alpha": 0, "beta": 0}).items():
        if not getattr(config, name) >= lowest:  # NaN is refused, too
            raise EmoError(f"{name} is {getattr(config, name)}; expected {lowest} or more")
    if not config.alpha + config.beta:
        raise EmoError("alpha and beta are both 0, so there is nothing to learn; raise one")
    other = load_model(config.weights).config["backbone"] if config.weights else config.backbone
    if other != config.backbone:
        raise EmoError(f"{config.weights} holds a {other}; use --backbone {other} to start from it")


def _check_batch(size, images, processes):
    fault, better = f"can't be divided among {processes} processes", size // processes * processes
    if images < size:
        fault, better = f"is larger than the {images} training images", images // 4
    if images < size or size % processes:
        raise EmoError(f"batch size {size} {fault}; use --batch-size {max(2, processes, better)}")


def _out_of_memory(error, config):
    """Return the error that says what to try, or None when memory was not the cause."""
    signs = ("out of memory", "can't allocate memory", "bad_alloc", "Unable to allocate")
    if not isinstance(error, MemoryError) and not any(sign in str(error) for sign in signs):
        return None
    size, parts = config.batch_size, 2 * config.accumulate
    fault = f"a batch of {size} images of {config.image_size} pixels does not fit into the memory"
    cure = f"use --batch-size {max(2, size // 2)}, or --accumulate {parts}: the same batch, in"
    return EmoError(f"{fault}; {cure} {parts} parts")
