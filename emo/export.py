"""One run → weights, TorchScript, ONNX, int8 and Keras, each proven equal. See notebooks/05."""

import json
import logging
import time
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from torch import nn

from emo.errors import EmoError
from emo.evaluation import compute_metrics, predict_dataset
from emo.files import atomic_path, write_json
from emo.model import load_model, save_weights
from emo.recognize import create_recognizer, import_keras
from emo.train import load_data, read_config

FILES = {
    "weights": "model_weights.pth",
    "torchscript": "model_torchscript.pt",
    "onnx": "model.onnx",
    "int8": "model_int8.onnx",
    "keras": "model.h5",
}
TOLERANCE = 1e-4  # largest |Δlogit| or |Δva| that a 32-bit format may show
CALIBRATION_FACES, PROOF_FACES, TIMED_CALLS = 256, 256, 30


def export_run(run, formats=tuple(FILES)):
    """Write the formats of a run folder, prove each against PyTorch, return the table.

    It (also in `export.json`) holds size, largest differences, agreement, accuracy and CCC on val,
    latency of a face. A 32-bit format more than 1e-4 away raises `EmoError` and leaves no file.
    """
    folder = Path(run)
    if unknown := set(formats) - set(FILES):
        raise EmoError(f"unknown format {sorted(unknown)[0]!r}; expected {', '.join(FILES)}")
    best = folder / "best_model.pth"
    model, reference = load_model(best), create_recognizer(best)
    dataset, _ = load_data(read_config(folder), folder)
    val = dataset.part("val")
    faces = _faces(val, reference, PROOF_FACES)
    expected = reference.run(faces)
    rows = [_facts("pytorch", best, reference, faces, expected, val)]
    for name in [name for name in FILES if name in formats]:
        with atomic_path(folder / FILES[name]) as temporary:
            _write(name, model, temporary, dataset, reference)
            config = folder / "model_config.json" if name == "keras" else None
            recognizer = create_recognizer(temporary, config)
            rows.append(_facts(name, temporary, recognizer, faces, expected, val))
            _prove(rows[-1])
    for row in rows:
        row["speed_up"] = rows[0]["median_ms"] / row["median_ms"]
    write_json(folder / "export.json", {"reference": "pytorch", "formats": rows})
    return pd.DataFrame(rows).set_index("format")


def export_to_torchscript(model, path, device="cpu"):
    """Trace the model into one TorchScript file with its config inside."""
    model, face = _ready(model, device)
    extra = {"model_config.json": json.dumps(model.config)}
    with atomic_path(path) as temporary, warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, but many runtimes read it
        torch.jit.save(torch.jit.trace(_Plain(model), face), str(temporary), _extra_files=extra)
    return Path(path)


