"""3,000 mutated files: a clear error or a counted skip; no crash, hang, bomb, escape or code."""

import dataclasses
import io
import json
import resource
import shutil
import struct
import time
import zipfile
import zlib
from contextlib import contextmanager, suppress

import cv2
import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emo import EmoError, create_recognizer, evaluate, fit, synth
from emo.dataset import decode, pack_images
from emo.download import unpack_archive
from emo.evaluation import read_predictions
from emo.recognize import import_keras
from emo.runs import load_data, open_run, read_config, read_manifest
from emo.sources import read_dataset

pytestmark = pytest.mark.slow
ROUNDS = 400


def mutate(data, rng):
    """Damage bytes as disks, networks and attackers do: flips, cuts, repeats, large numbers."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 6)):
        at = int(rng.integers(len(data)))
        kind = rng.integers(6)
        if kind == 0:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            data[at : at + int(rng.integers(1, 64))] = rng.bytes(int(rng.integers(1, 64)))
        elif kind == 2:
            del data[at : at + int(rng.integers(1, 256))]
        elif kind == 3:
            data[at:at] = data[max(0, at - 100) : at]
        elif kind == 4:
            data[at : at + 4] = struct.pack("<I", int(rng.choice([0, 2**31, 2**32 - 1, 10**5])))
        else:
            del data[at + 1 :]
        data = data or bytearray(1)
    return bytes(data)


@contextmanager
def harmless(seconds=120, megabytes=1500):
    """Fail when the block takes too long or the process's memory grows too much."""
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert time.monotonic() - began < seconds and grown < megabytes, f"{grown:.0f} MB more"


def count(outcomes, minimum=0.05):
    """Of (name, outcome) pairs, both kinds must occur: else the mutations test nothing."""
    table = pd.Series(outcomes).value_counts(normalize=True)
    print(table.to_dict())
    assert table.get("refused", 0) >= minimum
    return table


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tif"])
def test_images(suffix, tmp_path):
    face = synth.render(synth.sample("Happy", seed=1), 64)
    whole, rng = cv2.imencode(suffix, face)[1].tobytes(), np.random.default_rng(0)
    (tmp_path / "labels.csv").write_text(
        "image_path,emotion\n" + "".join(f"{i}{suffix},{i % 8}\n" for i in range(ROUNDS))
    )
    for i in range(ROUNDS):
        (tmp_path / f"{i}{suffix}").write_bytes(mutate(whole, rng) if i else whole)
    with harmless():
        images, kept, _ = pack_images(read_dataset(tmp_path), tmp_path, 48)
    assert len(images) == len(kept) >= 1
    assert len(kept) + len(kept.attrs["unreadable"]) == ROUNDS
    assert kept.attrs["unreadable"]


def bomb_png(side):
    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(3 * side + 1) * 64, 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [20_000, 30_000, 100_000])
def test_an_image_bomb_is_not_decoded(side, tmp_path):
    (tmp_path / "bomb.png").write_bytes(bomb_png(side))
    with harmless(10, 200):
        assert decode(tmp_path / "bomb.png") is None


def test_zips(tmp_path):
    buffer, rng, outcomes = io.BytesIO(), np.random.default_rng(1), []
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as bundle:
        for i in range(4):
            bundle.writestr(f"happy/{i}.jpg", rng.bytes(300))
        bundle.writestr("labels.csv", "pth,label\n" * 9)
    work = tmp_path / "a" / "b"
    work.mkdir(parents=True)
    with harmless():
        for i in range(ROUNDS):
            (work / "x.zip").write_bytes(mutate(buffer.getvalue(), rng))
            try:
                unpack_archive(work / "x.zip", work / f"{i}")
                outcomes.append("unpacked")
            except EmoError:
                outcomes.append("refused")
                assert not (work / f"{i}").exists()
    count(outcomes)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]
    assert not [p for p in work.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("name", ["model_weights.pth", "model.onnx", "model_torchscript.pt"])
def test_models(name, run, tmp_path):
    from emo.export import export_run

    if not (run / name).exists():
        export_run(run, ("onnx", "torchscript"))
    whole, rng, outcomes = (run / name).read_bytes(), np.random.default_rng(2), []
    path = tmp_path / name
    with harmless(600):
        for i in range(60):
            # Weights are most of a file; what counts is at its ends.
            cut = 20_000
            head, tail = mutate(whole[:cut], rng), mutate(whole[-cut:], rng)
            choice = [head + whole[cut:], whole[:-cut] + tail, mutate(whole, rng)][i % 3]
            path.write_bytes(choice)
            try:
                create_recognizer(path)
                outcomes.append("opened")
            except EmoError:
                outcomes.append("refused")
    count(outcomes)


def test_configs(run, tmp_path):
    whole = json.loads((run / "model_config.json").read_text())
    odd = [None, -1, 0, 1e9, 10**30, "64", "", [], {}, [1, 2], [[1], [2, 3]], True, "x" * 10**6]
    text, rng, outcomes = json.dumps(whole), np.random.default_rng(3), []
    cases = [json.dumps(whole | {name: value}) for name in whole for value in odd]
    cases += [mutate(text.encode(), rng) for _ in range(100)]
    with harmless():
        for case in cases:
            path = tmp_path / "config.json"
            path.write_bytes(case if isinstance(case, bytes) else case.encode())
            try:
                create_recognizer(run / "model_weights.pth", path)
                outcomes.append("opened")
            except EmoError as error:
                assert len(str(error)) < 500
                outcomes.append("refused")
    count(outcomes)


CELLS = st.one_of(
    st.integers(-3, 10).map(str),
    st.floats().map(str),
    st.text(max_size=12),
    st.sampled_from(
        ["", "nan", "1e999", "../../x.png", "/etc/passwd", "a.png", "b.png", '"', "=1+1"]
    ),
)


@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@given(st.lists(st.tuples(CELLS, CELLS, CELLS, CELLS, CELLS), min_size=1, max_size=6))
def test_manifests(tmp_path_factory, rows):
    """Whatever a table holds: refused, or only images of the folder and labels in their range."""
    root = tmp_path_factory.mktemp("manifest")
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(root / name), np.zeros((48, 48, 3), np.uint8))
    names = ["image_path", "emotion", "valence", "arousal", "split"]
    table = pd.DataFrame([("a.png", "1", "0.5", "-0.5", "train"), *rows], columns=names)
    table.to_csv(root / "labels.csv", index=False)
    table.to_csv(root / "manifest.csv", index=False)
    for read in (lambda: read_dataset(root), lambda: read_manifest(root / "manifest.csv")):
        with suppress(EmoError):
            manifest = read()
            assert manifest["emotion"].between(-1, 7).all()
            assert not (manifest[["valence", "arousal"]].abs() > 1).any(axis=None)
            assert not manifest["image_path"].str.contains(r"^/|\.\.", regex=True).any()


