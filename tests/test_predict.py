import csv
import json
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest

from emo import EmoError, MediaPipeFaceDetector, create_recognizer, synth
from emo.cli import main
from emo.emotions import EMOTIONS, PROBABILITY_COLUMNS
from emo.predict import TOGETHER, find_files, predict_files, table_of
from emo.window import film_writer


def emo(*args):
    main([str(a) for a in args])


@pytest.fixture(scope="module")
def recognizer(run):
    return create_recognizer(run / "best_model.pth")


@pytest.fixture(scope="module")
def scene():
    """One frame (480, 640, 3) with a face."""
    return next(iter(synth.animate(seconds=1, fps=1)))[0]


@pytest.fixture
def album(scene, tmp_path):
    """A folder with photos of one, two and no faces, a film, and files that are neither."""
    root = tmp_path / "album"
    (root / "sub").mkdir(parents=True)
    cv2.imwrite(str(root / "one.png"), scene)
    cv2.imwrite(str(root / "sub" / "two.jpg"), np.hstack([scene[:, 120:520]] * 2))
    cv2.imwrite(str(root / "wall.png"), np.full((99, 99, 3), 127, np.uint8))
    (root / "text.png").write_text("hello")
    (root / "notes.txt").write_text("hello")
    (root / ".hidden.png").write_text("hello")
    (root / "broken.mp4").write_text("hello")
    with film_writer(root / "film.mp4", 10) as write:
        for _ in range(TOGETHER + 3):
            write(scene)
    return root


def test_files_folders_and_patterns(album):
    names = [path.relative_to(album).as_posix() for path in find_files([album])]
    assert names == ["broken.mp4", "film.mp4", "one.png", "sub/two.jpg", "text.png", "wall.png"]
    assert find_files([album / "notes.txt", album / "notes.txt"]) == [album / "notes.txt"]
    assert find_files([f"{album}/**/t*.jpg"]) == [album / "sub" / "two.jpg"]
    for nothing in (f"{album}/*.gif", "nowhere", album.parent / "empty"):
        (album.parent / "empty").mkdir(exist_ok=True)
        with pytest.raises(EmoError, match="is no file, and no folder or pattern"):
            find_files([nothing])


def test_one_row_a_face(recognizer, face_model, album, scene):
    with MediaPipeFaceDetector() as detector:
        rows = predict_files(recognizer, find_files([album]), detector)
        (alone,) = recognizer.recognize(scene, detector)
    table = table_of(rows)
    of = {path[len(str(album)) + 1 :]: part for path, part in table.groupby("image_path")}
    assert {name: len(part) for name, part in of.items() if name != "film.mp4"} == {
        **dict.fromkeys(("one.png", "text.png", "wall.png", "broken.mp4"), 1),
        "sub/two.jpg": 2,
    }
    notes = {name: part["note"].iloc[0] for name, part in of.items()}
    assert notes["text.png"] == notes["broken.mp4"] == "unreadable"
    assert notes["wall.png"] == "no face found"
    assert len(of["film.mp4"]) == TOGETHER + 3
    assert of["film.mp4"]["time"].tolist() == pytest.approx(np.arange(TOGETHER + 3) / 10)
    assert of["sub/two.jpg"]["face"].tolist() == [0, 1]
    row = next(row for row in rows if row["image_path"].endswith("one.png"))
    assert {n: row[n] for n in ("bbox", "score", "emotion")}.items() <= alone.items()
    flat = of["one.png"].iloc[0]
    assert tuple(flat[["x", "y", "width", "height"]]) == alone["bbox"]
    shares = list(alone["probabilities"].values())  # of a batch of one: sums in another order
    assert flat[list(PROBABILITY_COLUMNS)].tolist() == pytest.approx(shares, abs=1e-5)


def test_no_file_gives_no_row(recognizer):
    assert predict_files(recognizer, []) == []
    assert table_of([]).empty


def test_crops_need_no_detector(recognizer, album):
    (row,) = predict_files(recognizer, [album / "one.png"])
    assert row["emotion"] in EMOTIONS
    assert "bbox" not in row


def test_annotated_copies(recognizer, face_model, album, tmp_path):
    with MediaPipeFaceDetector() as detector:
        files = find_files([album])
        predict_files(recognizer, files, detector, tmp_path / "copies")
        with pytest.raises(EmoError, match="would replace"):
            predict_files(recognizer, files, detector, album)
    copies = sorted(p.name for p in (tmp_path / "copies").rglob("*.*"))
    assert copies == ["one.png", "two.jpg", "wall.png"]  # of a film: emo live --record
    before, after = (cv2.imread(str(p / "one.png")) for p in (album, tmp_path / "copies"))
    assert before.shape == after.shape
    assert (before != after).any()


def test_ctrl_c_keeps_what_is_done(recognizer, album, monkeypatch, capsys):
    answers, calls = recognizer.predict_batch, []

    def interrupted(tensors):
        if calls:
            raise KeyboardInterrupt
        calls.append(len(tensors))
        return answers(tensors)

    monkeypatch.setattr(recognizer, "predict_batch", interrupted)
    paths = []
    for i in range(2 * TOGETHER):
        paths.append(album / f"{i}.png")
        shutil.copy(album / "one.png", paths[-1])
    assert len(predict_files(recognizer, paths)) == TOGETHER
    assert f"stopped after {TOGETHER} images" in capsys.readouterr().err


def test_command(run, face_model, album, tmp_path, capsys):
    options = ("--model", run / "best_model.pth", album, "--output")
    emo("predict", *options, tmp_path / "faces.csv")
    printed = capsys.readouterr().out
    assert "skipped, because unreadable: " in printed
    with open(tmp_path / "faces.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == TOGETHER + 3 + 6
    assert {row["face"] for row in rows} == {"", "0", "1"}
    emo("predict", "--json", *options, tmp_path / "faces.json")
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "faces.json").read_text("utf-8"))
    assert [row["image_path"] for row in printed] == [row["image_path"] for row in rows]
    with pytest.raises(SystemExit):
        emo("predict", *options, tmp_path / "faces.txt")


@pytest.mark.slow
def test_processes_share_the_files(run, face_model, album, tmp_path):
    """As `accelerate launch` starts them: one table, as from one process."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes=2"]
    for name, start in (("one", [sys.executable]), ("two", launch)):
        command = [*start, "-m", "emo", "predict", "--model", run / "best_model.pth", album]
        command += ["--output", tmp_path / f"{name}.csv", "--annotate", tmp_path / name]
        subprocess.run(list(map(str, command)), check=True, capture_output=True, timeout=300)
    one, two = (
        sorted(csv.DictReader(open(tmp_path / f"{n}.csv", encoding="utf-8")), key=str)
        for n in ("one", "two")
    )
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert {k: v for k, v in a.items() if k[:4] in ("imag", "note", "face")} == {
            k: v for k, v in b.items() if k[:4] in ("imag", "note", "face")
        }
        if a["confidence"]:
            assert float(a["confidence"]) == pytest.approx(float(b["confidence"]), abs=1e-3)
    names = [sorted(p.name for p in (tmp_path / n).rglob("*.*")) for n in ("one", "two")]
    assert names[0] == names[1]
    assert len(names[0]) == 3
