"""Draw docs/faces.jpg, the README's picture: `python docs/draw_faces.py`."""

from pathlib import Path

import cv2
import numpy as np

from emo import synth
from emo.emotions import EMOTIONS

# A person is a number, so the sheet is reproducible.
PEOPLE = (47, 10, 33, 27, 28, 16, 13, 39, 37, 2)


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


if __name__ == "__main__":
    cv2.imwrite(str(Path(__file__).with_name("faces.jpg")), sheet(), [cv2.IMWRITE_JPEG_QUALITY, 85])
