"""Speed on the user's own machine, as ratios measured in one run: `emo bench`."""

import gc
import platform
import tempfile
import timeit
import tracemalloc
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from emo import dataset, synth
from emo.export import export_to_int8, export_to_onnx
from emo.faces import MediaPipeFaceDetector
from emo.live import LivePipeline
from emo.model import create_model, save_weights
from emo.recognize import EmotionPreprocessor, create_recognizer
from emo.sources import read_dataset
from emo.train import make_accelerator, train_step


def machine():
    """Describe this machine in one line."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    cores = torch.get_num_threads()
    return f"{platform.machine()}, {cores} cores, {gpu}, torch {torch.__version__}"


def bench_data(count=600, rows=400_000, size=224, small=64):
    """Reading a large CSV, packing against decoding alone, and the pack against files."""
    with tempfile.TemporaryDirectory() as folder:
        seconds, megabytes = _read_large(Path(folder) / "large", rows)
        root = synth.write_dataset(Path(folder) / "faces", count, seed=0, size=size)
        manifest = read_dataset(root).sample(16 * count, replace=True, random_state=0)
        paths = [root / path for path in manifest["image_path"]]
        chunks = [paths[i : i + dataset.CHUNK] for i in range(0, len(paths), dataset.CHUNK)]
        with ThreadPoolExecutor() as pool:  # handing over single images would cost more
            decode = partial(pool.map, lambda chunk: [dataset.decode(path) for path in chunk])
            decoding = _seconds(lambda: list(decode(chunks)), 3)
        # In another order each time, because that is another pack.
        packing = _seconds(lambda: dataset.pack_images(manifest.sample(frac=1), root, small), 3)
        images, manifest, _ = dataset.pack_images(manifest, root, small)
        loader = dataset.make_loader(dataset.FaceDataset(images, manifest), 64, shuffle=True)
        packed = _seconds(lambda: sum(len(batch["image"]) for batch in loader))
        to_tensor = transforms.Compose([transforms.Resize([small] * 2), transforms.PILToTensor()])
        files = _seconds(lambda: [to_tensor(Image.open(p).convert("RGB")) for p in paths], rounds=1)
    table = {
        f"read and split {rows:,} rows: seconds": (seconds, "≤ 5"),
        f"read and split {rows:,} rows: MB at most": (megabytes, "≤ 1000"),
        f"decoding files of {size} px, images/s": (len(paths) / decoding, ""),
        f"packing them as {small} px, images/s": (len(paths) / packing, ""),
        "packing / decoding": (decoding / packing, "≥ 0.9"),
        "batches from the pack / PIL + torchvision": (files / packed, "≥ 20"),
    }
    return pd.DataFrame(table, ["measured", "target"]).T


def _read_large(root, rows):
    """Return seconds and peak megabytes of reading and splitting a CSV with this many images."""
    names = [f"{i // 1000}/{i}.jpg" for i in range(rows)]
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    table = pd.DataFrame({"image_path": names, "emotion": np.arange(rows) % 8})
    table.assign(valence=0.1234, arousal=-0.4321).to_csv(root / "labels.csv", index=False)
    seconds = _seconds(lambda: dataset.split_manifest(read_dataset(root)), rounds=1)
    return seconds, _peak_megabytes(lambda: dataset.split_manifest(read_dataset(root)))


def bench_train(sizes=(96, 224), batch_size=64, steps=8, rows=400_000):
    """Training steps fed by a pack, by one resident batch, and by files through Pillow."""
    accelerator, table = make_accelerator(), {}
    bounds = ("≤ 1.10", "≥ 3") if accelerator.device.type == "cuda" else ("≤ 1.05", "")
    model = create_model(pretrained=False).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    model, optimizer = accelerator.prepare(model, optimizer)

    def train(batches):
        for batch in batches:
            pair = (batch["image"], batch["emotion"]) if isinstance(batch, dict) else batch
            image, emotion = (t.to(accelerator.device, non_blocking=True) for t in pair)
            if image.dtype == torch.uint8:
                image = dataset.augment(dataset.normalise(image))
            image = image.contiguous(memory_format=torch.channels_last)
            batch = {"image": image, "emotion": emotion, "va": image.new_zeros(len(image), 2)}
            loss = train_step(model, optimizer, batch, accelerator=accelerator)
        return loss.total.item()  # waits for the GPU

    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            sources = _sources(
                Path(folder) / str(size), size, batch_size, steps, accelerator.device
            )
            runs = {name: partial(train, batches) for name, batches in sources.items()}
            rounds = [{n: _seconds(run, 1, warm_up=0) for n, run in runs.items()} for _ in range(4)]
            seconds = pd.DataFrame(rounds[1:]).median()  # in turns: a shared machine is moody
            for name, value in (steps * batch_size / seconds).items():
                table[f"{size} px, {name}: images/s"] = value, ""
            resident, pack, files = seconds[["resident", "pack", "files"]]
            table[f"{size} px, a step from pack / resident"] = pack / resident, bounds[0]
            table[f"{size} px, images/s of pack / files"] = files / pack, bounds[1]
        images = np.lib.format.open_memmap(f"{folder}/p.npy", "w+", np.uint8, (rows, 64, 64, 3))

        def epoch():  # of a pack that is a hole in the disk, and takes no room there
            labels = {"image_path": [f"images/{i:06d}.jpg" for i in range(rows)], "emotion": 0}
            labels = pd.DataFrame(labels).assign(valence=0.1, arousal=0.1, split="train")
            faces = dataset.FaceDataset(images, labels)
            deque(dataset.make_loader(faces, batch_size, shuffle=True), maxlen=0)

        table[f"{rows:,} images: MB beyond the page cache"] = _peak_megabytes(epoch), "≤ 1000"
    return pd.DataFrame(table, ["measured", "target"]).T


def _sources(root, size, batch_size, steps, device):
    """Return iterables of as many batches: one resident batch, our pack, and the usual way."""
    manifest = read_dataset(synth.write_dataset(root, steps * batch_size, size=size))
    faces = dataset.FaceDataset(*dataset.pack_images(manifest, root, size)[:2])
    pack = dataset.make_loader(faces, batch_size, shuffle=True)
    change = [transforms.RandomHorizontalFlip(), transforms.RandomRotation(15)]
    scale = [transforms.ToTensor(), transforms.Normalize(dataset.IMAGE_MEAN, dataset.IMAGE_STD)]
    files = datasets.ImageFolder(root, transforms.Compose(change + scale), allow_empty=True)
    options = {"num_workers": torch.get_num_threads(), "persistent_workers": True, "shuffle": True}
    files = DataLoader(files, batch_size, pin_memory=device.type == "cuda", **options)
    resident = {name: value.to(device) for name, value in next(iter(pack)).items()}
    resident["image"] = dataset.normalise(resident["image"])
    return {"resident": [resident] * steps, "pack": pack, "files": files}


def bench_infer(size=224, calls=40):
    """Median milliseconds of one face for each backbone and format, and the speed-up."""
    rows, face = {}, torch.rand(1, 3, size, size)
    with tempfile.TemporaryDirectory() as folder:
        for backbone in ("resnet18", "mobilenet_v2"):
            for name, path in _untrained(Path(folder) / backbone, backbone, size).items():
                run = partial(create_recognizer(path).run, face)
                rows[backbone, name] = 1e3 * _seconds(run, calls)
    table = pd.DataFrame({"median_ms": pd.Series(rows)})
    slowest = table.xs("pytorch", level=1)["median_ms"]
    return table.assign(speed_up=slowest.reindex(table.index, level=0) / table["median_ms"])


def bench_live(size=64, frames=60):
    """Milliseconds a frame: detector, model, and the whole pipeline with one face."""
    with tempfile.TemporaryDirectory() as folder, MediaPipeFaceDetector() as detector:
        recognizer = create_recognizer(_untrained(Path(folder), "mobilenet_v2", size)["onnx"])
        pipeline = LivePipeline(recognizer, detector)
        images = [frame for frame, _ in synth.animate(seconds=frames / 15, fps=15)]
        face = torch.rand(1, 3, size, size)
        parts = {
            "detector": _seconds(lambda: [detector.detect(image) for image in images]) / frames,
            "model": _seconds(lambda: recognizer.run(face), frames),
            "pipeline": _seconds(lambda: [pipeline.process(i) for i in images]) / frames,
        }
    parts["pipeline − detector − model"] = 2 * parts["pipeline"] - sum(parts.values())
    return pd.DataFrame({"milliseconds": {name: 1e3 * value for name, value in parts.items()}})


def _untrained(folder, backbone, size):
    """Write an untrained model in three formats: speed does not depend on the weights."""
    model = create_model(backbone, pretrained=False).eval()
    model.config |= vars(EmotionPreprocessor(size)) | {"va": "annotated"}
    save_weights(model, folder / "m.pth")
    onnx = export_to_onnx(model, folder / "m.onnx")
    int8 = export_to_int8(model, folder / "i.onnx", torch.randn(16, 3, size, size).numpy())
    return {"pytorch": folder / "m.pth", "onnx": onnx, "int8": int8}


def _seconds(function, rounds=5, warm_up=1):
    """Median seconds of a call, after some to warm up; with garbage collection, as in use."""
    times = timeit.repeat(function, setup=gc.enable, number=1, repeat=rounds + warm_up)
    return float(np.median(times[warm_up:]))


def _peak_megabytes(function):
    """Most memory that Python and NumPy hold during a call; mapped files do not count."""
    tracemalloc.start()
    function()
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    return peak
