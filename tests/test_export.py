import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import pandas as pd
import pytest
import torch

import emo
from emo import (
    EmoError,
    create_model,
    create_recognizer,
    export_to_keras,
    export_to_onnx,
    export_to_torchscript,
    fit,
)
from emo import export as export_module
from emo.export import FILES, export_run
from emo.files import read_json


@pytest.fixture(scope="module")
def table(run):
    return export_run(run)


def test_every_format_agrees_with_pytorch(table, run):
    assert list(table.index) == ["pytorch", *FILES]
    exact = table.drop(index=["int8"])
    assert exact["max_logit_difference"].max() <= 1e-4
    assert exact["max_va_difference"].max() <= 1e-4
    assert (exact["agreement"] == 1).all()
    assert table.loc["int8", "agreement"] > 0.8
    assert table.loc["int8", "megabytes"] < 0.3 * table.loc["onnx", "megabytes"]
    assert all((run / name).is_file() for name in FILES.values())
    saved = pd.DataFrame(read_json(run / "export.json")["formats"]).set_index("format")
    assert saved["median_ms"].to_dict() == table["median_ms"].to_dict()


@pytest.mark.slow
def test_what_8_bits_cost_is_said_and_layers_are_spared(run, monkeypatch, table):
    assert table.drop(index="int8")["note"].eq("").all()
    monkeypatch.setattr(export_module, "FEWEST", 0)
    monkeypatch.setattr(export_module, "PRICES", {"val_accuracy": -1.0, "val_mean_ccc": 0.5})
    note, size = (export_run(run, ["int8"]).loc["int8", n] for n in ("note", "megabytes"))
    assert re.fullmatch(r"\d+ layers stay float; val_accuracy -?0\.\d+ lower \(.*-1.0\)", note)
    assert table.loc["int8", "megabytes"] < size < table.loc["onnx", "megabytes"]
    kinds = [node.op_type for node in onnx.load(run / "model_int8.onnx").graph.node]
    assert "QuantizeLinear" in kinds
    monkeypatch.undo()
    export_run(run, ["int8"])


def test_8_bits_reach_the_activations(table, run):
    """Between two convolutions no float activation is left: those would cost the speed."""
    for name in ("model.onnx", "model_int8.onnx"):
        nodes = onnx.load(run / name).graph.node
        reads = {i for node in nodes if node.op_type == "Conv" for i in node.input[:1]}
        relus = [node for node in nodes if node.op_type == "Relu" and node.output[0] in reads]
        assert bool(relus) == (name == "model.onnx")


def test_recognisers_of_all_files_agree(table, run):
    faces = torch.rand(5, 3, 32, 32)
    expected = create_recognizer(run / "best_model.pth").predict_batch(faces)
    for name in (n for key, n in FILES.items() if key != "int8"):
        for result, truth in zip(
            create_recognizer(run / name).predict_batch(faces), expected, strict=True
        ):
            assert result["emotion"] == truth["emotion"], name
            assert result["probabilities"] == pytest.approx(truth["probabilities"], abs=1e-4)
            assert result["valence"] == pytest.approx(truth["valence"], abs=1e-4)


def test_onnx_is_one_file_with_any_batch_size_and_its_config(table, run):
    graph = onnx.load(run / "model.onnx", load_external_data=False)
    assert not any(tensor.external_data for tensor in graph.graph.initializer)
    assert not (run / "model.onnx.data").exists()
    inside = {entry.key: entry.value for entry in graph.metadata_props}
    assert json.loads(inside["model_config"]) == read_json(run / "model_config.json")
    recognizer = create_recognizer(run / "model.onnx")
    for count in (1, 2, 7):
        assert recognizer.run(torch.zeros(count, 3, 32, 32))[0].shape == (count, 8)


def test_opencv_reads_the_onnx_file(table, run):
    network = cv2.dnn.readNetFromONNX(str(run / "model.onnx"))
    names = network.getUnconnectedOutLayersNames()
    for count in (1, 3):
        faces = torch.randn(count, 3, 32, 32)
        network.setInput(faces.numpy())
        found = dict(zip(names, network.forward(names), strict=True))
        logits, va = create_recognizer(run / "best_model.pth").run(faces)
        assert np.abs(found["logits"] - logits).max() < 1e-4
        assert np.abs(found["va"] - va).max() < 1e-4


def test_h5_opens_with_plain_keras(table, run, tmp_path):
    """In a fresh process that never imports emo."""
    code = (
        "import os; os.environ.setdefault('KERAS_BACKEND', 'torch')\n"
        "import keras, numpy as np, sys\n"
        f"model = keras.models.load_model({str(run / 'model.h5')!r}, compile=False)\n"
        "logits, va = model.predict(np.zeros((2, 32, 32, 3), np.float32), verbose=0)\n"
        "assert 'emo' not in sys.modules\n"
        "print(logits.shape, va.shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(2, 8) (2, 2)"


def test_mobilenet_in_every_format(tmp_path):
    model = create_model("mobilenet_v2", pretrained=False).eval()
    torch.manual_seed(0)
    for part in model.modules():  # an untrained network has trivial statistics
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 1.5)
    model.config |= {"image_size": 64, "mean": [0.5] * 3, "std": [0.5] * 3, "colour": "rgb"}
    face = torch.rand(3, 3, 64, 64)
    with torch.no_grad():
        logits, _ = model(face)
    writers = {".onnx": export_to_onnx, ".pt": export_to_torchscript, ".h5": export_to_keras}
    (tmp_path / "model_config.json").write_text(json.dumps(model.config))
    for suffix, write in writers.items():
        write(model, tmp_path / f"m{suffix}")
        found = create_recognizer(tmp_path / f"m{suffix}").run(face)[0]
        assert np.abs(found - logits.numpy()).max() < 1e-4, suffix


def test_another_backbone_has_no_keras_twin(tmp_path):
    model = create_model("efficientnet_b0", pretrained=False)
    with pytest.raises(EmoError, match="no Keras twin"):
        export_to_keras(model, tmp_path / "m.h5")
    assert not list(tmp_path.iterdir())


def test_the_other_formats_of_a_backbone_without_a_keras_twin(config, tmp_path, capsys):
    config = replace(config, backbone="regnet_y_400mf", epochs=1, output_dir=str(tmp_path / "r"))
    fit(config)
    table = export_run(config.output_dir)
    assert "model.h5 was left out: no Keras twin" in capsys.readouterr().out
    assert list(table.index) == ["pytorch", "weights", "torchscript", "onnx", "int8"]
    assert not (tmp_path / "r" / "model.h5").exists()
    with pytest.raises(EmoError, match="no Keras twin"):
        export_run(config.output_dir, ["keras"])


def test_a_format_that_differs_is_not_written(run, monkeypatch, tmp_path, table):
    monkeypatch.setattr(export_module, "TOLERANCE", -1.0)
    before = (run / "model.onnx").read_bytes()
    with pytest.raises(EmoError, match="differs from PyTorch"):
        export_run(run, ["onnx"])
    assert (run / "model.onnx").read_bytes() == before
    with pytest.raises(EmoError, match="unknown format"):
        export_run(run, ["tflite"])


@pytest.mark.parametrize("name", ["weights", "torchscript", "onnx", "int8", "keras"])
def test_no_file_names_a_path_of_this_machine(name, table, run):
    content = (run / FILES[name]).read_bytes()
    places = {str(Path(module.__file__).parents[1]) for module in (torch, emo)}
    assert not [
        place for place in [*places, str(run), str(Path.home())] if place.encode() in content
    ]
