"""That `emo bench` measures and says what it measured; how fast this machine is, is no test."""

import json

import cv2
import pytest

from emo import bench
from emo.cli import main


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(bench, "SIZES", (32,))
    monkeypatch.setattr(bench, "BACKBONES", ("mobilenet_v2",))


def test_infer(face_model, tmp_path, capsys):
    main(["bench", "infer", "--json", "--plot", str(tmp_path / "speed.png")])
    found = json.loads(capsys.readouterr().out)
    assert "cores" in found["machine"]
    rows = {row["format"]: row for row in found["infer"]}
    assert list(rows)[:4] == ["pytorch", "torchscript", "onnx", "int8"]
    assert rows["pytorch"]["speed_up"] == 1
    for row in rows.values():
        assert 0 < row["model_ms"]
        assert row["fps"] == pytest.approx(1000 / row["frame_ms"])
    assert cv2.imread(str(tmp_path / "speed.png")).shape[1] > 500


def test_live(face_model, capsys):
    main(["bench", "live"])
    printed = capsys.readouterr().out
    assert "on_top_ms" in printed and "mobilenet_v2" in printed


def test_only_infer_is_drawn(capsys):
    with pytest.raises(SystemExit):
        main(["bench", "data", "--plot", "speed.png"])
    assert "emo bench infer" in capsys.readouterr().err
