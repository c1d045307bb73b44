"""Find faces with MediaPipe and cut them out as the model saw them. Used from notebooks/06."""

import os
import threading
import weakref
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from operator import attrgetter

import cv2
import numpy as np

from emo import EmoError, download

DEFAULT_MARGIN = 0.2  # of the box's longer side, added on each of the four sides
_place = attrgetter("origin_x", "origin_y", "width", "height")  # of MediaPipe's bounding box
_one_at_a_time = threading.RLock()  # for `quiet_stderr`: the process has one stderr


def crop_face(image_bgr, bbox, margin=DEFAULT_MARGIN):
    """Cut a square round the middle of `bbox` (x, y, width, height), `margin` wider a side."""
    x, y, width, height = bbox
    side = max(int(round(max(width, height) * (1 + 2 * margin))), 1)
    left, top = int(round(x + width / 2 - side / 2)), int(round(y + height / 2 - side / 2))
    rows, columns = image_bgr.shape[:2]
    inside = image_bgr[max(top, 0) : top + side, max(left, 0) : left + side]
    if top + side <= 0 or left + side <= 0 or not inside.size:
        raise EmoError(f"the box {tuple(bbox)} lies outside the image of {columns}×{rows} pixels")
    # Outside the image its border is repeated, so that a face at the edge keeps its shape.
    padding = np.maximum((-top, top + side - rows, -left, left + side - columns), 0)
    return cv2.copyMakeBorder(inside, *padding, cv2.BORDER_REPLICATE)


class MediaPipeFaceDetector(AbstractContextManager):
    """Detect faces in BGR images; a box is (x, y, width, height) in pixels, brow to chin.

    BlazeFace short range: within about two metres. Threads may share it; use `with` or `close()`.
    """

    crop_face = staticmethod(crop_face)

    def __init__(self, min_detection_confidence=0.5):
        if not 0 <= min_detection_confidence <= 1:
            raise EmoError(f"min_detection_confidence takes 0 to 1, not {min_detection_confidence}")
        from mediapipe.tasks.python import BaseOptions, vision

        # As bytes, because a path with non-ASCII characters fails on Windows.
        base = BaseOptions(model_asset_buffer=download.face_model_path().read_bytes())
        setup = vision.FaceDetectorOptions(base, min_detection_confidence=min_detection_confidence)
        with quiet_stderr():
            self._detector = vision.FaceDetector.create_from_options(setup)
            # At exit at the latest: MediaPipe's own clean-up fails once the interpreter goes.
            self.close = weakref.finalize(self, _close_quietly, self._detector)

    def detect(self, image_bgr):
        """Return a list of (bbox, score) for a BGR uint8 image (H, W, 3), largest face first."""
        import mediapipe

        shape = getattr(image_bgr, "shape", None)
        if shape is None or shape[2:] != (3,):
            raise EmoError(f"expected a BGR image (H, W, 3), got {shape}")
        rgb = np.ascontiguousarray(cv2.cvtColor(image_bgr, cv2.COLOR_BGR2RGB))
        image = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=rgb)
        with quiet_stderr():  # a warning may come with any frame
            found = self._detector.detect(image).detections
        faces = [(_place(f.bounding_box), float(f.categories[0].score)) for f in found]
        return sorted(faces, key=lambda face: -face[0][2] * face[0][3])

    def detect_single_face(self, image_bgr):
        """Return (bbox, score) of the largest face, or (None, None)."""
        return next(iter(self.detect(image_bgr)), (None, None))

    def __exit__(self, *exception):
        self.close()


def measure_crop_margin(faces_bgr, detector):
    """Return the median margin of these crops (H, W, 3) for `crop_face`; None below ten boxes."""
    margins = []
    for face in faces_bgr:
        scale = 192 / max(face.shape[:2])
        large = cv2.resize(face, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
        padded = cv2.copyMakeBorder(large, 64, 64, 64, 64, cv2.BORDER_REPLICATE)
        bbox, _ = detector.detect_single_face(padded)
        if bbox is not None:
            margins.append((max(large.shape[:2]) / max(bbox[2:]) - 1) / 2)
    return float(np.clip(np.median(margins), 0, 1)) if len(margins) >= 10 else None


def _close_quietly(detector):
    with quiet_stderr(), suppress(RuntimeError):  # at exit MediaPipe's threads may be gone
        detector.close()


@contextmanager
def quiet_stderr():
    """Hide what C++ libraries write to the process's stderr: their log would frighten a class."""
    with _one_at_a_time, ExitStack() as afterwards:  # threads take turns, and so in MediaPipe
        with suppress(OSError):  # a process without a stderr has nothing to hide
            kept = os.dup(2)
            afterwards.callback(os.close, kept)
            afterwards.callback(os.dup2, kept, 2)  # the last one is called first
            with open(os.devnull, "w") as null:
                os.dup2(null.fileno(), 2)
        yield
