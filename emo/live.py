"""One frame → faces, smoothed predictions, overlay. Built by hand in notebooks/06."""

import math
import time
from dataclasses import dataclass
from itertools import count

import cv2
import numpy as np
import pandas as pd

from emo import EmoError, emotions, recognize
from emo.faces import MediaPipeFaceDetector, crop_face

MIN_FACE = 32  # pixels; below this a face has too little detail to read
SAME_FACE = 0.3  # overlap (IoU) of boxes in successive frames that makes them one face
FORGET = 1.0  # seconds after which a face that went missing is a new one
BGR = {name: tuple(bytes.fromhex(code[1:]))[::-1] for name, code in emotions.COLOURS.items()}


@dataclass
class Face:
    """One face in one frame; numbers are smoothed over its track, None if nothing was predicted."""

    track: int
    bbox: tuple
    score: float
    time: float
    state: str = "too small"  # then nothing was predicted; else "ok" or "not sure"
    probabilities: np.ndarray | None = None  # (8,) in AffectNet's order
    emotion: str | None = None  # the most probable class, and its probability
    confidence: float | None = None
    valence: float | None = None
    arousal: float | None = None


class LivePipeline:
    """BGR frame → list of `Face`, averaged over `smoothing` seconds (0 = raw). Not thread-safe."""

    def __init__(self, recognizer, detector=None, *, smoothing=0.3, max_faces=10):
        if smoothing < 0:
            raise EmoError(f"smoothing is {smoothing} seconds; expected 0 (raw) or more")
        self.recognizer, self.smoothing, self.max_faces = recognizer, smoothing, max_faces
        self.detector = detector or MediaPipeFaceDetector()
        self.reset()

    def reset(self):
        """Forget all faces, as at the start of a new film."""
        self._known, self._numbers = {}, count()  # track → its latest `Face`

    def process(self, frame_bgr, seconds=None):
        """Return the faces of a BGR frame (H, W, 3) at `seconds` (default: now), largest first."""
        seconds = time.monotonic() if seconds is None else seconds  # on a clock that goes forward
        found = self.detector.detect(frame_bgr)[: self.max_faces]
        tracks = self._follow([bbox for bbox, _ in found], seconds)
        faces = [Face(t, *face, seconds) for t, face in zip(tracks, found, strict=True)]
        large = [face for face in faces if min(face.bbox[2:]) >= MIN_FACE]
        crops = [crop_face(frame_bgr, face.bbox, self.recognizer.crop_margin) for face in large]
        batch = self.recognizer.preprocessor.preprocess_batch(crops)
        for face, result in zip(large, self.recognizer.predict_batch(batch), strict=True):
            fill(face, result, self._known.get(face.track), self.smoothing)
        self._known |= {face.track: face for face in faces}
        return faces

    def _follow(self, boxes, seconds):
        """Return the track of the known face that each box overlaps most, or a new number."""
        known = {n: f for n, f in self._known.items() if seconds - f.time <= FORGET}
        pairs = [(overlap(f.bbox, b), n, i) for n, f in known.items() for i, b in enumerate(boxes)]
        found, self._known = {}, known  # box → track
        for iou, number, i in sorted(pairs, reverse=True):
            if iou >= SAME_FACE and i not in found and number not in found.values():
                found[i] = number
        return [found[i] if i in found else next(self._numbers) for i in range(len(boxes))]


def fill(face, result, before=None, smoothing=0.0):
    """Put a prediction into a `Face`, averaged over time with what it was before."""
    raw = np.array([*result["probabilities"].values(), result["valence"], result["arousal"]], float)
    if before is not None and before.probabilities is not None and smoothing > 0:
        keep = math.exp(-max(face.time - before.time, 0) / smoothing)  # alike at 5 and 30 FPS
        smooth = np.array([*before.probabilities, before.valence, before.arousal], float)
        raw = keep * smooth + (1 - keep) * raw
    face.probabilities, best = raw[:8], raw[:8].argmax()
    face.emotion, face.confidence = emotions.EMOTIONS[best], float(raw[best])
    face.valence, face.arousal = (None if math.isnan(v) else float(v) for v in raw[8:])  # was None
    face.state = "ok" if face.confidence >= recognize.NOT_SURE else "not sure"
    return face


