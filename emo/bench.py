"""Speed on the user's own machine, as ratios measured in one run: `emo bench`."""

import gc
import platform
import tempfile
import timeit
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from emo import dataset, synth
from emo.export import export_to_int8, export_to_onnx
from emo.faces import MediaPipeFaceDetector, crop_face
from emo.live import LivePipeline
from emo.losses import multitask_loss
from emo.model import create_model, save_weights
from emo.recognize import EmotionPreprocessor, create_recognizer
from emo.sources import read_dataset


def machine():
    """Describe this machine in one line."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    cores = torch.get_num_threads()
    return f"{platform.machine()}, {cores} cores, {gpu}, torch {torch.__version__}"


def bench_data(count=600, rows=400_000, size=224, packed_size=64):
    """Reading a large CSV, packing against decoding alone, and the pack against files."""
    from torchvision.transforms import Compose, PILToTensor, Resize  # here: it takes seconds

    with tempfile.TemporaryDirectory() as folder:
        seconds, megabytes = _read_large(Path(folder) / "large", rows)
        root = synth.write_dataset(Path(folder) / "faces", count, seed=0, size=size)
        manifest = read_dataset(root).sample(16 * count, replace=True, random_state=0)
        paths = [str(root / path) for path in manifest["image_path"]]

        def decode_all():  # in chunks: single images cost more in handing over than they take
            chunks = [paths[i : i + dataset.CHUNK] for i in range(0, len(paths), dataset.CHUNK)]
            with ThreadPoolExecutor() as pool:
                list(pool.map(lambda chunk: [dataset.decode(path) for path in chunk], chunks))

        def pack(generator=np.random.default_rng(0)):  # noqa: B008 - each call another order
            order = manifest.sample(frac=1, random_state=generator)  # is another pack
            return dataset.pack_images(order, root, packed_size)

        decoding, packing = _seconds(decode_all, rounds=3), _seconds(pack, rounds=3)
        images, manifest, _ = pack()
        loader = dataset.make_loader(dataset.FaceDataset(images, manifest), 64, shuffle=True)
        packed = _seconds(lambda: sum(len(batch["image"]) for batch in loader))
        to_tensor = Compose([Resize((packed_size, packed_size)), PILToTensor()])
        files = _seconds(lambda: [to_tensor(Image.open(p).convert("RGB")) for p in paths], rounds=1)
    table = {
        f"read and split {rows:,} rows: seconds": (seconds, "≤ 5"),
        f"read and split {rows:,} rows: MB at most": (megabytes, "≤ 1000"),
        f"decoding files of {size} px, images/s": (len(paths) / decoding, ""),
        f"packing them as {packed_size} px, images/s": (len(paths) / packing, ""),
        "packing / decoding": (decoding / packing, "≥ 0.9"),
        "batches from the pack / PIL + torchvision": (files / packed, "≥ 20"),
    }
    return pd.DataFrame(table, ["measured", "target"]).T


def _read_large(root, rows):
    """Return seconds and peak megabytes of reading and splitting a CSV with this many images."""
    names = [f"{i // 1000}/{i}.jpg" for i in range(rows)]
    for i, name in enumerate(names):
        if i % 1000 == 0:
            (root / name).parent.mkdir(parents=True)
        (root / name).touch()
    generator = np.random.default_rng(0)
    table = {"image_path": names, "emotion": generator.integers(0, 8, rows)}
    table |= {name: generator.uniform(-1, 1, rows).round(4) for name in ("valence", "arousal")}
    pd.DataFrame(table).to_csv(root / "labels.csv", index=False)
    seconds = _seconds(lambda: dataset.split_manifest(read_dataset(root)), rounds=1)
    tracemalloc.start()
    dataset.split_manifest(read_dataset(root))
    megabytes = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    return seconds, megabytes


def bench_train(backbone="resnet18", size=64, batch_size=64, steps=8):
    """Milliseconds of a training step fed by our pipeline and of one on a resident batch."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    faces = np.random.default_rng(0).integers(0, 255, (512, size, size, 3), np.uint8)
    labels = pd.DataFrame({"emotion": np.arange(512) % 8, "valence": 0.1, "arousal": 0.1})
    loader = dataset.make_loader(dataset.FaceDataset(faces, labels), batch_size, shuffle=True)
    model = create_model(backbone, pretrained=False).to(device).train()
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters())

    def step(image, batch):
        image = image.contiguous(memory_format=torch.channels_last)
        loss = multitask_loss(model(image), batch)
        loss.total.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.total.item()

    batch = {name: value.to(device) for name, value in next(iter(loader)).items()}
    image = dataset.normalise(batch["image"])
    resident = _seconds(lambda: [step(image, batch) for _ in range(steps)], rounds=3) / steps

    def fed():
        for _, batch in zip(range(steps), loader, strict=False):
            batch = {name: value.to(device) for name, value in batch.items()}
            step(dataset.augment(dataset.normalise(batch["image"])), batch)

    pipeline = _seconds(fed, rounds=3) / steps
    table = pd.DataFrame({"milliseconds": {"resident": 1e3 * resident, "pipeline": 1e3 * pipeline}})
    return table.assign(ratio=table["milliseconds"] / (1e3 * resident))


