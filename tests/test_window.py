"""The OpenCV window and the film without one, as `emo live` runs them. Slow: needs Xvfb."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
import time

import cv2
import pandas as pd
import pytest
from conftest import missing
from test_camera import save_untrained

from emo import synth
from emo.emotions import PROBABILITY_COLUMNS

pytestmark = pytest.mark.slow

BARS, PLANE = (190, 400), (622, 334)  # a dark pixel of each part, where no dot comes (640×480)


@pytest.fixture(scope="module")
def model(tmp_path_factory, face_model):
    """An untrained model file."""
    path = tmp_path_factory.mktemp("model") / "model.pth"
    save_untrained(path)
    return path


@pytest.fixture(scope="module")
def display():
    """Number of a screen that nobody sees."""
    for program in ("Xvfb", "xdotool"):
        if shutil.which(program) is None:
            missing(f"no {program} on this machine (Debian: apt-get install xvfb xdotool)")
    reader, writer = os.pipe()
    command = ["Xvfb", "-displayfd", str(writer), "-screen", "0", "1280x1024x24"]
    server = subprocess.Popen(command, pass_fds=[writer], stderr=subprocess.DEVNULL)
    os.close(writer)
    with os.fdopen(reader) as number:
        yield f":{number.readline().strip()}"
    server.terminate()
    server.wait(10)


class Live:
    """`emo live` on the synthetic camera in its window."""

    def __init__(self, model, display, folder, *options):
        self.folder, self.env = folder, os.environ | {"DISPLAY": display}
        command = [sys.executable, "-m", "emo", "live", "--model", str(model)]
        command += ["--camera", "synthetic", *options]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        self.process = subprocess.Popen(command, cwd=folder, env=self.env, **pipes)
        self.window = self.xdotool("search", "--sync", "--onlyvisible", "--name", "^emo$").split()[
            0
        ]

    def xdotool(self, *words):
        done = subprocess.run(
            ["xdotool", *words], env=self.env, capture_output=True, text=True, timeout=120
        )
        return done.stdout

    def press(self, key):
        self.xdotool("windowfocus", "--sync", self.window, "key", key)
        time.sleep(1.5)  # of two keys during one slow frame, OpenCV reports only the last

    def screenshot(self):
        """Press s and return the picture that was written."""
        before = set(self.folder.glob("screenshot-*.png"))
        for _ in range(3):
            self.press("s")
            for _ in range(100):  # a second s would come later, with another view
                new = set(self.folder.glob("screenshot-*.png")) - before
                if new:
                    return cv2.imread(str(new.pop()))
                time.sleep(0.1)
        pytest.fail("s wrote no screenshot")

    def end(self):
        """Wait for the end; returns the exit code and all that was printed."""
        printed, _ = self.process.communicate(timeout=60)
        return self.process.returncode, printed


@pytest.fixture
def live(model, display, tmp_path):
    """Return a function that starts the demo; it is stopped at the end."""
    started = []

    def start(*options):
        started.append(Live(model, display, tmp_path, *options))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait(10)


def is_dark(picture, place):
    """Tell whether the panel lies over this pixel: it darkens the bright background."""
    return picture[place[1], place[0]].mean() < 80


def test_keys_of_the_window(live):
    demo = live("--log", "log.csv")
    picture = demo.screenshot()
    assert picture.shape[:2] == (480, 640)
    assert is_dark(picture, BARS) and is_dark(picture, PLANE)
    demo.press("v")
    picture = demo.screenshot()
    assert is_dark(picture, BARS) and not is_dark(picture, PLANE)
    demo.press("v")
    assert is_dark(demo.screenshot(), PLANE)
    demo.press("p")
    picture = demo.screenshot()
    assert not is_dark(picture, BARS) and is_dark(picture, PLANE)
    assert demo.process.poll() is None
    demo.press("q")
    code, printed = demo.end()
    assert code == 0 and "Traceback" not in printed
    assert len(re.findall(r"wrote screenshot-\d{8}-\d{6}\.png", printed)) >= 3
    table = pd.read_csv(demo.folder / "log.csv")
    expected = ["time", "face", "x", "y", "width", "height", "state", "emotion"]
    assert list(table) == [*expected, *PROBABILITY_COLUMNS, "valence", "arousal"]
    assert len(table) > 1 and table["face"].eq(0).all()


def test_closing_the_window_ends_the_demo(live):
    demo = live()
    demo.screenshot()
    ask_to_close(demo.env["DISPLAY"], int(demo.window))
    code, printed = demo.end()
    assert code == 0, printed
    count = int(re.search(r"(\d+) predictions of 1 faces", printed)[1])
    assert 0 < count < 180, "it ended before the film did"


def ask_to_close(display, window):
    """Send what a window manager sends when its cross is clicked."""
    x11 = ctypes.CDLL("libX11.so.6")
    x11.XOpenDisplay.restype = ctypes.c_void_p
    x11.XInternAtom.restype = ctypes.c_ulong
    screen = ctypes.c_void_p(x11.XOpenDisplay(display.encode()))
    atoms = [x11.XInternAtom(screen, name, 0) for name in (b"WM_PROTOCOLS", b"WM_DELETE_WINDOW")]

    class ClientMessage(ctypes.Structure):
        _fields_ = [("type", ctypes.c_int), ("serial", ctypes.c_ulong)]
        _fields_ += [("send_event", ctypes.c_int), ("display", ctypes.c_void_p)]
        _fields_ += [("window", ctypes.c_ulong), ("message_type", ctypes.c_ulong)]
        _fields_ += [("format", ctypes.c_int), ("data", ctypes.c_long * 5)]
        _fields_ += [("room", ctypes.c_long * 24)]  # XEvent is a union of this size

    message = ClientMessage(type=33, window=window, message_type=atoms[0], format=32)
    message.data[0] = atoms[1]
    x11.XSendEvent(screen, ctypes.c_ulong(window), 0, ctypes.c_long(0), ctypes.byref(message))
    x11.XCloseDisplay(screen)


def without_display(folder, model, *options):
    env = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")}
    command = [sys.executable, "-m", "emo", "live", "--model", str(model), *options]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)


def test_without_a_display_one_sentence_and_no_abort(model, tmp_path):
    done = without_display(tmp_path, model, "--camera", "synthetic")
    assert done.returncode == 2 and "no display" in done.stderr and "--headless" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_film_is_recorded_without_a_window(model, tmp_path):
    code = cv2.VideoWriter.fourcc(*"MJPG")
    source = cv2.VideoWriter(str(tmp_path / "source.avi"), code, 10, (320, 240))
    for frame, _ in synth.animate(seconds=2, fps=10, size=(240, 320)):
        source.write(frame)
    source.release()
    options = ["--camera", "source.avi", "--headless", "--record", "film.mp4", "--log", "log.csv"]
    done = without_display(tmp_path, model, *options)
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "log.csv")
    film = cv2.VideoCapture(str(tmp_path / "film.mp4"))
    assert film.isOpened() and film.get(cv2.CAP_PROP_FRAME_COUNT) == table["time"].nunique() == 20
    assert int(film.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little").lower() in (b"vp09", b"vp90")
    assert film.read()[1].shape == (240, 320, 3)