def test_run_folders(run, tmp_path):
    """Each file of a run, mutated: `evaluate` and `--resume` refuse it, or do not notice."""
    rng, outcomes = np.random.default_rng(4), []
    evaluate(run)
    config = read_config(run)
    for i in range(60):
        folder = tmp_path / str(i)
        shutil.copytree(run, folder)
        name = ("config.json", "manifest.csv", "last.pth")[i % 3]
        (folder / name).write_bytes(mutate((run / name).read_bytes(), rng))
        try:
            open_run(dataclasses.replace(config, output_dir=str(folder)), resume=True)
            load_data(read_config(folder), folder)
            outcomes.append("read")
        except EmoError:
            outcomes.append("refused")
        shutil.rmtree(folder)
    count(outcomes)


def test_predictions(run, tmp_path):
    rng, outcomes = np.random.default_rng(5), []
    evaluate(run)
    whole = (run / "predictions.csv").read_bytes()
    for _ in range(200):
        (tmp_path / "predictions.csv").write_bytes(mutate(whole, rng))
        try:
            read_predictions(tmp_path / "predictions.csv")
            outcomes.append("read")
        except EmoError:
            outcomes.append("refused")
    count(outcomes)


class Payload:
    """What a pickle may do: make a file when it is opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def lambda_layer(path, mark):
    keras = import_keras()
    inputs = keras.Input((64, 64, 3))
    outputs = keras.layers.Lambda(lambda x: (open(mark, "w"), x)[1])(inputs)
    keras.Model(inputs, outputs).save(path)


def test_no_file_runs_code(run, tmp_path):
    """Not a pickle, nor a Keras lambda; an .onnx file reads nothing outside its folder."""
    config, mark = (run / "model_config.json").read_text(), tmp_path / "mark"
    work = tmp_path / "models"
    work.mkdir()
    (work / "model_config.json").write_text(config)
    torch.save({"model": Payload(mark)}, work / "model.pth")
    lambda_layer(work / "model.h5", str(mark))
    mark.unlink(missing_ok=True)  # building the layer has called it
    (tmp_path / "secret").write_bytes(bytes(16))
    weight = onnx.TensorProto(name="w", data_type=1, dims=[4], data_location=1)
    for key, value in {"location": "../secret", "offset": "0", "length": "16"}.items():
        weight.external_data.add(key=key, value=value)
    values = [onnx.helper.make_tensor_value_info(name, 1, [4]) for name in "xy"]
    node = onnx.helper.make_node("Add", ["x", "w"], ["y"])
    graph = onnx.helper.make_graph([node], "graph", values[:1], values[1:], [weight])
    options = {"opset_imports": [onnx.helper.make_opsetid("", 17)], "ir_version": 9}
    model = onnx.helper.make_model(graph, **options)
    (work / "model.onnx").write_bytes(model.SerializeToString())
    for name, reason in {"pth": "could run code", "h5": "Lambda", "onnx": "escapes"}.items():
        with pytest.raises(EmoError, match=reason):
            create_recognizer(work / f"model.{name}")
    assert not mark.exists()


def test_a_checkpoint_of_something_else(run, tmp_path):
    good = torch.load(run / "model_weights.pth", weights_only=True)
    huge = torch.zeros(1).expand(10**6, 10**6)  # 4 TB, of which the file holds four bytes
    cases = [
        [],
        {},
        {"model": 3},
        {"_extra_state": {"backbone": 1, "classes": ["a"] * 8}},
        {"_extra_state": {"backbone": "resnet18", "classes": 8}},
        {"_extra_state": {"backbone": "os.system", "classes": ["a"] * 8}},
        good | {"_extra_state": 3},
        good | {"va_head.0.bias": "text"},
        {name: huge if torch.is_tensor(value) else value for name, value in good.items()},
    ]
    with harmless():
        for case in cases:
            torch.save(case, tmp_path / "model.pth")
            with pytest.raises(EmoError):
                create_recognizer(tmp_path / "model.pth")
        for case in ([], {}, {"epoch": 1}, good):
            shutil.copytree(run, tmp_path / "run")
            torch.save(case, tmp_path / "run" / "last.pth")
            config = dataclasses.replace(read_config(run), output_dir=str(tmp_path / "run"))
            with pytest.raises(EmoError, match="last.pth|config inside"):
                fit(config, resume=True)
            shutil.rmtree(tmp_path / "run")