def bench_infer(size=224, calls=40):
    """Median milliseconds of one face for each backbone and format, and the speed-up."""
    rows, face = {}, torch.rand(1, 3, size, size)
    with tempfile.TemporaryDirectory() as folder:
        for backbone in ("resnet18", "mobilenet_v2"):
            for name, path in _untrained(Path(folder) / backbone, backbone, size).items():
                run = create_recognizer(path).run
                rows[backbone, name] = 1e3 * _seconds(lambda run=run: run(face), calls)
    table = pd.DataFrame({"median_ms": pd.Series(rows)})
    slowest = table.xs("pytorch", level=1)["median_ms"]
    return table.assign(speed_up=slowest.reindex(table.index, level=0) / table["median_ms"])


def bench_live(size=64, frames=60):
    """Milliseconds a frame: detector, model, and the whole pipeline with one face."""
    with tempfile.TemporaryDirectory() as folder, MediaPipeFaceDetector() as detector:
        path = _untrained(Path(folder) / "mobilenet_v2", "mobilenet_v2", size)["onnx"]
        recognizer = create_recognizer(path)
        pipeline = LivePipeline(recognizer, detector)
        images = [frame for frame, _ in synth.animate(seconds=frames / 15, fps=15)]
        boxes = [detector.detect_single_face(image)[0] for image in images]
        crop = crop_face(images[0], boxes[0], recognizer.crop_margin)
        face = recognizer.preprocessor.preprocess_cv2(crop)
        parts = {
            "detector": _seconds(lambda: [detector.detect(image) for image in images]) / frames,
            "model": _seconds(lambda: recognizer.run(face), frames),
            "pipeline": _seconds(lambda: [pipeline.process(i) for i in images]) / frames,
        }
    parts["pipeline − detector − model"] = 2 * parts["pipeline"] - sum(parts.values())
    return pd.DataFrame({"milliseconds": {name: 1e3 * value for name, value in parts.items()}})


BENCHES = {"data": bench_data, "train": bench_train, "infer": bench_infer, "live": bench_live}


def _untrained(folder, backbone, size):
    """Write an untrained model in three formats: speed does not depend on the weights."""
    model = create_model(backbone, pretrained=False).eval()
    model.config |= vars(EmotionPreprocessor(size)) | {"va": "annotated"}
    files = {"pytorch": folder / "m.pth", "onnx": folder / "m.onnx", "int8": folder / "i.onnx"}
    folder.mkdir(parents=True)
    save_weights(model, files["pytorch"])
    export_to_onnx(model, files["onnx"])
    noise = np.random.default_rng(0).normal(size=(16, 3, size, size)).astype(np.float32)
    export_to_int8(files["onnx"], files["int8"], noise)
    return files


def _seconds(function, rounds=5):
    """Median seconds of a call, after one to warm up; with garbage collection, as in use."""
    times = timeit.repeat(function, setup=gc.enable, number=1, repeat=rounds + 1)
    return float(np.median(times[1:]))
