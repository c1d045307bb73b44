"""Speed on the user's own machine, as ratios measured in one run: `emo bench`."""

import platform
import tempfile
import timeit
from collections import deque
from functools import partial
from itertools import product
from multiprocessing import cpu_count, pool
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torchvision import datasets, transforms
from tqdm.auto import tqdm

from emo import dataset, export, faces, files, live, model, recognize, sources, synth, train

BACKBONES, SIZES, FRAMES = ("resnet18", "mobilenet_v2"), (64, 224), 15
FPS = {"pytorch": "≥ 15", "onnx": "≥ 25", "int8": "≥ 25", "pytorch, GPU": "≥ 60"}


def machine():
    """Describe this machine in one line."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    cores = torch.get_num_threads()
    return f"{platform.machine()}, {cores} cores, {gpu}, torch {torch.__version__}"


def bench_data(count=600, rows=400_000, size=224, small=64):
    """Reading a large CSV, packing against decoding alone, and the pack against files."""
    with tempfile.TemporaryDirectory() as folder:
        large = write_large(Path(folder, "large"), rows)
        seconds = _seconds(lambda: dataset.split_manifest(sources.read_dataset(large)), 1)
        root = synth.write_dataset(Path(folder, "faces"), count, seed=0, size=size)
        manifest = sources.read_dataset(root).sample(16 * count, replace=True, random_state=0)
        paths = [root / path for path in manifest["image_path"]]
        with pool.ThreadPool(min(32, cpu_count() + 4)) as threads:  # as many as pack images
            decoding = _seconds(lambda: threads.map(dataset.decode, paths, dataset.CHUNK), 3)
        # In another order each time, because that is another pack.
        packing = _seconds(lambda: dataset.pack_images(manifest.sample(frac=1), root, small), 3)
        loaders = _loaders(root, manifest, small, [transforms.PILToTensor()])
        pack, usual = (_seconds(partial(deque, loader, maxlen=0), 3) for loader in loaders)
    table = {
        f"read and split {rows:,} rows: seconds": (seconds, "≤ 5"),
        f"decoding files of {size} px, images/s": (len(paths) / decoding, ""),
        f"packing them as {small} px, images/s": (len(paths) / packing, ""),
        "packing / decoding": (decoding / packing, "≥ 0.9"),
        "batches from the pack / PIL + torchvision": (16 * usual / pack, "≥ 20"),
    }
    return pd.DataFrame(table, ["measured", "target"]).T


def write_large(root, rows):
    """Write a data set of this many empty images and a CSV; return its folder."""
    names = [f"{i // 1000}/{i}.jpg" for i in range(rows)]
    for path in map(root.joinpath, names):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    table = pd.DataFrame({"image_path": names, "emotion": np.arange(rows) % 8})
    table.assign(valence=0.1234, arousal=-0.4321).to_csv(root / "labels.csv", index=False)
    return root


def bench_train(sizes=(96, 224), batch_size=64, steps=8):
    """Training steps fed by a pack, by one resident batch, and by files through Pillow."""
    accelerator, table = train.make_accelerator(), {}
    bounds = ("≤ 1.10", "≥ 3") if accelerator.device.type == "cuda" else ("≤ 1.05", "")
    network = model.create_model(pretrained=False).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(network.parameters(), fused=True)
    network, optimizer = accelerator.prepare(network, optimizer)
    change = [transforms.RandomHorizontalFlip(), transforms.RandomRotation(15)]
    change += [transforms.ToTensor(), transforms.Normalize(dataset.IMAGE_MEAN, dataset.IMAGE_STD)]
    workers = {"num_workers": torch.get_num_threads(), "persistent_workers": True}

    def take_steps(batches):
        for batch in batches:
            image, emotion, *_ = batch.values() if isinstance(batch, dict) else batch
            if image.dtype == torch.uint8:
                image = dataset.augment(dataset.normalise(image))
            image = image.contiguous(memory_format=torch.channels_last)
            batch = {"image": image, "emotion": emotion, "va": image.new_zeros(len(image), 2)}
            loss = train.train_step(network, optimizer, batch, accelerator=accelerator)
        return loss.total.item()  # waits for the GPU

    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            root = synth.write_dataset(Path(folder, f"{size}"), steps * batch_size, size=size)
            manifest = sources.read_dataset(root)
            loaders = _loaders(root, manifest, size, change, batch_size, **workers)
            pack, usual = accelerator.prepare(*loaders)  # which brings batches to the device
            resident = next(iter(pack))
            resident["image"] = dataset.normalise(resident["image"])
            feeds = {"resident": [resident] * steps, "pack": pack, "files": usual}
            runs = {name: partial(take_steps, batches) for name, batches in feeds.items()}
            seconds = _in_turns(runs, 4, calls=1, warm_up=0)
            for name, value in (steps * batch_size / seconds).items():
                table[f"{size} px, {name}: images/s"] = value, ""
            resident, pack, usual = seconds[["resident", "pack", "files"]]
            table[f"{size} px, a step from pack / resident"] = pack / resident, bounds[0]
            table[f"{size} px, images/s of pack / files"] = usual / pack, bounds[1]
    return pd.DataFrame(table, ["measured", "target"]).T


def _loaders(root, manifest, size, change, batch_size=64, **options):
    """Return loaders of faces: from our pack, and the usual way, from files through Pillow."""
    packed = dataset.FaceDataset(*dataset.pack_images(manifest, root, size)[:2])
    pack = dataset.make_loader(packed, batch_size, shuffle=True)
    change = transforms.Compose([transforms.Resize([size] * 2), *change])
    usual = datasets.ImageFolder(root, change, allow_empty=True)
    options["pin_memory"] = torch.cuda.is_available()
    return pack, torch.utils.data.DataLoader(usual, batch_size, shuffle=True, **options)


def bench_infer(formats=("pytorch", "torchscript", "onnx", "int8")):
    """Milliseconds of one face: model alone, crop to answer, and a whole frame of 640×480."""
    tables, frames = {}, [frame for frame, _ in synth.animate(seconds=1, fps=FRAMES)]

    def each(function):
        deque(map(function, frames), maxlen=0)

    def answer(recognizer):
        return recognizer.predict(recognizer.preprocessor.preprocess_cv2(crop))

    with tempfile.TemporaryDirectory() as folder, faces.MediaPipeFaceDetector() as detector:
        crop = detector.crop_face(frames[0], detector.detect_single_face(frames[0])[0])
        for backbone, size in tqdm(list(product(BACKBONES, SIZES)), "Measuring"):
            paths = _untrained(Path(folder, f"{backbone}{size}"), backbone, size)
            found = {name: recognize.create_recognizer(paths[name]) for name in formats}
            if torch.cuda.is_available():
                found["pytorch, GPU"] = recognize.create_recognizer(paths["pytorch"], device="cuda")
            face, steps = torch.rand(1, 3, size, size), {}
            pipelines = {n: live.LivePipeline(r, detector).process for n, r in found.items()}
            steps["model_ms"] = {n: partial(r.run, face) for n, r in found.items()}
            steps["answer_ms"] = {n: partial(answer, r) for n, r in found.items()}
            steps["frame_ms"] = {n: partial(each, process) for n, process in pipelines.items()}
            steps["detector_ms"] = dict.fromkeys(found, partial(each, detector.detect))
            table = pd.DataFrame({name: 1e3 * _in_turns(runs) for name, runs in steps.items()})
            table[["frame_ms", "detector_ms"]] /= len(frames)
            table["speed_up"] = table["model_ms"].iloc[0] / table["model_ms"]
            tables[backbone, size] = table.assign(fps=1e3 / table["frame_ms"])
    table = pd.concat(tables, names=["backbone", "pixels", "format"])
    return table.assign(target=table.index.get_level_values("format").map(FPS))


def bench_live():
    """Milliseconds a frame of 640×480 with one face: detector, model, all, and what is on top."""
    table = bench_infer(["onnx"])[["detector_ms", "model_ms", "frame_ms"]]
    both = table["detector_ms"] + table["model_ms"]
    return table.assign(on_top_ms=table["frame_ms"] - both, ratio=table["frame_ms"] / both)


def _untrained(folder, backbone, size):
    """Write an untrained model in four formats: speed does not depend on the weights."""
    network = model.create_model(backbone, pretrained=False).eval()
    network.config |= vars(recognize.EmotionPreprocessor(size)) | {"va": "annotated"}
    model.save_torch(network.state_dict(), folder / "m.pth")
    paths = {"pytorch": folder / "m.pth", "onnx": folder / "m.onnx", "int8": folder / "i.onnx"}
    export.export_to_onnx(network, paths["onnx"])
    export.export_to_int8(network, paths["int8"], torch.randn(16, 3, size, size).numpy())
    return paths | {"torchscript": export.export_to_torchscript(network, folder / "m.pt")}


def _seconds(function, rounds=5, warm_up=1):
    """Median seconds of a call, after some to warm up; with garbage collection, as in use."""
    times = timeit.repeat(function, setup="gc.enable()", number=1, repeat=rounds + warm_up)
    return float(np.median(times[warm_up:]))


def _in_turns(functions, rounds=5, calls=3, warm_up=1):
    """Return median seconds of each; they take turns, because a shared machine is moody."""
    times = [{n: _seconds(f, calls, warm_up) for n, f in functions.items()} for _ in range(rounds)]
    return pd.DataFrame(times).median()


def plot_infer(table, path):
    """Draw the frames a second of `bench_infer`'s table into a picture file."""
    figure, fps = Figure(figsize=(8, 5), layout="constrained"), table["fps"].unstack(sort=False)
    fps.index = [f"{backbone}, {size} px" for backbone, size in fps.index]
    colours = ["#0072B2", "#56B4E9", "#E69F00", "#D55E00", "#009E73"]  # safe for colour-blind eyes
    ax = fps.plot.barh(ax=figure.subplots(), width=0.8, color=colours)
    ax.vlines((15, 25, 60), *ax.get_ylim(), color="0.4", linestyle=":", zorder=0)
    ax.set(xlabel="frames of 640×480 a second (dotted: 15, 25, 60)")
    ax.invert_yaxis()
    with files.atomic_path(path) as temporary:
        figure.savefig(temporary)
