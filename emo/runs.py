"""The folder of one training: what is read from it, written to it and said of it."""

import dataclasses
from pathlib import Path, PurePath

import pandas as pd
from jinja2 import Environment, FileSystemLoader, select_autoescape

from emo import EmoError, dataset, sources
from emo.files import atomic_path, read_json, write_json
from emo.model import load_torch, save_torch
from emo.recipes import RECIPES, TrainConfig

TEMPLATES = Environment(autoescape=select_autoescape(), trim_blocks=True)
TEMPLATES.loader = FileSystemLoader(Path(__file__).parent)
WORDS = TEMPLATES.get_template("words.md").module  # what terminal, report and model card say


def open_run(config, resume):
    """Return (folder, state): a new folder and None, or a run to resume and its last state."""
    folder = Path(config.output_dir)
    if not (folder / "config.json").exists():
        if folder.is_dir() and any(folder.iterdir()):
            raise EmoError(f"{folder} is not empty and holds no run; choose another --output-dir")
        return folder, None
    if not resume:
        raise EmoError(f"{folder} holds a run already; use --resume or another --output-dir")
    before = read_config(folder)
    free = {"output_dir", "pack"} | (set() if RECIPES[config.recipe].planned else {"epochs"})
    for name, value in dataclasses.asdict(config).items():
        if value != (old := getattr(before, name)) and name not in free:
            fault = f"was trained with {name}={old!r}, not {value!r}"
            raise EmoError(f"{folder} {fault}; choose another --output-dir for the new settings")
    last = folder / "last.pth"
    return folder, load_torch(last) if last.is_file() else None


def read_config(run):
    """Return the `TrainConfig` of a run folder."""
    path = Path(run) / "config.json"
    if not path.is_file():
        raise EmoError(f"{run} is no run folder (no config.json); train one: python -m emo train")
    usual = dataclasses.asdict(TrainConfig())
    saved = {name: value for name, value in read_json(path).items() if name in usual}
    for name, value in saved.items():
        kinds = {float: float | int, type(None): str | None}.get(kind := type(usual[name]), kind)
        if not isinstance(value, kinds) or (name == "recipe" and value not in RECIPES):
            raise EmoError(f"{path} holds an impossible {name}: {str(value)[:60]}; train anew")
    return TrainConfig(**saved)


def read_manifest(path):
    """Read the manifest of a run folder; raise `EmoError` if it is no longer as it was written."""
    words = dict.fromkeys(("image_path", "split", "group"), str)
    table = sources.read_table(path, ("image_path", "emotion", *sources.VA, "split"), dtype=words)
    manifest = sources.check_labels(table, path)
    paths = map(PurePath, manifest["image_path"].fillna(".."))
    if away := [path for path in paths if path.is_absolute() or ".." in path.parts]:
        raise EmoError(f"{path} names {away[0]}, which lies outside the data folder; train anew")
    return manifest


def load_manifest(config, folder=None):
    """Return the manifest of a run with the split it used, or read and split the data anew."""
    if folder and (Path(folder) / "manifest.csv").is_file():
        return read_manifest(Path(folder) / "manifest.csv")
    options = {"labels": config.labels, "class_order": config.class_order}
    manifest = sources.read_dataset(config.data_dir, config.layout, **options)
    manifest = sources.fill_derived_va(manifest) if config.derive_va else manifest
    return dataset.split_manifest(manifest, config.seed)


def load_data(config, folder=None, manifest=None):
    """Read, split and pack a config's data (or its run's manifest): (FaceDataset, colour)."""
    manifest = load_manifest(config, folder) if manifest is None else manifest
    root, size = config.data_dir, config.image_size
    images, kept, colour = dataset.pack_images(manifest, root, size, config.pack)
    if missing := len(manifest) - len(kept):
        print(f"{missing:,} unreadable images are skipped: emo check --data-dir {root}")
    return dataset.FaceDataset(images, kept), colour


def save_epoch(folder, config, manifest, state):
    """Write what a resumed run needs. The config comes first: without it there is no run."""
    try:
        write_json(folder / "config.json", dataclasses.asdict(config))
        if not (folder / "manifest.csv").exists():
            with atomic_path(folder / "manifest.csv") as temporary:
                manifest.to_csv(temporary, index=False)
        with atomic_path(folder / "history.csv") as temporary:
            pd.DataFrame(state["history"]).to_csv(temporary, index=False)
        save_torch(state, folder / "last.pth")  # last: from it on, the epoch is not repeated
    except EmoError as error:
        fault = f"epoch {state['epoch']} is not saved: {error}"
        raise EmoError(f"{fault}; then go on from the epoch before: --resume") from error


def save_model(folder, config, model, state):
    """Write the best model, with its config inside, as checkpoint, weights and JSON."""
    save_torch(model.state_dict(), folder / "model_weights.pth")
    checkpoint = {"model": model.state_dict(), "epoch": state["best"]["epoch"]}
    checkpoint |= {"config": dataclasses.asdict(config), "history": state["history"]}
    save_torch(checkpoint, folder / "best_model.pth")
    write_json(folder / "model_config.json", model.config)