def export_to_onnx(model, path, device="cpu"):
    """Write one ONNX file: `image` (B, 3, S, S) → `logits` (B, 8), `va` (B, 2); any batch size.

    The config travels in the file's metadata under `model_config`.
    """
    import onnx

    model, face = _ready(model, device)
    with atomic_path(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Plain(model),
            (face,),
            str(temporary),
            input_names=["image"],
            output_names=["logits", "va"],
            dynamic_shapes={"image": {0: torch.export.Dim("batch", min=1, max=4096)}},
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        graph = onnx.load(temporary)
        onnx.helper.set_model_props(graph, {"model_config": json.dumps(model.config)})
        onnx.save(graph, temporary)
    return Path(path)


def export_to_int8(onnx_path, path, faces):
    """Quantise an ONNX file to 8 bits (static, QDQ, per channel).

    The ranges of all activations are measured on `faces`, a float array (N, 3, S, S) of training
    faces. The heads stay in float: they are small and decide.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static, shape_inference

    parts = np.array_split(faces, max(1, len(faces) // 16))
    batches = iter([{"image": part} for part in parts])
    with TemporaryDirectory() as scratch, atomic_path(path) as temporary:
        prepared = f"{scratch}/prepared.onnx"
        shape_inference.quant_pre_process(str(onnx_path), prepared)
        quantize_static(
            prepared,
            str(temporary),
            SimpleNamespace(get_next=lambda: next(batches, None)),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["Conv", "Add", "MaxPool", "GlobalAveragePool"],
        )
    return Path(path)


def export_to_keras(model, path):
    """Write a Keras 3 functional twin (channels last) with the same weights as an .h5 file.

    Opens with plain `keras.models.load_model`. Raises `EmoError` for a backbone with operations
    that have no twin here; ResNets and MobileNetV2 work.
    """
    keras = import_keras()
    model, face = _ready(model, "cpu")
    twin = _KerasTwin(keras, face.shape[-1]).convert(model)
    with atomic_path(path) as temporary:
        logging.disable(logging.WARNING)  # .h5 is called legacy, but it is what people ask for
        try:
            twin.save(temporary)
        finally:
            logging.disable(logging.NOTSET)
    return Path(path)


class _Plain(nn.Module):
    """Return a plain tuple: TorchScript and ONNX know no named tuples."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, image):
        return tuple(self.model(image))


class _KerasTwin:
    """Walk the traced graph of a PyTorch model and call the Keras layer of each step."""

    def __init__(self, keras, size):
        self.layers, self.keras = keras.layers, keras
        self.input = keras.Input((size, size, 3), name="image")

    def convert(self, model):
        values = {}
        *steps, output = torch.fx.symbolic_trace(model).graph.nodes
        for node in steps:
            inputs = [values[a] for a in node.args if isinstance(a, torch.fx.Node) and a in values]
            if node.op == "placeholder":
                values[node] = self.input
            elif node.op == "call_module":
                values[node] = self.module(model.get_submodule(node.target), inputs[0])
            elif node.op in ("call_function", "call_method"):
                values[node] = self.function(node, inputs)
        return self.keras.Model(self.input, values[output.args[0]])

    def module(self, part, x):
        """Return Keras' value of one PyTorch layer applied to `x`."""
        layers = self.layers
        if isinstance(part, nn.Conv2d):
            return self.convolution(part, x)
        if isinstance(part, nn.BatchNorm2d):
            layer = layers.BatchNormalization(epsilon=part.eps, momentum=0.9)
            weights = [part.weight, part.bias, part.running_mean, part.running_var]
            return self.with_weights(layer, x, weights)
        if isinstance(part, nn.Linear):
            return self.with_weights(layers.Dense(part.out_features), x, [part.weight.T, part.bias])
        if isinstance(part, nn.MaxPool2d):
            # Zeros may pad here only because the input comes from a ReLU.
            return layers.MaxPooling2D(part.kernel_size, part.stride)(self.pad(part.padding, x))
        if isinstance(part, nn.AdaptiveAvgPool2d) and part.output_size in (1, (1, 1)):
            return layers.GlobalAveragePooling2D(keepdims=True)(x)
        if isinstance(part, nn.Identity | nn.Dropout):
            return x
        if isinstance(part, nn.ReLU | nn.ReLU6 | nn.Tanh):
            return layers.Activation(type(part).__name__.lower())(x)
        return self.refuse(type(part).__name__)

    def function(self, node, inputs):
        """Return Keras' value of a function that is no layer."""
        name = node.target if isinstance(node.target, str) else node.target.__name__
        if name == "add":
            return self.layers.Add()(inputs)
        if name == "flatten":
            return self.layers.Flatten()(inputs[0])
        if name == "adaptive_avg_pool2d" and node.args[1] in (1, (1, 1)):
            return self.layers.GlobalAveragePooling2D(keepdims=True)(inputs[0])
        return inputs if name == "EmotionOutput" else self.refuse(name)

    def convolution(self, part, x):
        options = {"strides": part.stride, "use_bias": part.bias is not None}
        if part.groups == 1:
            layer = self.layers.Conv2D(part.out_channels, part.kernel_size, **options)
            kernel = part.weight.permute(2, 3, 1, 0)
        elif part.groups == part.in_channels:
            layer = self.layers.DepthwiseConv2D(part.kernel_size, **options)
            kernel = part.weight.permute(2, 3, 0, 1)
        else:
            return self.refuse("grouped Conv2d")
        return self.with_weights(layer, self.pad(part.padding, x), [kernel, part.bias])

    def pad(self, padding, x):
        return self.layers.ZeroPadding2D(padding)(x) if np.any(padding) else x

    def with_weights(self, layer, x, weights):
        result = layer(x)
        layer.set_weights([w.detach().numpy() for w in weights if w is not None])
        return result

    def refuse(self, what):
        raise EmoError(
            f"no Keras twin: this backbone uses {what}; export onnx, or train resnet18/mobilenet_v2"
        )


def _ready(model, device):
    """Return the model in eval mode on the device, and a batch of two faces of its size."""
    size = model.config.get("image_size", 224)
    model = model.to(device=device, memory_format=torch.contiguous_format).eval()
    return model, torch.zeros(2, 3, size, size, device=device)


def _write(name, model, path, dataset, reference):
    writers = {"weights": save_weights, "torchscript": export_to_torchscript}
    writers |= {"onnx": export_to_onnx, "keras": export_to_keras}
    if name in writers:
        writers[name](model, path)
    else:
        calibration = _faces(dataset.part("train"), reference, CALIBRATION_FACES)
        with TemporaryDirectory() as scratch:
            export_to_int8(export_to_onnx(model, f"{scratch}/float.onnx"), path, calibration)


def _faces(part, reference, count):
    """Return up to `count` evenly spread faces as the model is fed them, float (N, 3, S, S)."""
    rows = np.linspace(0, len(part) - 1, min(count, len(part))).astype(int)
    return reference.preprocessor.preprocess_batch(list(part.images[rows][..., ::-1])).numpy()


def _facts(name, path, recognizer, faces, expected, val):
    logits, va = recognizer.run(faces)
    numbers = compute_metrics(predict_dataset(recognizer, val), va=recognizer.va, rounds=1)
    return {
        "format": name,
        "megabytes": path.stat().st_size / 1e6,
        "max_logit_difference": float(np.abs(logits - expected[0]).max()),
        "max_va_difference": float(np.abs(va - expected[1]).max()),
        "agreement": float((logits.argmax(1) == expected[0].argmax(1)).mean()),
        "val_accuracy": numbers["emotion"]["accuracy"],
        "val_mean_ccc": numbers["mean_ccc"],
        **_latency(recognizer, faces[:1]),
    }


def _latency(recognizer, face):
    times = []
    for _ in range(5 + TIMED_CALLS):
        start = time.perf_counter()
        recognizer.run(face)
        times.append(1000 * (time.perf_counter() - start))
    median, p95 = np.quantile(times[5:], [0.5, 0.95])  # the first calls warm up
    return {"median_ms": float(median), "p95_ms": float(p95)}


def _prove(row):
    name, worst = row["format"], max(row["max_logit_difference"], row["max_va_difference"])
    if name != "int8" and not (worst <= TOLERANCE and row["agreement"] == 1):
        raise EmoError(
            f"{FILES[name]} differs from PyTorch by {worst:.2g} (allowed: {TOLERANCE}) and agrees "
            f"on {row['agreement']:.1%} of the faces, so it was not written; please report this"
        )