def overlap(a, b):
    """Intersection over union of two boxes (x, y, width, height), in [0, 1]."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared) if shared else 0.0


def faces_table(faces):
    """Return one row a face: time, face, box, probabilities, valence, arousal. Numbers only."""
    columns = ["time", "face", "x", "y", "width", "height", "state", "emotion"]
    columns += [*emotions.PROBABILITY_COLUMNS, "valence", "arousal"]
    rows = []
    for f in faces:
        shares = [math.nan] * 8 if f.probabilities is None else f.probabilities
        rows.append((f.time, f.track, *f.bbox, f.state, f.emotion, *shares, f.valence, f.arousal))
    return pd.DataFrame(rows, columns=columns)


def draw_overlay(frame_bgr, faces, *, va="none", bars=True, plane=True, note=""):
    """Draw boxes, labels, bars and, unless the recogniser's `va` is "none", the plane on a copy."""
    canvas = frame_bgr.copy()
    unit = max(min(canvas.shape[:2]) / 480, 0.5)
    for face in faces:
        x, y, width, height = face.bbox
        colour = BGR[face.emotion] if face.state == "ok" else (160, 160, 160)
        cv2.rectangle(canvas, (x, y), (x + width, y + height), (255, 255, 255), int(4 * unit) + 1)
        cv2.rectangle(canvas, (x, y), (x + width, y + height), colour, int(2 * unit) + 1)
        label = face.state if face.state != "ok" else f"{face.emotion} {face.confidence:.0%}"
        write_text(canvas, label, (max(x, 2), max(y - int(8 * unit), int(18 * unit))), 1.2 * unit)
    predicted = faces and faces[0].emotion  # of the largest face
    if bars and predicted:
        _draw_bars(canvas, faces[0].probabilities, unit)
    if plane and predicted and va != "none":
        _draw_plane(canvas, faces, va, unit)
    write_text(canvas, note, (int(8 * unit), int(20 * unit)), unit)
    return canvas


def _draw_bars(canvas, probabilities, unit):
    left, line = int(8 * unit), int(17 * unit)
    top = canvas.shape[0] - 8 * line - int(6 * unit)
    canvas[max(top - 4, 0) : top + 8 * line + 4, left - 4 : left + int(202 * unit)] //= 3  # darker
    for i, name in enumerate(emotions.EMOTIONS):
        y = top + i * line
        bar = (left + int(84 * unit), y + 2, int(116 * unit * probabilities[i]) + 1, line - 4)
        cv2.rectangle(canvas, bar, BGR[name], -1)
        cv2.rectangle(canvas, bar, (255, 255, 255), 1)
        write_text(canvas, name, (left, y + int(12 * unit)), 0.85 * unit)


def _draw_plane(canvas, faces, va, unit):
    side, gap = int(130 * unit), int(8 * unit)
    left, top = canvas.shape[1] - side - gap, canvas.shape[0] - side - int(26 * unit)
    canvas[max(top, 0) : top + side, max(left, 0) : left + side] //= 3
    x, y = left + side // 2, top + side // 2
    cv2.drawMarker(canvas, (x, y), (200, 200, 200), cv2.MARKER_CROSS, side)
    for face in [face for face in faces if face.valence is not None]:
        point = (int(x + face.valence * side / 2), int(y - face.arousal * side / 2))
        cv2.circle(canvas, point, int(6 * unit), (255, 255, 255), -1, cv2.LINE_AA)
        cv2.circle(canvas, point, int(5 * unit), BGR[face.emotion], -1, cv2.LINE_AA)
    write_text(canvas, "arousal", (x + 3, top + int(12 * unit)), 0.7 * unit)
    write_text(canvas, "valence", (left + int(84 * unit), y - 3), 0.7 * unit)
    if va == "derived":
        write_text(canvas, "derived from class", (left, top + side + int(14 * unit)), 0.75 * unit)


def write_text(canvas, text, origin, unit):
    """Write on a picture, white with a dark outline; `unit` 1 suits a height of 480 pixels."""
    font, width = cv2.FONT_HERSHEY_SIMPLEX, max(round(unit), 1)
    for x, y, grey in ((-1, 0, 0), (1, 0, 0), (0, -1, 0), (0, 1, 0), (0, 0, 255)):  # outline first
        place = (origin[0] + x * width, origin[1] + y * width)
        cv2.putText(canvas, text, place, font, 0.5 * unit, [grey] * 3, width, cv2.LINE_AA)
