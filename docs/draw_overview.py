"""Draw docs/overview.jpg, the README's picture: `python docs/draw_overview.py MODEL`.

Left a contact sheet of drawn people, right the live overlay on the simulated camera.
"""

import sys
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from emo import MediaPipeFaceDetector, create_recognizer, synth
from emo.emotions import EMOTIONS
from emo.live import LivePipeline, draw_overlay
from emo.window import Camera

# A person is a number, so the sheet is reproducible.
PEOPLE = (47, 10, 33, 27, 28, 16, 13, 39, 37, 2)
MOMENT = 136  # frame of the film: late in its anger


def sheet(size=112):
    """Return the BGR sheet: a row an emotion, in AffectNet's order, and a column a person."""
    rows = []
    for i, name in enumerate(EMOTIONS):
        label = np.full((size, 96, 3), 255, np.uint8)
        place = (6, size // 2 + 6)
        cv2.putText(label, name, place, cv2.FONT_HERSHEY_SIMPLEX, 0.55, (0, 0, 0), 1, cv2.LINE_AA)
        faces = [
            synth.sample(name, seed=1000 * person + i, identity=person, frontal=True)
            for person in PEOPLE
        ]
        pictures = [synth.render(face | {"scale": 0.66}, size) for face in faces]
        rows.append(np.hstack([label, *pictures]))
    return np.vstack(rows)


def live(model):
    """Return a frame of the simulated camera with what the model makes of it."""
    recognizer = create_recognizer(model)
    with Camera("synthetic") as camera, MediaPipeFaceDetector() as detector:
        pipeline = LivePipeline(recognizer, detector)
        for frame, seconds in islice(camera, MOMENT):
            faces = pipeline.process(frame, seconds)
    return draw_overlay(frame, faces, va=recognizer.va)


if __name__ == "__main__":
    left, right = sheet(), live(sys.argv[1])
    scale = left.shape[0] / right.shape[0]
    right = cv2.resize(right, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    picture = np.hstack([left, np.full((len(left), 24, 3), 255, np.uint8), right])
    picture = cv2.resize(picture, None, fx=0.7, fy=0.7, interpolation=cv2.INTER_AREA)
    path = Path(__file__).with_name("overview.jpg")
    cv2.imwrite(str(path), picture, [cv2.IMWRITE_JPEG_QUALITY, 85])
