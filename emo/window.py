"""The live demo outside the notebook: an OpenCV window, or a film without one."""

import os
import sys
import time
from collections import deque
from contextlib import AbstractContextManager, nullcontext
from itertools import count
from pathlib import Path

import cv2
from tqdm.auto import tqdm

from emo import synth
from emo.errors import EmoError
from emo.faces import quiet_stderr
from emo.files import atomic_path
from emo.live import draw_overlay, faces_table

WINDOW = "emo"
TOGGLES = {"v": "plane", "p": "bars"}  # key → part of the overlay


class Camera(AbstractContextManager):
    """Frames (H, W, 3) BGR with their time in seconds, from a webcam, a film or a drawn face.

    `source` is a camera's number ("0"), a film's path or "synthetic", which lasts `seconds`, or
    for ever with `loop`. Iterate once; use it as a context manager, so that the camera is
    released. `truth` is the label of a drawn face's latest frame, else None.
    """

    def __init__(self, source="0", seconds=12.0, loop=False):
        self.source, self.truth, self._capture = str(source), None, None
        self.is_webcam = self.source.isdigit()
        self.fps, self.frames = 15.0, None if loop else round(seconds * 15)
        self._seconds, self._loop = seconds, loop
        if self.source != "synthetic":
            self._open()

    def _open(self):
        if not self.is_webcam and not Path(self.source).is_file():
            raise EmoError(f"{self.source!r} is no camera number, no film and not 'synthetic'")
        self._capture = cv2.VideoCapture(int(self.source) if self.is_webcam else self.source)
        if not self._capture.isOpened():
            what = f"{'camera' if self.is_webcam else 'film'} {self.source} could not be opened"
            cure = "close other programs that use it, or try another number or --camera synthetic"
            raise EmoError(f"{what}; {cure}")
        self.fps = self._capture.get(cv2.CAP_PROP_FPS) or 30.0
        frames = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.frames = frames if frames > 0 and not self.is_webcam else None

    def __iter__(self):
        return self._filmed() if self._capture is not None else self._drawn()

    def _drawn(self):
        for lap in count() if self._loop else (0,):
            for frame, truth in synth.animate(seconds=self._seconds, fps=self.fps):
                self.truth = truth
                yield frame, truth["time"] + lap * self._seconds

    def _filmed(self):
        for number in count():
            good, frame = self._capture.read()
            if not good:
                return
            yield frame, time.monotonic() if self.is_webcam else number / self.fps

    def __exit__(self, *exception):
        if self._capture is not None:
            self._capture.release()


class FilmWriter:
    """Write BGR frames to .mp4 or .webm, whole or not at all; VP9 by default: browsers play it."""

    def __init__(self, path, fps, codec=None):
        self.path, self.fps, self._writer = Path(path), fps, None
        if self.path.suffix not in (".mp4", ".webm"):
            raise EmoError(f"cannot record to {path}; the name must end in .mp4 or .webm")
        self.codec = codec or ("vp09" if self.path.suffix == ".mp4" else "VP90")

    def __enter__(self):
        self._atomic = atomic_path(self.path)
        self._temporary = self._atomic.__enter__()
        return self

    def write(self, frame_bgr):
        """Append one frame; all must have the size of the first."""
        if self._writer is None:
            code, size = cv2.VideoWriter.fourcc(*self.codec), frame_bgr.shape[1::-1]
            with quiet_stderr():  # OpenCV notes that WebM has no such tag, and writes it
                self._writer = cv2.VideoWriter(str(self._temporary), code, self.fps, size)
            if not self._writer.isOpened():
                raise EmoError(f"this OpenCV cannot write {self.codec} films to {self.path}")
        self._writer.write(frame_bgr)

    def __exit__(self, kind, error, trace):
        if self._writer is not None:
            self._writer.release()
        elif kind is None:
            error = EmoError(f"no frame came, so {self.path} was not written")
            self._atomic.__exit__(EmoError, error, None)
            raise error
        return self._atomic.__exit__(kind, error, trace)


def run_live(pipeline, camera, *, headless=False, record=None, log=None, on_faces=None):
    """Run the demo until the film ends, q is pressed or the window is closed.

    Keys: q quit, v valence–arousal plane, p bars, s screenshot. `record` writes the annotated
    film (VP9), `log` a CSV of numbers. Returns the table of all faces (see `faces_table`).
    """
    if not headless:
        _require_display()
    view, seen, times = dict.fromkeys(TOGGLES.values(), True), [], deque(maxlen=30)
    bar = tqdm(total=camera.frames, desc="Frames", unit="frame", disable=not headless)
    writer = FilmWriter(record, camera.fps) if record else None
    shown = time.perf_counter()
    try:
        with writer or nullcontext(), bar:
            for frame, seconds in camera:
                faces = pipeline.process(frame, seconds)
                seen += faces
                if on_faces is not None:
                    on_faces(faces, camera.truth)
                times.append(time.perf_counter())
                if writer or not headless:
                    rate = (len(times) - 1) / max(times[-1] - times[0], 1e-9)
                    note = "" if headless else f"{rate:.0f} FPS"
                    va = pipeline.recognizer.va
                    canvas = draw_overlay(frame, faces, va=va, note=note, **view)
                if writer:
                    writer.write(canvas)
                if not headless and not _show(canvas, view, _pause(camera, shown)):
                    break
                shown = time.perf_counter()
                bar.update()
    except KeyboardInterrupt:
        print("stopped")
    finally:
        if not headless:
            cv2.destroyAllWindows()
    table = faces_table(seen)
    if log:
        with atomic_path(log) as temporary:
            table.to_csv(temporary, index=False)
    return table


def _show(canvas, view, pause):
    """Show one frame for `pause` milliseconds and act on keys; False ends the demo."""
    cv2.imshow(WINDOW, canvas)
    key = chr(cv2.waitKey(pause) & 0xFF)
    if key in TOGGLES:
        view[TOGGLES[key]] = not view[TOGGLES[key]]
    elif key == "s":
        name = f"screenshot-{time.strftime('%Y%m%d-%H%M%S')}.png"
        with atomic_path(name) as temporary:
            cv2.imwrite(str(temporary), canvas)
        print(f"wrote {name}")
    try:
        closed = cv2.getWindowProperty(WINDOW, cv2.WND_PROP_VISIBLE) < 1
    except cv2.error:
        closed = True
    return key != "q" and not closed


def _require_display():
    """Refuse before OpenCV aborts the whole process for want of a screen."""
    screen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if sys.platform.startswith("linux") and not screen:
        raise EmoError("there is no display for a window; use --headless with --record or --log")
    if "headless" in cv2.__file__ or not hasattr(cv2, "imshow"):
        raise EmoError("this OpenCV has no windows; install opencv-contrib-python")
    cv2.namedWindow(WINDOW, cv2.WINDOW_GUI_NORMAL | cv2.WINDOW_AUTOSIZE)


def _pause(camera, shown):
    """Milliseconds to wait: a film or a drawn face is shown at its own speed, not faster."""
    spare = 0 if camera.is_webcam else shown + 1 / camera.fps - time.perf_counter()
    return max(1, round(1000 * spare))
