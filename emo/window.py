"""The live demo outside the notebook: an OpenCV window, or a film without one."""

import os
import shutil
import sys
import time
from collections import deque
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from itertools import count
from pathlib import Path
from queue import Empty, Queue
from threading import Event, Thread

import cv2
import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from emo import EmoError, faces, files, live

DRAWN = Path(__file__).with_name("assets") / "face.webm"  # emo synth --dest emo/assets/face.webm
WINDOW = "emo"
TOGGLES = {"v": "plane", "p": "bars"}  # key → part of the overlay
PATIENCE = 10  # seconds that a lost camera is waited for
ROOM = 5_000_000  # bytes left free by a film, which OpenCV would else cut off without a word


class Camera(AbstractContextManager):
    """Frames (H, W, 3) BGR with their time in seconds, from a webcam, a film or a drawn face.

    `source` is a camera's number ("0") or address (http://…, rtsp://…), a film's path, or
    "synthetic", which `loop` starts again and again. Iterate once, in a `with` block. `truth`: a
    drawn face's latest label, else None. A webcam is read ahead and gives its newest frame.
    """

    def __init__(self, source="0", loop=False):
        self.source, self.truth, self._capture = str(source), None, cv2.VideoCapture()
        self.is_webcam, self._truths = self.source.isdigit() or "://" in self.source, []
        if self.source == "synthetic":
            source = DRAWN
            self._truths = pd.read_csv(DRAWN.with_suffix(".csv")).to_dict("records")
        if not self.is_webcam and not Path(source).is_file():
            raise EmoError(f"{self.source!r} is no camera number, no film and not 'synthetic'")
        self._loop = loop and bool(self._truths)
        self._address = int(source) if self.source.isdigit() else str(source)
        self._closed, self._newest, self._began = Event(), Queue(1), time.monotonic()
        self._reader = Thread(target=self._read_ahead, daemon=True)
        if not self._open():
            cure = "close other programs that use it, or try another or --camera synthetic"
            raise EmoError(f"--camera {self.source} could not be opened; {cure}")
        self.fps = next(f for f in (self._capture.get(cv2.CAP_PROP_FPS), 30.0) if 1 <= f <= 240)
        self.frames = max(int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0) or None
        self.is_webcam = self.is_webcam and not self.frames  # else the address is that of a film

    def _open(self):
        waits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, 3000, cv2.CAP_PROP_READ_TIMEOUT_MSEC, 3000]
        with nullcontext() if self._reader.ident else faces.quiet_stderr():  # whose lock faces need
            return self._capture.open(self._address, 0, waits if "://" in self.source else [])

    def __iter__(self):
        if self.is_webcam:
            return (yield from self._live_frames())
        for number in count():
            good, frame = self._capture.read()
            if not good and self._loop and self._capture.set(cv2.CAP_PROP_POS_FRAMES, 0):
                good, frame = self._capture.read()
            if not good:
                return
            self.truth = self._truths[number % len(self._truths)] if self._truths else None
            yield frame, number / self.fps

    def _live_frames(self):
        """Yield the newest frame, or a picture that says that none comes; end after `PATIENCE`."""
        size, seconds, missed = (cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_WIDTH), 0.0, 0
        frame = np.zeros([*(int(self._capture.get(side)) or 480 for side in size), 3], np.uint8)
        self._reader.start()
        while missed < PATIENCE:
            try:
                (frame, seconds), missed = self._newest.get(timeout=1), 0
            except Empty:
                frame, seconds, missed = np.zeros_like(frame), seconds + 1, missed + 1
                text = f"no picture from the camera ({missed} of {PATIENCE} s)"
                print(text)
                live.write_text(frame, text, (10, 40), len(frame) / 480)
            yield frame, seconds
        print(f"camera {self.source} is lost; plug it in and start again")

    def _read_ahead(self):
        """Keep only the newest frame, so that no answer is late; open a lost camera again."""
        while not self._closed.is_set():
            good, frame = self._capture.read()
            if good:
                with suppress(Empty):
                    self._newest.get_nowait()  # nobody took it in time
                self._newest.put((frame, time.monotonic() - self._began))
            elif not self._closed.wait(0.5):
                self._open()

    def __exit__(self, *exception):
        self._closed.set()
        if self._reader.ident:  # it was started; a network may keep it waiting
            self._reader.join(PATIENCE)
        if not self._reader.is_alive():
            self._capture.release()


