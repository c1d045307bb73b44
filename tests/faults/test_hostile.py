"""2,400 mutated files: a clear error or a counted skip; no crash, hang, bomb, escape or code."""

import io
import json
import resource
import struct
import time
import zipfile
import zlib
from contextlib import contextmanager

import cv2
import numpy as np
import pandas as pd
import pytest

from emo import EmoError, create_recognizer, synth
from emo.dataset import decode, pack_images
from emo.download import unpack_archive
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
    cases += [mutate(text.encode(), rng) for _ in range(ROUNDS)]
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
