"""One run → weights, TorchScript, ONNX, int8 and Keras, each proven equal. See notebooks/05."""

import json
import logging
import timeit
import warnings
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np
import onnx
import pandas as pd
import torch
from tqdm.auto import tqdm

from emo import EmoError, evaluation, files, recognize, runs
from emo.model import load_model, save_torch

FILES = {"weights": "model_weights.pth", "torchscript": "model_torchscript.pt"}
FILES |= {"onnx": "model.onnx", "int8": "model_int8.onnx", "keras": "model.h5"}
TOLERANCE = 1e-4  # largest |Δlogit| or |Δva| that a 32-bit format may show
PRICES = {"val_accuracy": 0.005, "val_mean_ccc": 0.01}  # what 8 bits may cost
FEWEST = 2000  # faces of val: of fewer, half a point is a few faces, which is mere chance
CALIBRATION_FACES, PROOF_FACES, TIMED_CALLS = 256, 256, 30


class NoTwinError(EmoError):
    """A backbone whose operations have no Keras layer here."""


def export_run(run, formats=tuple(FILES)):
    """Write the formats of a run folder, prove each against PyTorch, return the table.

    It (also in `export.json`) holds size, largest differences, agreement, accuracy and CCC on val,
    latency of a face. A 32-bit format more than 1e-4 away raises `EmoError` and leaves no file.
    """
    folder, best = Path(run), Path(run) / "best_model.pth"
    if unknown := set(formats) - set(FILES):
        raise EmoError(f"unknown format {sorted(unknown)[0]!r}; expected {', '.join(FILES)}")
    model, reference = load_model(best), recognize.create_recognizer(best)
    dataset, _ = runs.load_data(runs.read_config(folder), folder)
    val = dataset.part("val")
    faces = _faces(val, reference, PROOF_FACES)
    measure = partial(_facts, val=val, faces=faces, expected=reference.run(faces))
    rows = [measure("pytorch", best)]
    calibration = _faces(dataset.part("train"), reference, CALIBRATION_FACES)
    writers = {"torchscript": export_to_torchscript}
    writers["weights"] = lambda model, path: save_torch(model.state_dict(), path)
    writers |= {"onnx": export_to_onnx, "keras": export_to_keras}

    def write_int8(path):
        for spared in _layers_to_spare(model, calibration):
            export_to_int8(model, path, calibration, spared)
            row = measure("int8", path)
            if not (price := _price(rows[0], row)) or len(val) < FEWEST:
                break
        floats = f"{len(spared)} layers stay float" if spared else ""
        return row | {"note": "; ".join(filter(None, [floats, price]))}

    def write_exact(name, path):
        writers[name](model, path)
        row = measure(name, path)
        worst = max(row["max_logit_difference"], row["max_va_difference"])
        if worst <= TOLERANCE and row["agreement"] == 1:
            return row
        fault = f"{FILES[name]} differs from PyTorch by {worst:.2g}, more than {TOLERANCE}, or"
        fault += f" agrees on {row['agreement']:.1%} of the faces only"
        raise EmoError(f"{fault}: not written; please report this")

    with files.claim(folder):
        for name in [name for name in FILES if name in formats]:
            try:
                with files.atomic_path(folder / FILES[name]) as path:
                    rows.append(write_int8(path) if name == "int8" else write_exact(name, path))
            except NoTwinError as refusal:
                if set(formats) == {"keras"}:
                    raise
                print(f"{FILES[name]} was left out: {refusal}")
        rows = [row | {"speed_up": rows[0]["median_ms"] / row["median_ms"]} for row in rows]
        files.write_json(folder / "export.json", {"reference": "pytorch", "formats": rows})
    return pd.DataFrame(rows).set_index("format")


def export_to_torchscript(model, path, device="cpu"):
    """Trace the model into one TorchScript file with its config inside."""
    model, face = _ready(model, device)
    extra = {"model_config.json": json.dumps(model.config)}
    with files.atomic_path(path) as temporary, warnings.catch_warnings(action="ignore"):
        traced = torch.jit.trace(model, face)  # deprecated, but many runtimes read it
        # In memory first: on a full disk, PyTorch would end the whole process.
        temporary.write_bytes(traced.save_to_buffer(_extra_files=extra))
    return Path(path)


