"""What the measuring scripts of this folder share: rows of results.csv, and parts of a data set."""

import csv
import subprocess
import time
from pathlib import Path

import pandas as pd

from emo.bench import machine
from emo.dataset import split_manifest
from emo.files import atomic_path
from emo.sources import read_dataset


def record(steps, folder, subject, command, seed):
    """Write each figure as it comes to `folder`/figures.csv, as a row of results.csv.

    `steps` are iterables of (name, figure); a name is written after its `subject`.
    """
    git = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    start, about = time.perf_counter(), (command, commit, seed, machine())
    for step in steps:
        for name, figure in step:
            row = f"{subject}: {name}", f"{figure:.3f}", *about
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / "figures.csv").open("a", encoding="utf-8") as file:
                csv.writer(file).writerow([*row, f"{time.perf_counter() - start:.0f} s"])
            print(*row[:2], sep=": ", flush=True)


def sample(root, data_dir, **shares):
    """Make a data set at `root` with a share of the rows of each split (1 unless named)."""
    data_dir = Path(data_dir).resolve()
    if not (root / "labels.csv").is_file():
        manifest = split_manifest(read_dataset(data_dir), seed=0)
        parts = [
            part.sample(frac=shares[name], random_state=0) if name in shares else part
            for name, part in manifest.groupby("split")
        ]
        root.mkdir(parents=True, exist_ok=True)
        for place in {Path(path).parts[0] for path in manifest["image_path"]}:
            if not (root / place).exists():
                (root / place).symlink_to(data_dir / place)
        with atomic_path(root / "labels.csv") as temporary:
            pd.concat(parts).to_csv(temporary, index=False)
    return root
