"""Speed on the user's own machine, as ratios measured in one run: `emo bench`."""

import platform
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torchvision import transforms

from emo import dataset, synth
from emo.export import export_to_int8, export_to_onnx
from emo.faces import MediaPipeFaceDetector, crop_face
from emo.live import LivePipeline
from emo.losses import multitask_loss
from emo.model import create_model, save_weights
from emo.recognize import create_recognizer
from emo.sources import read_dataset


def machine():
    """Describe this machine in one line."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    cores = torch.get_num_threads()
    return f"{platform.machine()}, {cores} cores, {gpu}, torch {torch.__version__}"


def bench_data(count=1000, size=96):
    """Images per second: packing, batches from the pack, and PIL + torchvision from files."""
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        root = synth.write_dataset(Path(folder) / "faces", count, seed=0, size=size)
        manifest = dataset.split_manifest(read_dataset(root))
        packing = _seconds(lambda: dataset.pack_images(manifest, root, 64), rounds=1)
        images, manifest, _ = dataset.pack_images(manifest, root, 64)
        loader = dataset.make_loader(dataset.FaceDataset(images, manifest), 64, shuffle=True)
        packed = _seconds(lambda: [batch["image"] for batch in loader])
        to_tensor = transforms.Compose([transforms.Resize((64, 64)), transforms.PILToTensor()])
        paths = [root / path for path in manifest["image_path"]]
        files = _seconds(lambda: [to_tensor(Image.open(p).convert("RGB")) for p in paths], rounds=1)
    rows = {"packing": packing, "batches from the pack": packed, "PIL + torchvision": files}
    seconds = pd.Series(rows)
    return pd.DataFrame({"images_per_second": count / seconds, "ratio": files / seconds})


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
    model.config |= {"mean": list(dataset.IMAGE_MEAN), "std": list(dataset.IMAGE_STD)}
    model.config |= {"image_size": size, "colour": "rgb", "va": "annotated"}
    files = {"pytorch": folder / "m.pth", "onnx": folder / "m.onnx", "int8": folder / "i.onnx"}
    folder.mkdir(parents=True)
    save_weights(model, files["pytorch"])
    export_to_onnx(model, files["onnx"])
    noise = np.random.default_rng(0).normal(size=(16, 3, size, size)).astype(np.float32)
    export_to_int8(files["onnx"], files["int8"], noise)
    return files


def _seconds(function, rounds=5):
    """Median seconds of a call, after one to warm up."""
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))
