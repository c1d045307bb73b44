import numpy as np
import pytest

from emo import EmoError, MediaPipeFaceDetector, synth
from emo.faces import crop_face, measure_crop_margin
from emo.live import overlap


@pytest.fixture(scope="module")
def detector(face_model):
    with MediaPipeFaceDetector() as detector:
        yield detector


def scene():
    frame, truth = next(iter(synth.animate(seconds=1, fps=2)))
    return frame, truth["bbox"]


def test_detects_the_face_and_nothing_on_an_empty_wall(detector):
    frame, box = scene()
    ((bbox, score),) = detector.detect(frame)
    assert overlap(bbox, box) > 0.5
    assert 0.5 <= score <= 1
    assert detector.detect_single_face(frame) == (bbox, score)
    wall = np.full((200, 300, 3), 127, np.uint8)
    assert detector.detect(wall) == []
    assert detector.detect_single_face(wall) == (None, None)


def test_largest_face_first(detector):
    frame, _ = scene()
    small = frame[::2, ::2]
    pair = np.full((frame.shape[0], frame.shape[1] + small.shape[1], 3), 127, np.uint8)
    pair[: small.shape[0], : small.shape[1]] = small
    pair[:, small.shape[1] :] = frame
    boxes = [bbox for bbox, _ in detector.detect(pair)]
    assert len(boxes) == 2
    assert boxes[0][2] > boxes[1][2]


def test_crop_is_a_centred_square_with_margin(detector):
    image = np.zeros((100, 100, 3), np.uint8)
    image[40:60, 45:55] = 255
    crop = crop_face(image, (45, 40, 10, 20), margin=0.5)
    assert crop.shape == (40, 40, 3)
    assert crop[10:30, 15:25].min() == 255
    assert crop.sum() == image.sum()
    assert np.array_equal(detector.crop_face(image, (45, 40, 10, 20), 0.5), crop)


def test_crop_at_the_edge_repeats_the_border():
    image = np.arange(100, dtype=np.uint8).reshape(10, 10)[..., None].repeat(3, axis=2)
    crop = crop_face(image, (-5, -5, 10, 10), margin=0)
    assert crop.shape == (10, 10, 3)
    assert (crop[:5, :5] == image[0, 0]).all()
    assert np.array_equal(crop[5:, 5:], image[:5, :5])
    with pytest.raises(EmoError, match="outside"):
        crop_face(image, (50, 50, 5, 5))


def test_margin_is_measured_from_how_faces_are_cut(detector):
    frame, _ = scene()
    bbox, _ = detector.detect_single_face(frame)
    for margin in (0.1, 0.4):
        crops = [crop_face(frame, bbox, margin)] * 12
        assert measure_crop_margin(crops, detector) == pytest.approx(margin, abs=0.08)
    assert measure_crop_margin([np.zeros((40, 40, 3), np.uint8)] * 12, detector) is None


def test_bad_input(face_model):
    with pytest.raises(EmoError, match="0 to 1"):
        MediaPipeFaceDetector(min_detection_confidence=2)
    with MediaPipeFaceDetector() as detector, pytest.raises(EmoError, match="BGR"):
        detector.detect(np.zeros((5, 5), np.uint8))
    detector.close()  # a second time does nothing
