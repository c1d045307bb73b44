"""Mistakes of a user at the command line: one sentence, exit code 2, no traceback."""

import re
import shutil
import subprocess
import sys
import zipfile
from functools import partial

import cv2
import pandas as pd
import pytest

from emo import cli, synth
from emo.cli import main
from emo.window import Camera


def fails(capsys, *args):
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in args])
    assert stop.value.code == 2
    message = capsys.readouterr().err.strip()
    assert "Traceback" not in message
    return message


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["check", "--data-dir", "nowhere"], "nowhere is no folder"),
        (["train", "--data-dir", "nowhere", "--output-dir", "out"], "01_download"),
        (["evaluate", "--run", "nowhere"], "nowhere"),
        (["evaluate"], "--run"),
        (["export", "--run", "nowhere"], "nowhere"),
        (["predict", "--model", "no.onnx", "a.jpg"], "no.onnx does not exist"),
        (["predict", "--model", "no.onnx"], "at least one image"),
        (["live", "--model", "no.onnx"], "no.onnx does not exist"),
        (["live", "--model", "runs/best_model.pth", "--onnx"], "runs/model.onnx does not exist"),
        (["live", "--model", ".", "--onnx"], "model.onnx does not exist"),
        (["live", "--model", "int8.onnx", "--onnx"], "int8.onnx does not exist"),
        (["download", "--archive", "no.zip", "--dest", "data"], "no.zip"),
        (["download", "--archive", "a.zip", "--kaggle", "b", "--dest", "c"], "not both"),
        (["synth", "--dest", "x", "--count", "1"], "got 1 faces"),
    ],
)
def test_one_sentence(capsys, monkeypatch, tmp_path, args, message):
    monkeypatch.chdir(tmp_path)
    sentence = fails(capsys, *args)
    assert sentence.startswith("emo: ")
    assert message in sentence
    assert len(sentence.splitlines()) == 1
    assert not list(tmp_path.iterdir())  # nothing half written


def test_an_archive_with_a_path_outside(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("bad.zip", "w") as archive:
        archive.writestr("../evil.png", "x")
    assert "../evil.png" in fails(capsys, "download", "--archive", "bad.zip", "--dest", "data")
    assert [p.name for p in tmp_path.iterdir()] == ["bad.zip"]


def test_unknown_backbone_writes_nothing(capsys, faces, tmp_path):
    args = ["train", "--data-dir", faces, "--output-dir", tmp_path / "out", "--backbone", "vgg99"]
    assert "unknown backbone 'vgg99'" in fails(capsys, *args)
    assert not (tmp_path / "out").exists()


def test_wrong_flag_and_wrong_choice(capsys):
    assert "--no-such" in fails(capsys, "train", "--no-such", "1")
    fails(capsys, "evaluate", "--run", "x", "--split", "dev")


def test_underscores_are_accepted_for_hyphens(capsys, faces):
    main(["check", "--data_dir", str(faces)])
    assert "csv layout" in capsys.readouterr().out


def test_help_of_every_command_in_a_fresh_process():
    done = subprocess.run([sys.executable, "-m", "emo", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    for command in "download synth check train evaluate export predict live bench".split():
        assert command in done.stdout


def test_check_reports_and_fills_the_quarantine(capsys, faces, tmp_path):
    root = shutil.copytree(faces, tmp_path / "faces", ignore=shutil.ignore_patterns(".emo"))
    paths = sorted((root / "images").iterdir())
    paths[0].write_bytes(b"no image")
    paths[1].write_bytes(paths[2].read_bytes())
    main(["check", "--data-dir", str(root), "--drop-duplicates"])
    out = capsys.readouterr().out
    assert re.search(r"kept +240\nin all +240", out)
    assert re.search(r"skipped everywhere: not an image +1\n", out)
    assert "2 images in quarantine" in out
    assert (root / ".emo" / "classes.png").stat().st_size > 10_000
    main(["check", "--data-dir", str(root)])  # the list is made anew, and nothing gets lost
    assert "1 images in quarantine" in capsys.readouterr().out
    main(["synth", "--dest", str(tmp_path / "new"), "--count", "8"])
    assert re.search(r"in all +8", capsys.readouterr().out)


def test_synth_films_a_face_with_its_truth(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, "animate", partial(synth.animate, seconds=2, size=(120, 160)))
    main(["synth", "--dest", str(tmp_path / "face.webm")])
    assert "exists already" in fails(capsys, "synth", "--dest", tmp_path / "face.webm")
    truth = pd.read_csv(tmp_path / "face.csv")
    with Camera(tmp_path / "face.webm") as film:
        frames = list(film)
    assert len(frames) == len(truth) == 30 and frames[0][0].shape == (120, 160, 3)
    assert set(truth["emotion"]) == set(range(8))
    assert [time for _, time in frames] == pytest.approx(truth["time"].tolist(), abs=0.01)


def test_without_a_model_the_starter_reads_and_says_so(capsys, tmp_path, face_model):
    picture = synth.render(synth.sample("Happy", seed=4, frontal=True), 320)
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    main(["predict", str(tmp_path / "a.png")])
    said = capsys.readouterr()
    assert "the starter model reads the faces" in said.err
    assert "derived from the class" in said.out
