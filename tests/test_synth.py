import subprocess
import sys

import cv2
import numpy as np
import pandas as pd
import pytest

from emo import EmoError, synth
from emo.emotions import CLASS_MEAN_VA

UPPER = ("AU1", "AU2", "AU4", "AU5", "AU7", "AU43")
LOWER = ("AU10", "AU12", "AU15", "AU17", "AU20", "AU23", "AU25", "AU26")
CHEEKS_AND_NOSE = ("AU6", "AU9")


def plain_face(**changes):
    """A frontal face at rest without noise, blur, beard, glasses and age."""
    face = synth.sample("Neutral", seed=3, identity=31, frontal=True)
    face |= dict.fromkeys(synth.ACTION_UNITS, 0.0)
    face |= dict.fromkeys(("yaw", "pitch", "roll", "x", "y", "blur", "noise", "beard", "age"), 0.0)
    face |= {"glasses": 0, "occlusion": 0, "jpeg": 100, "gaze_x": 0.0, "hair_style": 1}
    return face | {"light_x": 0.0, "jaw_width": 1.0, "scale": 0.6} | changes


def change(**units):
    """Energy that action units move, (224, 224), and the row of the nose's base."""
    before, after = synth.render(plain_face()), synth.render(plain_face(**units))
    x, y, width, height = synth.true_box(plain_face())
    energy = np.square(after.astype(float) - before).sum(axis=2)
    return energy, round(y + 0.45 * height)


def iou(a, b):
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    return common / (a[2] * a[3] + b[2] * b[3] - common)


def test_the_same_seed_gives_the_same_face():
    one, two = synth.sample("Fear", seed=5), synth.sample("Fear", seed=5)
    assert one == two
    assert np.array_equal(synth.render(one), synth.render(two))
    assert synth.sample("Fear", seed=6) != one


def test_parameters_are_flat_and_in_range():
    for seed in range(40):
        face = synth.sample(seed=seed)
        assert all(isinstance(value, int | float | str) for value in face.values())
        assert all(0 <= face[unit] <= 1 for unit in synth.ACTION_UNITS)
        assert face["emotion"] in range(8) and face["skin_tone"] in range(1, 11)
        assert -1 <= face["valence"] <= 1 and -1 <= face["arousal"] <= 1


def test_emotions_go_by_name_and_by_affectnet_id():
    assert synth.sample("happiness", seed=0)["emotion"] == 1
    assert synth.sample(7, seed=0)["emotion"] == 7
    with pytest.raises(EmoError, match="emotion"):
        synth.sample("bored", seed=0)
    with pytest.raises(EmoError, match="emotion"):
        synth.sample(8, seed=0)


def test_an_identity_keeps_its_face_and_changes_its_expression():
    one, two = (synth.sample(emotion, seed=emotion, identity=9) for emotion in (1, 6))
    assert one["group"] == two["group"]
    for name in ("skin_tone", "jaw_width", "hair_style", "eye_distance", "glasses", "age"):
        assert one[name] == two[name]
    assert one["AU12"] > two["AU12"]


def test_the_picture_tells_nothing_about_the_emotion():
    faces = [synth.sample(emotion, seed=11, identity=4) for emotion in range(8)]
    for name in ("background", "light_x", "light", "yaw", "scale", "blur", "occlusion", "x"):
        assert len({face[name] for face in faces}) == 1


def test_valence_and_arousal_lie_around_the_class_means():
    for emotion, mean in enumerate(CLASS_MEAN_VA):
        faces = [synth.sample(emotion, seed=seed) for seed in range(150)]
        va = np.array([(face["valence"], face["arousal"]) for face in faces])
        assert np.abs(va.mean(axis=0) - mean).max() < 0.12
        assert 0.07 < va.std(axis=0).min() and va.std(axis=0).max() < 0.25


