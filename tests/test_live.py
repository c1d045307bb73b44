import http.server
import threading
import time
from functools import partial
from itertools import islice

import cv2
import numpy as np
import pandas as pd
import pytest

from emo import EmoError, MediaPipeFaceDetector, create_recognizer, synth, window
from emo.live import LivePipeline, draw_overlay, faces_table, overlap
from emo.window import Camera, film_writer, run_live


@pytest.fixture(scope="module")
def recognizer(run):
    return create_recognizer(run / "best_model.pth")


@pytest.fixture(scope="module")
def detector(face_model):
    with MediaPipeFaceDetector() as detector:
        yield detector


@pytest.fixture(scope="module")
def film():
    return list(synth.animate(seconds=3, fps=5))


def test_overlap_by_hand():
    assert overlap((0, 0, 2, 2), (0, 0, 2, 2)) == 1
    assert overlap((0, 0, 2, 2), (1, 0, 2, 2)) == pytest.approx(2 / 6)
    assert overlap((0, 0, 2, 2), (2, 0, 2, 2)) == 0


def test_one_face_keeps_its_number_and_box(recognizer, detector, film):
    pipeline = LivePipeline(recognizer, detector)
    for frame, truth in film:
        (face,) = pipeline.process(frame, truth["time"])
        assert face.track == 0
        assert face.state in ("ok", "not sure")
        assert overlap(face.bbox, truth["bbox"]) > 0.5
        assert face.probabilities.sum() == pytest.approx(1)


def test_without_smoothing_the_pipeline_repeats_the_recogniser(recognizer, detector, film):
    pipeline = LivePipeline(recognizer, detector, smoothing=0)
    for frame, truth in film[:3]:
        (face,) = pipeline.process(frame, truth["time"])
        (plain,) = recognizer.recognize(frame, detector)
        assert face.emotion == plain["emotion"]
        assert face.probabilities.tolist() == list(plain["probabilities"].values())
        assert face.valence == plain["valence"]


def test_smoothing_by_hand_and_calmer_than_raw(recognizer, detector, film):
    raw = LivePipeline(recognizer, detector, smoothing=0)
    calm = LivePipeline(recognizer, detector, smoothing=0.5)
    expected, values = None, {"raw": [], "calm": []}
    for frame, truth in film:
        a, b = raw.process(frame, truth["time"])[0], calm.process(frame, truth["time"])[0]
        keep = np.exp(-0.2 / 0.5)  # five frames a second
        expected = a.valence if expected is None else keep * expected + (1 - keep) * a.valence
        assert b.valence == pytest.approx(expected, abs=1e-6)
        values["raw"].append(a.valence)
        values["calm"].append(b.valence)
    assert np.abs(np.diff(values["calm"])).sum() < np.abs(np.diff(values["raw"])).sum()


def test_two_faces_keep_their_numbers_when_they_swap_size(recognizer, detector, film):
    frame, small = film[0][0], film[0][0][::2, ::2]
    wall = np.full((480, 1000, 3), 127, np.uint8)
    pipeline = LivePipeline(recognizer, detector)
    wall[:, :640], wall[:240, 660:980] = frame, small
    first = pipeline.process(wall, 0.0)
    second = pipeline.process(wall, 0.1)
    assert [face.track for face in first] == [face.track for face in second]
    gone = pipeline.process(np.full_like(wall, 127), 0.2)
    assert gone == []
    assert {f.track for f in pipeline.process(wall, 0.3)} == {f.track for f in first}
    later = pipeline.process(wall, 5.0)
    assert not {f.track for f in later} & {f.track for f in first}


def test_a_face_too_small_is_not_predicted(recognizer, film):
    class Far(MediaPipeFaceDetector):
        def detect(self, image_bgr):
            return [((5, 5, 20, 20), 0.9)]

    with Far() as detector:
        (face,) = LivePipeline(recognizer, detector).process(film[0][0], 0.0)
    assert face.state == "too small"
    assert face.emotion is None
    assert face.valence is None
    assert len(faces_table([face])) == 1
    assert draw_overlay(film[0][0], [face], va="annotated").shape == film[0][0].shape