def export_to_onnx(model, path, device="cpu"):
    """Write ONNX: `image` (B, 3, S, S) → `logits` (B, 8), `va` (B, 2), any B; config inside."""
    model, face = _ready(model, device)
    options = {"input_names": ["image"], "output_names": ["logits", "va"], "verbose": False}
    options["dynamic_shapes"] = {"image": {0: torch.export.Dim("batch", min=1, max=4096)}}
    with files.atomic_path(path) as temporary, warnings.catch_warnings(action="ignore"):
        program = torch.onnx.export(model, (face,), dynamo=True, **options)
        for node in program.model.graph:  # stack traces: large, and with this machine's paths
            node.metadata_props.clear()
        program.model.metadata_props["model_config"] = json.dumps(model.config)
        program.save(temporary, external_data=False)
    return Path(path)


def export_to_int8(model, path, faces, spared=()):
    """Write ONNX as `export_to_onnx` does, quantised to 8 bits (static, QDQ, per channel).

    `faces`, float (N, 3, S, S), give the ranges of activations. The last layer of each head and
    the nodes whose names are `spared` stay float.
    """
    with TemporaryDirectory() as scratch, files.atomic_path(path) as temporary:
        exact = export_to_onnx(model, f"{scratch}/float.onnx")
        _quantise(exact, temporary, faces, spared)
    return Path(path)