@contextmanager
def film_writer(path, fps):
    """Yield a function that adds BGR frames of one size to a .mp4 or .webm, all or nothing."""
    codecs = {".mp4": "vp09", ".webm": "VP90"}  # VP9, because browsers play it
    if (suffix := Path(path).suffix) not in codecs:
        raise EmoError(f"cannot record to {path}; the name must end in .mp4 or .webm")
    with files.atomic_path(path) as temporary:
        film, code, full = cv2.VideoWriter(), cv2.VideoWriter.fourcc(*codecs[suffix]), False

        def write(frame_bgr):
            nonlocal full
            full = full or shutil.disk_usage(temporary.parent).free < ROOM
            if full:
                return
            size = frame_bgr.shape[1::-1]
            with nullcontext() if film.isOpened() else faces.quiet_stderr():  # WebM: no such tag
                if not film.isOpened() and not film.open(str(temporary), code, fps, size):
                    raise EmoError(f"this OpenCV cannot write such a film to {path}")
            film.write(frame_bgr)

        try:
            yield write
            why = "the disk is full" if full else "no frame came"
            if not film.isOpened():
                raise EmoError(f"{why}, so {path} was not written")
            if full:
                print(f"{why}: {path} ends early")
        finally:
            film.release()


def run_live(pipeline, camera, *, headless=False, record=None, log=None, on_faces=None):
    """Run the demo until the film ends, q is pressed or the window is closed.

    Keys: q quit, v valence–arousal plane, p bars, s screenshot. `record` writes the annotated
    film (VP9), `log` a CSV of numbers. Returns the table of all faces (see `faces_table`).
    """
    seen, written, times = [], 0, deque([time.perf_counter()], maxlen=30)  # of frames shown
    view = dict.fromkeys(TOGGLES.values(), True) | {"va": pipeline.recognizer.va}
    pause = 0 if camera.is_webcam else 1 / camera.fps  # other frames come at their film's own speed
    frames = tqdm(camera, "Frames", camera.frames, unit="frame", disable=not headless)
    recording = film_writer(record, camera.fps) if record else nullcontext()
    with recording as write, nullcontext() if headless else _window(), frames:
        try:  # inside, so that Ctrl-C keeps the film
            for frame, seconds in frames:
                found = pipeline.process(frame, seconds)
                seen += found
                if on_faces is not None:
                    on_faces(found, camera.truth)
                rate = (len(times) - 1) / max(times[-1] - times[0], 1e-9)
                view["note"] = "" if headless else f"{rate:.0f} FPS"
                canvas = live.draw_overlay(frame, found, **view) if write or not headless else None
                due = round(seconds * camera.fps) + 1  # a webcam's frames come as they like
                while write and written < due:
                    write(canvas)
                    written += 1
                if not headless and not _show(canvas, view, times[-1] + pause):
                    break
                times.append(time.perf_counter())
        except KeyboardInterrupt:
            print("stopped")
    table = live.faces_table(seen)
    if log:
        with files.atomic_path(log) as temporary:
            table.to_csv(temporary, index=False)
    return table


def _show(canvas, view, due):
    """Show one frame till the time `due` and act on keys; False ends the demo."""
    cv2.imshow(WINDOW, canvas)
    key = chr(cv2.waitKey(max(1, round(1000 * (due - time.perf_counter())))) & 0xFF)
    if key in TOGGLES:
        view[TOGGLES[key]] = not view[TOGGLES[key]]
    elif key == "s":
        name = f"screenshot-{time.strftime('%Y%m%d-%H%M%S')}.png"
        with files.atomic_path(name) as temporary:
            cv2.imwrite(str(temporary), canvas)
        print(f"wrote {name}")
    with suppress(cv2.error):  # a window that was closed may be unknown by now
        return key != "q" and cv2.getWindowProperty(WINDOW, cv2.WND_PROP_VISIBLE) >= 1
    return False


@contextmanager
def _window():
    """Open the window, or refuse before OpenCV aborts the whole process for want of a screen."""
    if sys.platform == "linux" and not any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY"))):
        raise EmoError("there is no display for a window; use --headless with --record or --log")
    if not cv2.currentUIFramework():  # a headless OpenCV has the functions, but they raise
        raise EmoError("this OpenCV has no windows; install opencv-contrib-python")
    cv2.namedWindow(WINDOW, cv2.WINDOW_GUI_NORMAL | cv2.WINDOW_AUTOSIZE)
    try:
        yield
    finally:
        cv2.destroyAllWindows()
