"""Draw docs/faces.jpg, the README's picture: `python docs/draw_faces.py`."""

from pathlib import Path

import cv2
import numpy as np

from emo import synth
from emo.emotions import EMOTIONS

PEOPLE = (3, 16, 10, 22, 12, 47)  # one row each; a person is a number, so the sheet is reproducible


def sheet(size=150):
    """Return the BGR sheet: a row a person, a column an emotion, in AffectNet's order."""
    rows = []
    for person in PEOPLE:
        faces = [
            synth.sample(name, seed=1000 * person + i, identity=person, frontal=True)
            for i, name in enumerate(EMOTIONS)
        ]
        rows.append(np.hstack([synth.render(face | {"scale": 0.66}, size) for face in faces]))
    strip = np.full((26, rows[0].shape[1], 3), 255, np.uint8)
    for i, name in enumerate(EMOTIONS):
        place = (i * size + 8, 18)
        cv2.putText(strip, name, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack([strip, *rows])


if __name__ == "__main__":
    cv2.imwrite(str(Path(__file__).with_name("faces.jpg")), sheet(), [cv2.IMWRITE_JPEG_QUALITY, 85])