def test_overlay_leaves_the_frame_alone_and_hides_what_is_not_known(recognizer, detector, film):
    frame = film[0][0].copy()
    faces = LivePipeline(recognizer, detector).process(frame, 0.0)
    with_plane = draw_overlay(frame, faces, va="derived")
    assert np.array_equal(frame, film[0][0])
    without = draw_overlay(frame, faces, va="none")
    corner = (slice(300, None), slice(480, None))
    assert np.array_equal(without[corner], frame[corner])
    assert not np.array_equal(with_plane[corner], frame[corner])
    plain = draw_overlay(frame, [], va="derived")
    assert np.array_equal(plain, frame)


def test_film_in_annotated_film_and_table_out(recognizer, detector, film, tmp_path):
    with film_writer(tmp_path / "in.mp4", 5) as write:
        for frame, _ in film:
            write(frame)
    pipeline = LivePipeline(recognizer, detector)
    options = {"record": tmp_path / "out.webm", "log": tmp_path / "out.csv", "headless": True}
    with Camera(tmp_path / "in.mp4") as camera:
        table = run_live(pipeline, camera, **options)
    assert table["face"].nunique() == 1
    assert len(table) == len(film)
    assert table["time"].is_monotonic_increasing
    saved = pd.read_csv(tmp_path / "out.csv")
    assert list(saved.columns) == list(table.columns)
    again = cv2.VideoCapture(str(tmp_path / "out.webm"))
    count = 0
    while again.read()[0]:
        count += 1
    assert count == len(film)
    code = int(again.get(cv2.CAP_PROP_FOURCC))
    assert code.to_bytes(4, "little").lower() == b"vp90"  # plays in browsers


def test_ctrl_c_keeps_film_and_table(recognizer, detector, tmp_path, capsys):
    def stop(faces, _):
        if faces[0].time > 1:
            raise KeyboardInterrupt

    files = {"record": tmp_path / "out.mp4", "log": tmp_path / "out.csv"}
    with Camera("synthetic") as camera:
        pipeline = LivePipeline(recognizer, detector)
        table = run_live(pipeline, camera, headless=True, on_faces=stop, **files)
    assert "stopped" in capsys.readouterr().out
    with Camera(files["record"]) as film:
        assert len(list(film)) == len(table) - 1 == len(pd.read_csv(files["log"])) - 1 > 10


def test_bad_input(recognizer, detector, tmp_path):
    with pytest.raises(EmoError, match="no camera number"):
        Camera("nowhere.mp4")
    (tmp_path / "text.mp4").write_text("hello")
    with pytest.raises(EmoError, match="could not be opened"):
        Camera(tmp_path / "text.mp4")
    with pytest.raises(EmoError, match=".mp4 or .webm"):
        film_writer(tmp_path / "out.gif", 5).__enter__()
    with pytest.raises(EmoError, match="no frame"), film_writer(tmp_path / "out.mp4", 5):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["text.mp4"]
    with pytest.raises(EmoError, match="smoothing"):
        LivePipeline(recognizer, detector, smoothing=-1)


def test_the_drawn_face_is_the_one_that_synth_draws():
    """The film beside the module can be made again: `emo synth --dest emo/assets/face.webm`."""
    with Camera("synthetic") as camera:
        seen = [(frame, at, camera.truth) for frame, at in camera]
    for i, (drawn, truth) in enumerate(synth.animate()):
        frame, at, known = seen[i]
        assert at == pytest.approx(truth["time"])
        assert tuple(known[name] for name in ("x", "y", "width", "height")) == truth["bbox"]
        assert known["emotion"] == truth["emotion"]
        assert known["valence"] == pytest.approx(truth["valence"], abs=1e-3)
        if i % 30 == 0:
            assert np.abs(frame.astype(int) - drawn).mean() < 4  # VP9 loses a little
    assert len(seen) == i + 1


def test_the_drawn_face_starts_again():
    with Camera("synthetic", loop=True) as camera:
        seen = [(frame, at, camera.truth) for frame, at in islice(camera, 190)]
    assert np.array_equal(seen[0][0], seen[180][0])
    assert seen[180][2] == seen[0][2]
    assert [at for _, at, _ in seen] == sorted(at for _, at, _ in seen)