def _quantise(exact, path, faces, spared):
    from onnxruntime.quantization import QuantType, quantize_static, shape_inference

    batches = iter([{"image": part} for part in np.array_split(faces, max(1, len(faces) // 16))])
    reader = SimpleNamespace(get_next=lambda: next(batches, None))
    options = {"activation_type": QuantType.QUInt8, "per_channel": True}
    # Activations, too: between float ones no convolution would become one of integers.
    options["op_types_to_quantize"] = ["Conv", "Relu", "Clip", "Add", "MaxPool", "Gemm"]
    linear = [node.name for node in onnx.load(exact).graph.node if node.op_type == "Gemm"]
    options["nodes_to_exclude"] = [*spared, *linear[1::2]]  # each head has two
    prepared = exact.with_name("prepared.onnx")
    shape_inference.quant_pre_process(str(exact), str(prepared))
    quantize_static(str(prepared), str(path), reader, **options)


def _layers_to_spare(model, faces):
    """Yield what to keep in float: no layer, then more and more of those that 8 bits hurt most."""
    yield []
    with TemporaryDirectory() as scratch:
        whole, part = export_to_onnx(model, f"{scratch}/m.onnx"), f"{scratch}/part.onnx"
        names = [n.name for n in onnx.load(whole).graph.node if n.op_type == "Conv"]
        logits, spared, hurt = recognize.create_recognizer(whole).run(faces)[0], [], []
        groups = np.array_split(names, 8)  # of neighbours
        for group in tqdm(groups, "Looking for layers that 8 bits hurt"):
            _quantise(whole, part, faces, set(names) - set(group))
            hurt.append(np.abs(recognize.create_recognizer(part).run(faces)[0] - logits).mean())
    for i in np.argsort(hurt)[:-4:-1]:  # three groups at most: the rest is to stay fast
        spared += groups[i].tolist()
        yield spared


def _price(exact, row):
    """Say in words what 8 bits cost on val, if that is more than `PRICES` allows."""
    losses = {name: exact[name] - row[name] for name in PRICES if row[name] is not None}
    over = [name for name, loss in losses.items() if loss > PRICES[name]]
    return ", ".join(f"{n} {losses[n]:.3f} lower (allowed: {PRICES[n]})" for n in over)


def export_to_keras(model, path):
    """Write a Keras 3 twin (channels last) as an .h5 file that `keras.models.load_model` opens.

    Raises `EmoError` for a backbone with operations other than those of ResNets and MobileNetV2.
    """
    keras = recognize.import_keras()
    model, face = _ready(model, "cpu")
    image = keras.Input((*face.shape[2:], 3), name="image")
    twin = keras.Model(image, _KerasTwin(model, keras.layers).run(image))
    logging.getLogger("absl").addFilter(lambda r: "HDF5" not in r.getMessage())  # it is asked for
    with files.atomic_path(path) as temporary:
        twin.save(temporary)
    return Path(path)


class _KerasTwin(torch.fx.Interpreter):
    """Run the traced graph of a PyTorch model with the Keras layer of each step."""

    def __init__(self, model, layers):
        super().__init__(torch.fx.symbolic_trace(model))
        self.layers, self.extra_traceback = layers, False  # our own errors say enough

    def call_module(self, target, args, kwargs):
        return self.call_function(self.fetch_attr(target), args, kwargs)

    def call_function(self, target, args, kwargs):
        """Return Keras' value of a PyTorch layer, or a function or method, applied to `args`."""
        layers, part, x, weights = self.layers, target, args[0], ()
        name = part if isinstance(part, str) else getattr(part, "__name__", type(part).__name__)
        size = getattr(part, "output_size", args[-1])  # of an average pooling
        if np.any(getattr(part, "padding", 0)):
            x = layers.ZeroPadding2D(part.padding)(x)  # zeros suit MaxPool2d only after a ReLU
        match name:
            case "Conv2d" if 1 < part.groups == part.in_channels == part.out_channels:
                options = {"strides": part.stride, "use_bias": part.bias is not None}
                layer = layers.DepthwiseConv2D(part.kernel_size, **options)
                weights = part.weight.permute(2, 3, 0, 1), part.bias
            case "Conv2d":
                options = {"groups": part.groups, "use_bias": part.bias is not None}
                layer = layers.Conv2D(part.out_channels, part.kernel_size, part.stride, **options)
                weights = part.weight.permute(2, 3, 1, 0), part.bias
            case "BatchNorm2d":
                layer = layers.BatchNormalization(epsilon=part.eps, momentum=0.9)
                weights = part.weight, part.bias, part.running_mean, part.running_var
            case "Linear":
                layer, weights = layers.Dense(part.out_features), (part.weight.T, part.bias)
            case "MaxPool2d":
                layer = layers.MaxPooling2D(part.kernel_size, part.stride)
            case "AdaptiveAvgPool2d" | "adaptive_avg_pool2d" if size in (1, (1, 1)):
                layer = layers.GlobalAveragePooling2D(keepdims=True)
            case "ReLU" | "ReLU6" | "Tanh":
                layer = layers.Activation(name.lower())
            case "flatten":
                layer = layers.Flatten()
            case "add":
                layer, x = layers.Add(), list(args)
            case "Identity" | "Dropout":
                return x
            case "EmotionOutput":
                return list(args)
            case _:
                cure = "export onnx or train resnet18"
                raise NoTwinError(f"no Keras twin for this backbone's {name}; {cure}")
        result = layer(x)
        layer.set_weights([w.detach().numpy() for w in weights if w is not None])
        return result

    call_method = call_function


def _ready(model, device):
    """Return the model in eval mode on the device, and a batch of two faces of its size."""
    size = model.config.get("image_size", 224)
    model = model.to(device=device, memory_format=torch.contiguous_format).eval()
    return model, torch.zeros(2, 3, size, size, device=device)


def _faces(part, reference, count):
    """Return up to `count` evenly spread faces as the model is fed them, float (N, 3, S, S)."""
    rows = np.linspace(0, len(part) - 1, min(count, len(part))).astype(int)
    return reference.preprocessor.preprocess_batch(list(part.images[rows][..., ::-1])).numpy()


def _facts(name, path, val, faces, expected):
    recognizer = recognize.create_recognizer(path)
    logits, va = recognizer.run(faces)
    predictions = evaluation.predict_dataset(recognizer, val)
    numbers = evaluation.compute_metrics(predictions, va=recognizer.va, rounds=1)
    times = timeit.repeat(lambda: recognizer.run(faces[:1]), number=1, repeat=5 + TIMED_CALLS)
    return {
        "format": name,
        "megabytes": path.stat().st_size / 1e6,
        "max_logit_difference": float(np.abs(logits - expected[0]).max()),
        "max_va_difference": float(np.abs(va - expected[1]).max()),
        "agreement": float((logits.argmax(1) == expected[0].argmax(1)).mean()),
        "val_accuracy": numbers["emotion"]["accuracy"],
        "val_mean_ccc": numbers["mean_ccc"],
        "median_ms": 1000 * float(np.median(times[5:])),  # the first calls warm up
        "p95_ms": 1000 * float(np.quantile(times[5:], 0.95)),
        "note": "",
    }
