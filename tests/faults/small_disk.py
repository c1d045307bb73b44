"""Every stage on a small disk, full and read-only; test_disk.py starts it where it may mount one.

Prints one JSON line: {stage: {state of the disk: what was said}}.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import torch

from emo import EmoError, evaluate, fit
from emo.dataset import pack_images
from emo.download import unpack_archive
from emo.export import export_run
from emo.runs import read_config
from emo.sources import read_dataset
from emo.synth import animate, write_dataset
from emo.window import film_writer

SIZE, LEAVES = 60_000_000, (0, 30_000, 600_000)  # bytes: of the disk, and left free on it


def mount(disk, *options):
    subprocess.run(["mount", *options, "tmpfs", str(disk)], check=True)


def fill(disk, leave):
    """Write until `leave` bytes are free."""
    with open(disk / "ballast", "wb", buffering=0) as file:
        try:
            while os.statvfs(disk).f_bavail * 4096 > leave:
                file.write(bytes(4096))
        except OSError:
            pass


def tree(disk):
    files = [p for p in disk.rglob("*") if p.is_file() and p.name != "ballast"]
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def record(path):
    with film_writer(path, 15) as write:
        for frame, _ in animate(3):
            write(frame)


def main(disk, run, faces):
    torch.set_num_threads(1)
    mount(disk, "-t", "tmpfs", "-o", f"size={SIZE}")
    shutil.copytree(faces, disk / "faces", ignore=shutil.ignore_patterns(".emo"))
    with zipfile.ZipFile(disk / "faces.zip", "w") as bundle:
        for path in sorted((disk / "faces").rglob("*.jpg")):
            bundle.write(path, f"happy/{path.name}")
    config = dataclasses.replace(read_config(run), output_dir=str(disk / "run"))
    config = dataclasses.replace(config, backbone="shufflenet_v2_x0_5", epochs=1)
    exports = ("torchscript", "onnx", "int8")
    stages = {
        "synth": lambda: write_dataset(disk / "drawn", 120, size=64),
        "unpack": lambda: unpack_archive(disk / "faces.zip", disk / "unpacked"),
        "pack": lambda: pack_images(read_dataset(disk / "faces"), disk / "faces", 48),
        "train": lambda: fit(config, resume=True),
        "evaluate": lambda: evaluate(config.output_dir),
        "export": lambda: export_run(config.output_dir, exports),
        "record": lambda: record(disk / "film.webm"),
    }
    said = {}
    for stage, work in stages.items():
        said[stage], before = {}, tree(disk)
        for state in ("read-only", *LEAVES):
            mount(disk, "-o", "remount,ro") if state == "read-only" else fill(disk, state)
            try:
                work()
                said[stage][state] = "done"
            except (EmoError, OSError) as error:
                said[stage][state] = f"{type(error).__name__}: {error}"
            mount(disk, "-o", f"remount,rw,size={SIZE}")
            (disk / "ballast").unlink(missing_ok=True)
            if stage != "pack":  # it keeps its part, to go on
                after = tree(disk)
                assert all(after.get(path) == digest for path, digest in before.items()), stage
                half = [path for path in after if ".part" in path]
                assert not half, f"{stage}, {state}: {half}"
            if said[stage][state] == "done":
                break
        else:
            work()  # there is room again
    print(json.dumps(said))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
