"""What a camera, a room and a class do to the live demo; nothing of it may stop or swell it."""

import os
import threading

import cv2
import numpy as np
import psutil
import pytest

from emo import MediaPipeFaceDetector, create_recognizer, synth
from emo.live import LivePipeline, draw_overlay
from emo.window import Camera

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pipeline(run, face_model):
    with MediaPipeFaceDetector() as detector:
        yield LivePipeline(create_recognizer(run / "model_weights.pth"), detector)


def portrait(size=320, **more):
    return synth.render(synth.sample("Happy", seed=4, frontal=True) | more, size)


def crowd(columns, rows, size):
    faces = [
        synth.render(synth.sample(i % 8, seed=i, frontal=True), size) for i in range(columns * rows)
    ]
    lines = [np.hstack(faces[i : i + columns]) for i in range(0, len(faces), columns)]
    return np.vstack(lines)


SCENES = {
    "black": np.zeros((480, 640, 3), np.uint8),
    "white": np.full((480, 640, 3), 255, np.uint8),
    "noise": np.random.default_rng(0).integers(0, 256, (480, 640, 3)).astype(np.uint8),
    "one pixel": np.zeros((1, 1, 3), np.uint8),
    "a line": np.zeros((480, 1, 3), np.uint8),
    "4K": np.zeros((2160, 3840, 3), np.uint8),
}


@pytest.mark.parametrize("name", SCENES)
def test_a_scene_without_a_face(name, pipeline):
    pipeline.reset()
    faces = pipeline.process(SCENES[name], 0.0)
    assert draw_overlay(SCENES[name], faces).shape == SCENES[name].shape
    assert not faces or name == "noise"


def test_thirty_faces_are_ten_at_most(pipeline):
    pipeline.reset()
    frame = crowd(6, 5, 160)
    faces = pipeline.process(frame, 0.0)
    assert 2 <= len(faces) <= 10
    assert len({face.track for face in faces}) == len(faces)
    draw_overlay(frame, faces, va="annotated")


@pytest.mark.parametrize("angle", [0, 90, 180, 270])
def test_a_turned_face_is_found_or_not(angle, pipeline):
    pipeline.reset()
    frame = np.rot90(portrait(), angle // 90).copy()
    faces = pipeline.process(frame, 0.0)
    assert all(np.isfinite(face.probabilities).all() for face in faces) and (angle or faces)


def test_frames_may_change_their_size(pipeline):
    pipeline.reset()
    for i, size in enumerate((320, 97, 480, 640, 33)):
        frame = cv2.resize(portrait(), (size, size))
        draw_overlay(frame, pipeline.process(frame, i / 10), va="annotated")


def test_a_clock_that_jumps(pipeline):
    pipeline.reset()
    for seconds in (0.0, 0.0, 100.0, 3.0, 1e9):
        (face,) = pipeline.process(portrait(), seconds)
        assert np.isfinite(face.probabilities).all()


def test_the_model_file_is_replaced_while_it_runs(run, pipeline, tmp_path, face_model):
    path = tmp_path / "model.pth"
    path.write_bytes((run / "model_weights.pth").read_bytes())
    live = LivePipeline(create_recognizer(path), pipeline.detector)
    before = live.process(portrait(), 0.0)[0].probabilities
    os.replace(_garbage(tmp_path), path)
    live.reset()
    assert np.array_equal(live.process(portrait(), 0.0)[0].probabilities, before)


def _garbage(folder):
    (folder / "new").write_bytes(b"half a model")
    return folder / "new"


def test_5000_frames_leave_nothing_behind(pipeline):
    pipeline.reset()
    process, frames = psutil.Process(), [portrait(160), SCENES["black"][:160, :160].copy()]
    for i in range(5000):
        pipeline.process(frames[i // 10 % 2], i / 15)
        if i == 500:
            start = process.memory_info().rss, threading.active_count(), process.num_fds()
    end = process.memory_info().rss, threading.active_count(), process.num_fds()
    assert end[0] - start[0] < 20e6 and end[1:] == start[1:]
    assert len(pipeline._known) <= 1


def test_a_film_with_an_impossible_rate_is_shown_at_thirty(tmp_path):
    film = cv2.VideoWriter(str(tmp_path / "a.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 0.2, (64, 48))
    for _ in range(3):
        film.write(np.zeros((48, 64, 3), np.uint8))
    film.release()
    with Camera(tmp_path / "a.avi") as camera:
        assert camera.fps == 30 and len(list(camera)) == 3