class Stream(http.server.BaseHTTPRequestHandler):
    """A camera in the network: 25 frames a second; each is as bright as its number says."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        self.server.viewers += 1
        while not self.server.unplugged:
            if self.server.stalled and self.server.viewers == 1:
                time.sleep(0.1)
                continue
            self.server.count += 1
            picture = np.full((240, 320, 3), 3 * self.server.count % 250, np.uint8)
            data = cv2.imencode(".jpg", picture)[1].tobytes()
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
            self.wfile.write(head.encode() + data + b"\r\n")
            time.sleep(1 / 25)


class NetworkCamera:
    """A real stream that can be unplugged and plugged in again."""

    def __init__(self):
        self.port = 0
        self.plug_in()
        self.address = f"http://127.0.0.1:{self.port}/video"

    def plug_in(self):
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), Stream)
        self.server.handle_error = lambda *_: None  # whoever looked has gone
        self.server.unplugged, self.server.stalled = False, False
        self.server.count = self.server.viewers = 0
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def unplug(self):
        self.server.unplugged = True
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def network_camera():
    camera = NetworkCamera()
    yield camera
    camera.unplug()


def test_a_slow_viewer_sees_the_newest_frame(network_camera):
    late, start = [], time.monotonic()
    with Camera(network_camera.address) as camera:
        for frame, at in islice(camera, 6):
            late.append(network_camera.server.count - frame.mean() / 3)
            assert time.monotonic() - start - at < 1
            time.sleep(0.4)  # ten frames pass meanwhile
    assert max(late[1:]) <= 5, "a queue of frames would be ten longer each time"
    assert not camera._reader.is_alive()


def test_an_unplugged_camera_is_waited_for(network_camera, capsys):
    told, back = [], []
    with Camera(network_camera.address) as camera:
        for number, (frame, _) in enumerate(islice(camera, 60)):
            new = capsys.readouterr().out.splitlines()
            told += new
            if number == 3:
                network_camera.unplug()
            if new:
                assert frame.shape == (240, 320, 3) and frame.std() > 2, "the picture says so"
            if new and len(told) == 2:
                network_camera.plug_in()
            if told and not new:
                back.append(frame.mean())
            if len(back) == 5:
                break
    assert back == sorted(back) and len(back) == 5, told
    assert told[:2] == [f"no picture from the camera ({i} of 10 s)" for i in (1, 2)]


def test_a_stream_that_falls_silent_is_opened_again(network_camera, detector):
    """As when a phone leaves the network: the connection stays, and nothing comes."""
    bright = 0
    with Camera(network_camera.address) as camera:
        for number, (frame, seconds) in enumerate(islice(camera, 60)):
            network_camera.server.stalled |= number == 3
            start = time.monotonic()
            detector.detect(frame)  # must not wait for the connection
            assert time.monotonic() - start < 2
            bright += network_camera.server.viewers == 2 and frame.std() < 2
            if bright == 5:
                assert 2 < seconds < 15
                break
    assert bright == 5 and number < 30
    assert not camera._reader.is_alive()


def test_a_film_may_have_an_address(film, tmp_path):
    with film_writer(tmp_path / "film.webm", 5) as write:
        for frame, _ in film:
            write(frame)
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with Camera(f"http://127.0.0.1:{server.server_port}/film.webm") as camera:
            assert not camera.is_webcam and len(list(camera)) == len(film)
        server.shutdown()


def test_a_camera_that_is_not_there():
    with pytest.raises(EmoError, match="--camera 63 could not be opened"):
        Camera("63")


def test_a_lost_camera_ends_the_demo_with_its_files(
    recognizer, detector, network_camera, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(window, "PATIENCE", 2)
    threading.Timer(2, network_camera.unplug).start()
    files = {"record": tmp_path / "out.mp4", "log": tmp_path / "out.csv"}
    start = time.monotonic()
    with Camera(network_camera.address) as camera:
        run_live(LivePipeline(recognizer, detector), camera, headless=True, **files)
    seconds = time.monotonic() - start
    assert "is lost" in capsys.readouterr().out
    with Camera(files["record"]) as film:
        filmed = len(list(film)) / film.fps
    assert 2 < filmed < seconds, "the film follows the clock, pictures of the loss included"
    assert list(pd.read_csv(files["log"]))[:2] == ["time", "face"]
    network_camera.plug_in()