@pytest.mark.parametrize("size", [32, 97, 224, 512])
def test_render_gives_a_square_bgr_image(size):
    image = synth.render(plain_face(skin_tone=5), size)
    assert image.shape == (size, size, 3) and image.dtype == np.uint8
    x, y, width, height = (value * size // 224 for value in synth.true_box(plain_face()))
    blue, _, red = image[y : y + height, x : x + width].mean(axis=(0, 1))
    assert red > blue + 20  # skin


def test_faces_darken_along_the_skin_tones():
    x, y, width, height = synth.true_box(plain_face())
    faces = [synth.render(plain_face(skin_tone=tone)) for tone in (1, 5, 6, 7, 8, 9, 10)]
    light = [face[y : y + height, x : x + width].mean() for face in faces]
    assert np.all(np.diff(light) < 0)


@pytest.mark.parametrize("unit", [*UPPER, *LOWER, *CHEEKS_AND_NOSE])
def test_an_action_unit_moves_its_own_part_of_the_face(unit):
    energy, nose = change(**{unit: 1.0})
    assert np.count_nonzero(energy > 300) > 40
    upper = energy[:nose].sum() / energy.sum()
    if unit in UPPER:
        assert upper > 0.9
    elif unit in LOWER:
        assert upper < 0.1
    else:
        high, low, left, right = (60, 20, 60, 164) if unit == "AU9" else (45, 0, 0, 224)
        assert energy[nose - high : nose + low, left:right].sum() > 0.7 * energy.sum()


@pytest.mark.parametrize("unit", ["AU12", "AU14"])
def test_contempt_shows_on_one_side(unit):
    left, _ = change(**{f"{unit}L": 1.0})
    right, _ = change(**{f"{unit}R": 1.0})
    assert left[:, 112:].sum() > 0.85 * left.sum()  # the person's left is the image's right
    assert right[:, :112].sum() > 0.85 * right.sum()


@pytest.mark.parametrize(
    ("cover", "unit"), [("mask", "AU15"), ("headband", "AU1"), ("sunglasses", "AU43")]
)
def test_covers_hide_their_part_of_the_face(cover, unit):
    open_energy, _ = change(**{unit: 1.0})
    hidden = {"occlusion": 1 + synth.COVERS.index(cover)}
    before, after = (synth.render(plain_face(**hidden, **{unit: v})) for v in (0.0, 1.0))
    assert np.square(after.astype(float) - before).sum() < 0.05 * open_energy.sum()


def test_few_faces_are_covered():
    covers = [synth.sample(seed=seed)["occlusion"] for seed in range(600)]
    assert set(covers) == set(range(1 + len(synth.COVERS)))
    assert 0.02 < np.count_nonzero(covers) / 600 < 0.12
    assert not synth.sample(seed=covers.index(1), frontal=True)["occlusion"]


def test_the_true_box_follows_the_face():
    x, y, width, height = synth.true_box(plain_face())
    assert abs(height - 0.6 * 224) < 12 and 0.8 < width / height < 1.4
    assert abs(synth.true_box(plain_face(x=0.1))[0] - x - 22.4) <= 1
    assert abs(synth.true_box(plain_face(scale=0.3))[3] - height / 2) <= 1
    assert synth.true_box(plain_face(AU26=1.0))[3] > height + 8  # the jaw drops


def test_mediapipe_finds_one_face_where_it_is(face_model):
    import mediapipe
    from mediapipe.tasks.python import BaseOptions, vision

    base = BaseOptions(model_asset_path=str(face_model))
    options = vision.FaceDetectorOptions(base_options=base)
    good = 0
    with vision.FaceDetector.create_from_options(options) as detector:
        for seed in range(60):
            face = synth.sample(seed % 8, seed=seed, frontal=True)
            rgb = np.ascontiguousarray(synth.render(face)[..., ::-1])
            image = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=rgb)
            boxes = [found.bounding_box for found in detector.detect(image).detections]
            boxes = [(box.origin_x, box.origin_y, box.width, box.height) for box in boxes]
            good += len(boxes) == 1 and iou(boxes[0], synth.true_box(face)) >= 0.5
    assert good >= 58


def test_write_dataset(tmp_path):
    folder = synth.write_dataset(tmp_path / "faces", 24, seed=2, size=64)
    manifest = pd.read_csv(folder / "labels.csv")
    first = ["image_path", "emotion", "valence", "arousal", "group", "skin_tone"]
    assert list(manifest)[:6] == first and set(synth.ACTION_UNITS) < set(manifest)
    assert manifest["emotion"].value_counts().tolist() == [3] * 8
    assert manifest["group"].value_counts().tolist() == [8] * 3
    for row in manifest.to_dict("records"):
        image = cv2.imread(str(folder / row["image_path"]))
        assert image.shape == (64, 64, 3)
        assert np.abs(image - synth.render(row, 64).astype(float)).mean() < 4


def test_datasets_are_the_same_in_every_process(tmp_path):
    call = """if True:
        import sys
        from emo.synth import write_dataset
        write_dataset(sys.argv[1], 16, seed=4)
        assert "torch" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", call, tmp_path / "b"], check=True)
    synth.write_dataset(tmp_path / "a", 16, seed=4)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*"))
    assert len(files) == 17
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_many_processes_draw_the_same_faces_as_one(tmp_path):
    many = synth.write_dataset(tmp_path / "many", 408, seed=4, size=32)
    few = synth.write_dataset(tmp_path / "few", 16, seed=4, size=32)
    for file in (few / "images").iterdir():
        assert file.read_bytes() == (many / "images" / file.name).read_bytes()
    rows = [(folder / "labels.csv").read_text().splitlines() for folder in (many, few)]
    assert len(rows[0]) == 409 and rows[0][:17] == rows[1]


def test_write_dataset_refuses_what_it_cannot_do(tmp_path):
    for count, size in ((7, 96), (8, 31), (8, 513)):
        with pytest.raises(EmoError, match="expected"):
            synth.write_dataset(tmp_path / "new", count, size=size)
    (tmp_path / "mine").write_text("keep")
    with pytest.raises(EmoError, match="not empty"):
        synth.write_dataset(tmp_path, 8)
    with pytest.raises(EmoError, match="not empty"):
        synth.write_dataset(tmp_path / "mine", 8)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_nothing_is_left_of_a_dataset_that_fails(tmp_path, monkeypatch):
    def fail(face, size):
        raise OSError("disk full")

    monkeypatch.setattr(synth, "render", fail)
    with pytest.raises(EmoError, match="disk full"):
        synth.write_dataset(tmp_path / "faces", 8)
    assert not list(tmp_path.iterdir())


def test_animate_loops_through_all_emotions():
    film = list(synth.animate(seconds=4, fps=12, size=(240, 320), seed=1))
    frames = np.array([frame for frame, _ in film], float)
    truths = [truth for _, truth in film]
    assert frames.shape == (48, 240, 320, 3)
    assert {truth["emotion"] for truth in truths} == set(range(8))
    assert np.allclose(np.diff([truth["time"] for truth in truths]), 1 / 12)
    steps = np.abs(np.diff(frames, axis=0)).mean(axis=(1, 2, 3))
    assert 0 < steps.min() and np.abs(frames[-1] - frames[0]).mean() <= 1.5 * steps.max()
    for truth in truths:
        x, y, width, height = truth["bbox"]
        assert 0 < x < x + width < 320 and 0 < y < y + height < 240
        assert 0.3 < height / 240 < 0.55 and abs(truth["valence"]) <= 1
