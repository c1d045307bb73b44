"""Faces drawn from facial action units, with true labels. Explained in notebooks/02."""

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from emo.emotions import CLASS_MEAN_VA, EMOTIONS, emotion_id
from emo.errors import EmoError
from emo.files import atomic_folder

# Ekman, Friesen and Hager, FACS (2002); L and R: one half only, as the person drawn sees it.
ACTION_UNITS = tuple(
    "AU1 AU2 AU4 AU5 AU6 AU7 AU9 AU10 AU12 AU12L AU12R AU14L AU14R AU15 AU17 AU20 AU23 AU25 AU26 "
    "AU43".split()
)
# Action unit, how often it is part of the display, how strong it then is. After EMFACS (Friesen
# and Ekman, 1983); contempt, on one side, after Matsumoto and Ekman (2004).
PROTOTYPES = {
    "Neutral": "AU25 .2 .4 AU4 .1 .3 AU12 .1 .3",
    "Happy": "AU6 .85 .8 AU12 1 .95 AU25 .7 .8 AU26 .2 .3 AU7 .2 .3",
    "Sad": "AU1 .95 .9 AU4 .8 .6 AU15 .75 .8 AU17 .5 .6 AU7 .2 .4 AU43 .25 .35",
    "Surprise": "AU1 1 .9 AU2 1 .9 AU5 .8 .6 AU26 .9 .8 AU25 .95 .8",
    "Fear": "AU1 1 .9 AU2 .7 .6 AU4 .8 .7 AU5 .9 .8 AU7 .4 .4 AU20 .75 .8 AU25 .85 .7 AU26 .5 .6",
    "Disgust": "AU9 .85 .85 AU10 .75 .8 AU4 .4 .5 AU7 .5 .5 AU15 .3 .4 AU17 .5 .6 AU25 .3 .4",
    "Anger": "AU4 1 .95 AU5 .5 .5 AU7 .8 .7 AU23 .75 .7 AU17 .4 .4 AU10 .25 .5 AU25 .2 .3",
    "Contempt": "AU12L .95 .8 AU14L .8 .9 AU10 .15 .3 AU4 .15 .3 AU43 .2 .3",
}
# Half a face at rest, 24 points: x outwards from the middle, y down; brow to chin is 1.4 units.
_BROW, _LID, _LOW_LID, _WING, _NOSTRIL, _CORNER = range(4), range(4, 9), range(9, 12), 12, 13, 14
_REST = """.14 -.335  .26 -.385  .40 -.395  .55 -.315
    .165 -.065  .225 -.135  .31 -.16  .40 -.135  .475 -.085  .24 -.045  .32 -.03  .41 -.045
    .135 .25  .065 .29  .265 .56  0 .50  .06 .485  .165 .515  0 .556  .13 .556
    0 .56  .13 .56  0 .66  .14 .635"""
# What each action unit does at full strength: points of the half face, their dx and dy.
_MOVES = {
    "AU1": "0 0 -.13  1 0 -.09  2 0 -.02",
    "AU2": "1 0 -.04  2 .01 -.13  3 .01 -.12",
    "AU4": "0 -.055 .11  1 -.03 .10  2 -.01 .05  5 0 .015  6 0 .015",
    "AU5": "5 0 -.045  6 0 -.055  7 0 -.045",
    "AU6": "9 0 -.03  10 0 -.045  11 0 -.04  8 0 .01",
    "AU7": "5 0 .03  6 0 .035  7 0 .03  9 0 -.02  10 0 -.03  11 0 -.025",
    "AU9": "12 .02 -.06  13 .01 -.03  0 -.01 .05  1 0 .03  15 0 -.03  16 0 -.04  17 0 -.03",
    "AU10": "12 .02 -.03  15 0 -.04  16 .01 -.07  17 .02 -.08  18 0 -.05  19 .01 -.06",
    "AU12": "14 .10 -.12  17 .03 -.03  19 .04 -.03  21 .04 -.02  23 .05 -.03  15 0 .01  18 0 .01",
    "AU14": "14 .05 -.03  17 .01 0  23 .02 -.01",
    "AU15": "14 .02 .12  17 0 .02  19 .01 .03  21 .01 .03  23 .02 .02",
    "AU17": "20 0 -.025  21 0 -.02  22 0 -.05  23 0 -.03  18 0 -.02  19 0 -.01  14 0 .025",
    "AU20": "14 .11 .03  17 .03 .01  19 .06 .01  21 .06 .01  23 .08 .01",
    "AU23": "14 -.03 0  15 0 .035  16 0 .04  17 0 .025  22 0 -.055  23 -.02 -.045",
    "AU25": "18 0 -.015  19 0 -.012  20 0 .04  21 0 .03  22 0 .035  23 0 .025",
    "AU26": "14 -.04 .07  17 -.01 .01  20 0 .18  21 0 .15  22 0 .18  23 0 .16  18 0 -.01",
}
# Relief: soft bumps of half a face: x, y, width, height, elevation; what action units add to it.
_RELIEF = """0 -.06 .85 .95 .95; 0 0 .075 .17 .07; 0 .22 .085 .08 .11; .10 .26 .05 .05 .06 AU9 .02;
    .27 -.36 .20 .05 .05 AU4 .03; .31 -.12 .15 .08 -.07; .44 .16 .15 .11 .05 AU6 .06 AU12 .05;
    .45 .48 .12 .14 -.03; 0 .51 .15 .04 .03; 0 .61 .13 .04 .05; 0 .73 .14 .04 -.04 AU17 -.02;
    0 .87 .13 .09 .06 AU17 .05; .66 -.42 .10 .16 -.05; .03 .37 .02 .06 -.02;
    .05 -.33 .04 .06 0 AU4 .03 AU9 .02; 0 -.12 .06 .03 0 AU9 -.04"""
# Creases: a curve over half a face; how deep action units and age make it.
_CREASES = """0 -.6 .2 -.62 .42 -.6 AU1 .5 AU2 .3 age .2; 0 -.7 .2 -.72 .4 -.7 AU1 .4 AU2 .3 age .2;
    .055 -.26 .065 -.34 .05 -.43 AU4 .8 AU9 .3 age .1; 0 -.12 .06 -.11 .10 -.07 AU9 .7;
    0 -.05 .07 -.03 .11 .01 AU9 .7; .53 -.10 .60 -.13 .67 -.14 AU6 .55 AU12 .1 age .15;
    .53 -.06 .60 -.05 .66 -.02 AU6 .55 AU12 .1 age .15; .17 .20 .19 .24 .165 .30 AU9 .4 AU10 .3;
    .20 .02 .32 .06 .44 .03 AU6 .5 AU7 .2 AU9 .3 age .35; .38 .46 .43 .53 .39 .61 AU14 .9 AU12 .2;
    .155 .24 .27 .37 .33 .53 AU12 .55 AU10 .6 AU9 .5 AU6 .15 AU14 .2 age .3;
    .30 .66 .34 .71 .35 .78 AU15 .7 AU20 .2 age .2; 0 .75 .1 .75 .17 .79 AU17 .7 AU23 .2"""
# Tints of the skin: x, y, width, height, then what is added to blue, green and red, as shares.
_TINTS = """.45 .22 .17 .15 -.09 -.08 .02; 0 .23 .1 .08 -.06 -.05 .01; 0 .42 .5 .1 -.02 -.03 0;
    .31 -.12 .17 .09 -.08 -.1 -.06"""
# Low, usual and high values: of a person, and of a picture.
_PERSON = """head_width .9 1 1.1; jaw_width .86 1 1.14; chin_length -.06 0 .08; age 0 .2 1;
    eye_distance -.03 0 .03; eye_size 1 1.12 1.28; eye_tilt -.02 0 .03; brow_height -.03 0 .03;
    brow_thickness .6 1 1.5; nose_width .82 1 1.3; nose_length -.03 0 .04; mouth_width .88 1 1.15;
    lip_fullness .7 1.05 1.6; hair_volume .03 .08 .18; hairline -.12 0 .1; hair_part -.35 0 .35;
    hair_length .35 .8 1.2"""
_PICTURE = """yaw -25 0 25; pitch -12 0 12; roll -12 0 12; x -.03 0 .03; y -.03 .01 .04;
    scale .74 .82 .90; light_x -.9 0 .9; light_y -.9 -.4 .2; light .85 .95 1.05; contrast .25 .4 .6;
    warmth -.1 0 .1; blur 0 .2 1; noise 0 2 6"""
# Monk, "Monk Skin Tone Scale" (2019), skintone.google: ten tones from light to dark.
_MONK = "f6ede4 f3e7db f7ead0 eadaba d7bd96 a07e56 825c43 604134 3a312a 292420".split()
_HAIR = "1a1512 2b1d14 3f2a1c 5a3a22 7d5330 b08850 d8bd84 8a3b1c 9a9a98 d5d3cf".split()
_IRIS = "3a2414 4e3018 6b4a22 7c6a3a 5d7a4c 5d8398 7d9bb5 6f7578".split()
_CLOTH = "2f3e55 6b2d2d 3c5a43 d9d4c7 1f1f24 8a6f4e 54466b 9db4c0 b5533c 4f5d2f".split()
_BALD, _SHORT, _SIDE_PART, _LONG, _CURLY, _BUN, _SCARF = range(7)
_HAIRLINES = (
    "",
    "0 -.84 .25 -.82 .5 -.72 .64 -.42 .75 -.02",
    "0 -.98 .25 -.82 .5 -.66 .66 -.42 .75 -.02",
    "0 -1 .25 -.88 .54 -.64 .7 .05 .7 1.2",
    "0 -.84 .25 -.82 .5 -.72 .64 -.42 .75 -.02",
    "0 -.86 .25 -.83 .5 -.72 .66 -.42 .76 -.15",
    "0 -.78 .28 -.76 .54 -.62 .7 0 .45 1.2",
)
_SIDE, _ORIGIN = 3.2, np.array([1.6, 1.75])  # the texture: its side, and where its (0, 0) lies
_GRID = 80  # relief and light are computed on a grid of 80 x 80, then enlarged
_MIDDLE = np.array([[0.0, 0.29]])  # of the face, brow to chin


def sample(emotion=None, *, seed, identity=None, frontal=False):
    """Draw the parameters of one face: a flat dict of numbers and one string, `group`.

    `emotion` is a name or an AffectNet id 0–7, `identity` the number of a person; both are drawn
    where they are None. `frontal` leaves out large turns, occlusion and heavy blur. Valence and
    arousal, in [−1, 1], are the class mean times the intensity plus honest noise.
    """
    rng = np.random.default_rng([seed, 1])
    if emotion is None:
        emotion = int(rng.integers(8))
    elif isinstance(emotion, str):
        emotion = emotion_id(emotion)
    if not 0 <= emotion < 8:
        raise EmoError(f"unknown emotion {emotion}; expected 0 to 7 or a name such as 'Happy'")
    identity = int(rng.integers(10**6)) if identity is None else int(identity)
    face = {"emotion": int(emotion), "group": f"p{identity:07d}", "identity": identity}
    face |= _sample_expression(int(emotion), rng) | _sample_person(identity)
    face |= _sample_picture(np.random.default_rng([seed, 2]), frontal)
    return {key: round(v, 4) if isinstance(v, float) else v for key, v in face.items()}


def render(parameters, size=224):
    """Return the face as a (size, size, 3) uint8 image, BGR."""
    return _photograph(parameters, (size, size))


def true_box(parameters, size=224):
    """Return (x, y, width, height) in pixels of the face, brow to chin, without ears and hair."""
    return _box(parameters, (size, size))


def write_dataset(dest, count, seed=0, size=96, frontal=False):
    """Write `count` faces and `labels.csv` to the folder `dest`, all or nothing; return its path.

    Eight faces a person, one for each emotion. The same seed gives the same bytes.
    """
    dest = Path(dest)
    if count < 8 or not 32 <= size <= 512:
        raise EmoError(f"got {count} faces of {size} px; expected 8 or more of 32 to 512 px")
    if dest.exists() and not (dest.is_dir() and not any(dest.iterdir())):
        raise EmoError(f"{dest} exists and is not empty; give a new folder or empty this one")

    def write(index):
        identity = seed * 10**5 + index // 8
        face = sample(index % 8, seed=seed * 10**7 + index, identity=identity, frontal=frontal)
        path = f"images/{face['group']}_{index % 8}.jpg"
        image = cv2.imencode(".jpg", render(face, size), [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
        (folder / path).write_bytes(image.tobytes())
        return {"image_path": path} | face

    with atomic_folder(dest) as folder, ThreadPoolExecutor(2) as pool:
        (folder / "images").mkdir()
        # Threads: OpenCV releases the lock, and new processes are trouble in notebooks.
        rows = tqdm(pool.map(write, range(count)), "drawing faces", count, unit="face")
        manifest = pd.DataFrame(list(rows))
        first = ["image_path", "emotion", "valence", "arousal", "group", "skin_tone"]
        manifest = manifest[first + [name for name in manifest if name not in first]]
        manifest.to_csv(folder / "labels.csv", index=False)
    return dest


def animate(seconds=12, fps=15, size=(480, 640), seed=0):
    """Yield (frame, truth): a person who passes through all emotions, in a seamless loop.

    `frame` is (height, width, 3) uint8, BGR; `truth` holds time (s), emotion (id), valence,
    arousal and bbox (x, y, width, height; pixels).
    """
    face = sample("Neutral", seed=seed, frontal=True)
    face |= {"occlusion": 0, "noise": 0, "blur": 0, "jpeg": 100, "scale": 0.42, "y": 0.03}
    displays = np.array([list(_display(emotion, 0.9).values()) for emotion in range(8)])
    count = max(8, round(seconds * fps))
    for frame in range(count):
        phase, turn = 8 * frame / count, 2 * np.pi * frame / count
        now, then = int(phase), (int(phase) + 1) % 8
        mix = np.clip((phase % 1 - 0.6) / 0.4, 0, 1)
        mix = mix * mix * (3 - 2 * mix)
        units = dict(
            zip(ACTION_UNITS, displays[now] * (1 - mix) + displays[then] * mix, strict=True)
        )
        units["AU43"] = max(units["AU43"], np.exp(-(((phase % 2 - 0.45) / 0.06) ** 2)))  # a blink
        face |= units | {"yaw": 9 * np.sin(2 * turn), "pitch": 4 * np.sin(3 * turn)}
        face |= {"roll": 4 * np.sin(turn), "x": 0.04 * np.sin(turn + 1)}
        valence, arousal = CLASS_MEAN_VA[now] * (1 - mix) + CLASS_MEAN_VA[then] * mix
        truth = {"time": frame / fps, "emotion": now if mix < 0.5 else then}
        truth |= {"valence": float(valence), "arousal": float(arousal), "bbox": _box(face, size)}
        yield _photograph(face, size), truth


def _display(emotion, intensity, rng=None):
    """Return {action unit: [0, 1]} of one display: a random one, or without `rng` the usual one."""
    units = dict.fromkeys(ACTION_UNITS, 0.0)
    mirrored = rng is not None and rng.random() < 0.5
    words = PROTOTYPES[EMOTIONS[emotion]].split()
    for unit, share, strength in zip(words[::3], words[1::3], words[2::3], strict=True):
        present = float(share) >= 0.5 if rng is None else rng.random() < float(share)
        strength = float(strength) * intensity * (1 if rng is None else rng.normal(1, 0.2))
        unit = unit.replace("L", "R") if mirrored else unit
        units[unit] = float(np.clip(strength, 0, 1)) if present else 0.0
    return units


def _sample_expression(emotion, rng):
    intensity = float(0.45 + 0.55 * rng.beta(2.2, 1.2))
    units = _display(emotion, intensity, rng)
    blend = _display(int(rng.integers(8)), 0.35 * (rng.random() < 0.25), rng)
    stray = 0.35 * rng.random(len(units)) * (rng.random(len(units)) < 0.1)
    units = {name: max(units[name], blend[name], float(stray[i])) for i, name in enumerate(units)}
    valence, arousal = np.clip(
        rng.normal(CLASS_MEAN_VA[emotion] * (0.45 + 0.75 * intensity), 0.1), -1, 1
    )
    gaze_x, gaze_y = rng.normal(0, 0.25, 2).clip(-0.6, 0.6)
    labels = {"valence": float(valence), "arousal": float(arousal), "intensity": intensity}
    return labels | units | {"gaze_x": float(gaze_x), "gaze_y": float(gaze_y)}


def _draw_from(table, rng):
    names, low, usual, high = zip(*(row.split() for row in table.split(";")), strict=True)
    values = rng.triangular(*np.array([low, usual, high], float))
    return dict(zip(names, values.tolist(), strict=True))


def _sample_person(identity):
    rng = np.random.default_rng([identity, 3])
    tone, values = int(rng.integers(1, 11)), _draw_from(_PERSON, rng)
    feminine, old = rng.random() < 0.5, values["age"] > 0.65
    styles = (_LONG, _LONG, _CURLY, _BUN, _SCARF, _SIDE_PART)
    styles = styles if feminine else (_BALD, _SHORT, _SHORT, _SIDE_PART, _CURLY)
    beard = 0.0 if feminine or rng.random() < 0.5 else float(rng.uniform(0.2, 1))
    return values | {
        "skin_tone": tone,
        "beard": beard,
        "makeup": float(rng.random()) if feminine else 0.0,
        "glasses": int(rng.choice([0, 0, 0, 0, 1, 2])),
        "hair_style": int(rng.choice(styles)),
        "hair_colour": int(rng.integers(8, 10) if old else rng.integers(0, 3 if tone > 5 else 8)),
        "eye_colour": int(rng.integers(0, 3 if tone > 6 else 8)),
        "clothes": int(rng.integers(10)),
    }


def _sample_picture(rng, frontal):
    values = _draw_from(_PICTURE, rng)
    hidden = 0 if rng.random() > 0.08 else int(rng.integers(1, 10**6))
    if frontal:
        hidden = 0
        values |= {name: values[name] * 0.4 for name in ("yaw", "pitch", "roll", "blur", "noise")}
    jpeg, scene = int(rng.integers(60, 96)), int(rng.integers(10**6))
    return values | {"occlusion": hidden, "jpeg": jpeg, "background": scene}


def _bgr(hexadecimal):
    return np.array([int(hexadecimal[i : i + 2], 16) for i in (4, 2, 0)], float)


def _skin(p):
    """Return the skin's BGR: Monk's swatch, lightened as a camera's automatic exposure does."""
    return 255 * (_bgr(_MONK[p["skin_tone"] - 1]) / 255) ** 0.82 * (0.86, 0.94, 1.02)


@lru_cache
def _parse(table):
    """Split rows "1 2 … AU1 .5 age .2; …" into [(array of numbers, {name: weight})]."""
    rows = []
    for row in table.split(";"):
        words = row.split()
        split = next((i for i, word in enumerate(words) if word[0].isalpha()), len(words))
        weights = dict(zip(words[split::2], map(float, words[split + 1 :: 2]), strict=True))
        rows.append((np.array(words[:split], float), weights))
    return rows


def _path(text):
    return _parse(text)[0][0].reshape(-1, 2)


@lru_cache
def _basis(count, closed):
    """Return the matrix (points, count) that runs a Catmull-Rom curve through `count` points."""
    eye = np.pad(np.eye(count), ((1, 2), (0, 0)), mode="wrap" if closed else "edge")
    t = np.linspace(0, 1, 5)[:-1, None]
    weights = (-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2)
    segments = range(count if closed else count - 1)
    rows = [sum(w * eye[i + k] / 2 for k, w in enumerate(weights)) for i in segments]
    return np.concatenate(rows if closed else [*rows, np.eye(count)[-1:]])


def _curve(points, closed=False):
    return _basis(len(points), closed) @ np.asarray(points, float)


def _whole(half):
    """Return the closed curve of a half outline, from its top to its bottom, and its mirror."""
    return _curve(np.concatenate([half, half[-2:0:-1] * (-1, 1)]), closed=True)


@lru_cache
def _moves():
    """Return (units, 24, 2): the displacements of `_MOVES`."""
    moves = np.zeros((len(_MOVES), 24, 2))
    for move, words in zip(moves, _MOVES.values(), strict=True):
        for point, dx, dy in np.array(words.split(), float).reshape(-1, 3):
            move[int(point)] = dx, dy
    return 1.2 * moves


def _half(p, side):
    """Return the parameters with AU12 and AU14 as one half of the face shows them."""
    letter = "L" if side > 0 else "R"
    return p | {"AU12": max(p["AU12"], p[f"AU12{letter}"]), "AU14": p[f"AU14{letter}"]}


def _landmarks(p):
    """Return {-1: (24, 2), 1: (24, 2)}: the points of `_REST` left and right in the image."""
    rest, lips, size = _path(_REST).copy(), np.array([0, 0.558]), p["eye_size"]
    rest[4:12] = (rest[4:12] - (0.32, -0.09)) * size + (0.32, -0.09)
    rest[4:12, 1] -= p["eye_tilt"] * (rest[4:12, 0] - 0.32) / 0.15
    rest[:12, 0] += p["eye_distance"]
    rest[:4, 1] += p["brow_height"]
    rest[12:14] = rest[12:14] * (p["nose_width"], 1) + (0, p["nose_length"])
    rest[14:] = (rest[14:] - lips) * (p["mouth_width"], p["lip_fullness"]) + lips
    points = {}
    for side in (-1, 1):
        q = _half(p, side)
        half = rest + np.tensordot([q[unit] for unit in _MOVES], _moves(), 1)
        half[5:8] += (half[9:12] + (0, 0.004) - half[5:8]) * p["AU43"]
        half[20:22, 1] = np.maximum(half[20:22, 1], half[18:20, 1] + 0.002)
        half[22:24, 1] = np.maximum(half[22:24, 1], half[20:22, 1] + 0.02)
        points[side] = half * (side, 1)
    return points


def _outline(p):
    """Return the closed contour of the head, (N, 2), from its top."""
    half = _path("0 -1.13 .38 -1.07 .66 -.8 .77 -.36 .75 .05 .69 .42 .55 .72 .3 .93 0 1")
    low = np.clip((half[:, 1:] - 0.2) / 0.6, 0, 1)
    wide = p["head_width"] * (1 + (p["jaw_width"] - 1) * low)
    long = (p["chin_length"] + 0.16 * p["AU26"]) * low
    return _whole(np.hstack([half[:, :1] * wide, half[:, 1:] + long]))


def _bumps(rows, count):
    """Return (80, 80, count): the sum of soft bumps x, y, width, height, *elevations."""
    columns = np.array(rows).T[..., None]
    x, y, width, height = columns[:4]
    at = (np.arange(_GRID) + 0.5) * (_SIDE / _GRID)
    across, down = (
        np.exp(-(((at - origin - middle) / spread) ** 2))
        for origin, middle, spread in ((_ORIGIN[0], x, width), (_ORIGIN[1], y, height))
    )
    return np.stack([down.T @ (across * z) for z in columns[4:]], -1).astype(np.float32)


def _relief(p):
    """Return the height of the face above its plane, (80, 80), in units."""
    rows = []
    for (x, y, width, height, z), weights in _parse(_RELIEF):
        for side in (-1, 1) if x else (1,):
            q = _half(p, side)
            rows.append((side * x, y, width, height, z + sum(q[k] * w for k, w in weights.items())))
    return _bumps(rows, 1)[..., 0]


class _Camera:
    """Where points of the face's plane fall in the picture, and back."""

    def __init__(self, p, shape):
        yaw, pitch, roll = np.radians([p["yaw"], p["pitch"], p["roll"]])
        (a, b, c), (d, e, f) = np.cos([yaw, pitch, roll]), np.sin([yaw, pitch, roll])
        turn = np.array([[a, 0, d], [0, 1, 0], [-d, 0, a]])
        nod = np.array([[1, 0, 0], [0, b, e], [0, -e, b]])
        self.turn = np.array([[c, -f, 0], [f, c, 0], [0, 0, 1]]) @ nod @ turn
        self.relief = _relief(p)
        self.smooth = cv2.GaussianBlur(self.relief, (0, 0), 2)
        self.scale, self.centre, height = p["scale"] * shape[0] / 1.42, np.zeros(2), shape[0]
        middle = np.array([shape[1] / 2 + p["x"] * height, height / 2 + p["y"] * height])
        self.centre = middle - self.project(_MIDDLE)[0]

    def _shift(self, points):
        """Return how far the height of the points moves them when the head turns."""
        at = (points * (_GRID / _SIDE) + (_ORIGIN * _GRID / _SIDE - 0.5)).astype(np.float32)
        z = cv2.remap(self.smooth, at, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return z[..., None] * self.turn[:2, 2].astype(np.float32)

    def project(self, points):
        """Return the pixels (N, 2) of points (N, 2) of the face."""
        flat = points @ self.turn[:2, :2].T + self._shift(points[None])[0]
        return self.centre + self.scale * flat

    def unproject(self, shape):
        """Return (height, width, 2): the point of the face that each pixel shows."""
        rows, columns = (max(2, 48 * length // shape[0]) for length in shape)
        y, x = np.mgrid[0.5:rows, 0.5:columns]
        pixels = np.stack([x * shape[1] / columns, y * shape[0] / rows], -1)
        seen = ((pixels - self.centre) / self.scale).astype(np.float32)
        back = np.linalg.inv(self.turn[:2, :2]).T.astype(np.float32)
        points = seen @ back
        for _ in range(4):  # the height is small: a fixed point is reached in a few steps
            points = (seen - self._shift(points)) @ back
        return cv2.resize(points, shape[::-1])


def _box(p, shape):
    outline, points = _outline(p), _landmarks(p)
    face = np.concatenate([outline[outline[:, 1] > -0.35], points[-1][_BROW], points[1][_BROW]])
    pixels = _Camera(p, shape).project(face)
    (x, y), (right, bottom) = pixels.min(axis=0), pixels.max(axis=0)
    return tuple(int(round(v)) for v in (x, y, right - x, bottom - y))


def _photograph(p, shape):
    """Return the face before its background, lit and seen by a camera, (height, width, 3) BGR."""
    rng, camera = np.random.default_rng(p["background"]), _Camera(p, shape)
    side = round(_SIDE * camera.scale * (1.3 if shape[0] < 400 else 1))
    canvas = _Canvas(np.zeros((side, side, 4), np.uint8), side / _SIDE, _ORIGIN * side / _SIDE)
    _draw_head(canvas, p)
    light = cv2.resize(_light(p, camera), (side, side), interpolation=cv2.INTER_CUBIC)
    head = cv2.multiply(canvas.image, light, dtype=cv2.CV_8U)
    at = (camera.unproject(shape) + _ORIGIN.astype(np.float32)) * np.float32(side / _SIDE) - 0.5
    head = cv2.remap(head, at, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    image = _background(p, shape, camera, rng)
    keep = cv2.cvtColor(255 - head[..., 3], cv2.COLOR_GRAY2BGR)
    image = cv2.add(cv2.multiply(image, keep, scale=1 / 255), head[..., :3])
    return _expose(p, image, camera, rng)


def _light(p, camera):
    """Return (80, 80, 4) factors: light and shade of the relief and tints of the skin; 1."""
    dy, dx = (d * np.float32(1.3 * _GRID / _SIDE) for d in np.gradient(camera.relief))
    sun = np.array([p["light_x"], p["light_y"], 0.9])
    sun = camera.turn.T @ (sun / np.linalg.norm(sun))
    half = sun + camera.turn.T @ (0, 0, 1.0)
    half /= np.linalg.norm(half)
    x, y, z = np.array([sun, half], np.float32)[..., None, None].swapaxes(0, 1)
    facing, shine = ((z - x * dx - y * dy) / np.sqrt(dx * dx + dy * dy + 1)).clip(-0.3, 1)
    hollow = np.clip(cv2.GaussianBlur(camera.relief, (0, 0), 3) - camera.relief, 0, 1)
    lit = 1 - p["contrast"] * (1 - 1.15 * (facing + np.float32(0.3)) / 1.3) - 2.2 * hollow
    lit = (lit * p["light"]).clip(0.15)[..., None]
    shade = lit + lit * (lit - 1) * np.float32((0.15, 0.05, -0.15))  # shadows on skin are warm
    shade += 0.1 * np.square(np.square(np.square(np.square(shine.clip(0)))))[..., None]
    light = np.ones((_GRID, _GRID, 4), np.float32)
    light[..., :3] = shade * (_tint() * np.float32((1 - p["warmth"], 1, 1 + p["warmth"])))
    return light


@lru_cache
def _tint():
    rows = [row * ([side] + [1] * 6) for row, _ in _parse(_TINTS) for side in (-1, 1)]
    return 1 + _bumps(rows, 3)


def _background(p, shape, camera, rng):
    low, high = rng.uniform(40, 215, (2, 1)) + rng.normal(0, 20, (2, 3))
    blend = rng.random((5, 7, 1))
    scene = (low * blend + high * (1 - blend)).clip(0, 255).astype(np.uint8)
    image = cv2.resize(scene, shape[::-1], interpolation=cv2.INTER_CUBIC)
    canvas = _Canvas(image, camera.scale, camera.project(np.zeros((1, 2)))[0])
    tone = np.array([1 - p["warmth"], 1, 1 + p["warmth"]]) * p["light"]
    skin, cloth = _skin(p) * tone * 0.8, _bgr(_CLOTH[p["clothes"]]) * tone
    neck = _whole(_path("0 .3 .46 .4 .44 1.1 .52 1.3 .2 1.5 0 1.55"))
    canvas.fill(_whole(_path("0 1.05 .42 1.2 .75 1.35 1.25 1.5 1.6 2.2 1.7 4 0 4")), cloth)
    canvas.fill(neck, skin)
    shadow = _whole(_path("0 .3 .5 .6 .42 1 0 1.22"))
    canvas.inside(shadow, lambda c: c.fill(neck, skin * 0.55), 0.9, 0.08)
    return canvas.image


def _expose(p, image, camera, rng):
    if p["occlusion"]:
        spot = np.random.default_rng(p["occlusion"])
        centre = camera.project(spot.uniform((-0.7, -0.5), (0.7, 0.9))[None])[0]
        axes, angle = 2 * camera.scale * spot.uniform(0.15, 0.4, 2), float(spot.uniform(0, 180))
        box = (tuple(centre.tolist()), tuple(axes.tolist()), angle)
        cv2.ellipse(image, box, spot.uniform(20, 220, 3).tolist(), -1, cv2.LINE_AA)
    if p["blur"] > 0.25:
        image = cv2.GaussianBlur(image, (0, 0), p["blur"] * image.shape[0] / 96)
    if p["noise"]:
        image = image + p["noise"] * rng.standard_normal(image.shape, np.float32)
        image = image.clip(0, 255).astype(np.uint8)
    if p["jpeg"] < 100:
        jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, p["jpeg"]])[1]
        image = cv2.imdecode(jpeg, cv2.IMREAD_COLOR)
    return image


class _Canvas:
    """A uint8 image, BGR or premultiplied BGRA, drawn on in units of the face."""

    def __init__(self, image, scale, origin):
        self.image, self.scale, self.origin = image, scale, np.asarray(origin, float)
        self.offset = 16 * self.origin - 7.5  # pixels in sixteenths, the first one's centre at 0

    def _pixels(self, points):
        return (np.asarray(points) * (16 * self.scale) + self.offset).astype(np.int32)

    def fill(self, points, colour):
        colour = (*np.minimum(colour, 255).tolist(), 255)
        cv2.fillPoly(self.image, [self._pixels(points)], colour, cv2.LINE_AA, 4)

    def lines(self, curves, colour, width):
        """Draw open curves (count, points, 2); a point twice is a round dot."""
        colour = (*np.minimum(colour, 255).tolist(), 255)
        curves, width = list(self._pixels(curves)), max(1, round(width * self.scale))
        cv2.polylines(self.image, curves, False, colour, width, cv2.LINE_AA, 4)

    def disc(self, centre, radius, colour):
        colour, centre = (*np.minimum(colour, 255).tolist(), 255), self._pixels(centre).tolist()
        radius = round(radius * self.scale * 16)
        cv2.circle(self.image, centre, radius, colour, -1, cv2.LINE_AA, 4)

    def inside(self, outline, draw, opacity=1.0, soft=0.0):
        """Let what `draw(canvas)` draws show only within `outline`, its edge softened."""
        soft *= self.scale
        pad = 3 + int(2 * soft)
        x, y, w, h = cv2.boundingRect(self._pixels(outline) // 16)
        left, top = max(x - pad, 0), max(y - pad, 0)
        area = np.s_[top : max(y + h + pad, 0), left : max(x + w + pad, 0)]
        before = self.image[area]
        if not before.size:
            return
        part = _Canvas(before.copy(), self.scale, self.origin - (left, top))
        draw(part)
        mask = _Canvas(np.zeros(before.shape[:2], np.uint8), self.scale, part.origin)
        mask.fill(outline, (255,))
        mask = mask.image.astype(np.float32) * (opacity / 255)
        if soft > 0.3:
            mask = cv2.GaussianBlur(mask, (0, 0), soft)
        self.image[area] = cv2.blendLinear(part.image, before, mask, 1 - mask)


def _draw_head(canvas, p):
    rng = np.random.default_rng([p["identity"], 4])
    skin, hair = _skin(p), _bgr(_HAIR[p["hair_colour"]])
    cloth = _bgr(_CLOTH[(p["clothes"] + 4) % 10])
    points, outline = _landmarks(p), _outline(p)
    _draw_hair_behind(canvas, p, cloth if p["hair_style"] == _SCARF else hair, rng)
    ear = _curve(_path("0 -.2 .09 -.18 .1 0 .05 .2 -.05 .2") + (0.74 * p["head_width"], 0), True)
    for side in (-1, 1):
        canvas.fill(ear * (side, 1), skin * 0.85)
    canvas.fill(outline, skin)
    for side in (-1, 1):
        q = _half(p, side)
        for crease, weights in _parse(_CREASES):
            depth = min(1, sum(q[name] * weight for name, weight in weights.items()))
            if depth > 0.05:
                curve = _curve(crease.reshape(-1, 2) * (side, 1))
                canvas.lines([curve], skin * (1 - 0.42 * depth), 0.022)
    canvas.image = cv2.GaussianBlur(canvas.image, (0, 0), max(0.3, 0.012 * canvas.scale))
    _draw_beard(canvas, p, hair, outline)
    _draw_mouth(canvas, p, points, skin)
    for side in (-1, 1):
        _draw_nose(canvas, points[side], side, skin)
        _draw_eye(canvas, p, points[side], side, skin)
        _draw_brow(canvas, p, points[side], hair * 0.8)
    _draw_glasses(canvas, p)
    _draw_hair(canvas, p, cloth if p["hair_style"] == _SCARF else hair, skin, rng)


def _draw_nose(canvas, half, side, skin):
    wing = _path("-.03 -.06 .01 -.02 .005 .03 -.04 .05") * (side, 1) + half[_WING]
    hole = _curve(_path("-.04 .01 0 -.018 .04 0 .02 .018") * (side, 1) + half[_NOSTRIL], True)
    canvas.lines([_curve(wing)], skin * 0.78, 0.016)
    canvas.fill(hole, skin * 0.4)


def _draw_mouth(canvas, p, points, skin):
    left, right = points[-1], points[1]
    middle = (left + right) / 2

    def across(*half):
        centre, outer = middle[half[0]], list(half[1:])
        return _curve([left[14], *left[outer[::-1]], centre, *right[outer], right[14]])

    top, upper, lower, bottom = across(15, 16, 17), across(18, 19), across(20, 21), across(22, 23)
    opening = np.concatenate([upper, lower[::-1]])
    red = skin * (0.68, 0.62, 0.88) * (1 - 0.25 * p["makeup"] * np.array([0.8, 1, 0]))
    teeth = np.concatenate([upper, upper[::-1] * (0.9, 1) + (0, 0.07)])
    tongue = _curve(_path("-.12 .06 -.09 -.02 0 -.04 .09 -.02 .12 .06")) + middle[20]

    def draw(c):
        c.fill(opening, (28, 18, 45))
        c.fill(teeth, (215, 228, 232))
        c.fill(tongue, (85, 80, 165))

    if middle[20, 1] - middle[18, 1] > 0.012:
        canvas.inside(opening, draw)
    canvas.fill(np.concatenate([top, upper[::-1]]), red * 0.86)
    canvas.fill(np.concatenate([lower, bottom[::-1]]), red)
    canvas.lines([upper], red * 0.5, 0.012)


def _draw_eye(canvas, p, half, side, skin):
    upper, lower = _curve(half[_LID]), _curve(half[[4, 9, 10, 11, 8]])
    outline, size = np.concatenate([upper, lower[::-1]]), p["eye_size"]
    gaze = np.array([side * (0.32 + p["eye_distance"]), -0.09])
    gaze += 0.05 * np.array([p["gaze_x"], p["gaze_y"]])
    iris = _bgr(_IRIS[p["eye_colour"]])

    def draw(c):
        c.fill(outline, (222, 226, 232))
        for radius, colour in ((0.072, iris * 0.45), (0.061, iris), (0.03, (12, 10, 10))):
            c.disc(gaze, radius * size, colour)
        c.lines([upper + (0, 0.012)], skin * 0.35, 0.03)
        c.disc(gaze + (0.025 * np.sign(p["light_x"]), -0.028), 0.016, (250, 250, 250))

    if p["AU43"] < 0.9:
        canvas.inside(outline, draw)
    fold = half[_LID] + (0, -0.045)
    fold[1:4, 1] = np.minimum(fold[1:4, 1], -0.09 - 0.08 * size)
    canvas.lines([lower], skin * 0.62, 0.012)
    canvas.lines([_curve(fold)], skin * 0.7, 0.014)
    canvas.lines([upper], skin * 0.22, 0.018 + 0.014 * p["makeup"])


def _draw_brow(canvas, p, half, hair):
    thick = 0.028 * p["brow_thickness"] * np.array([[1.0], [1.15], [0.9], [0.2]]) * (0, 1)
    shape = np.concatenate([_curve(half[_BROW] - thick), _curve(half[_BROW] + thick)[::-1]])
    canvas.inside(shape, lambda c: c.fill(shape, hair), 0.9, 0.014)


def _draw_beard(canvas, p, hair, outline):
    inner = _path(".6 .2 .5 .42 .34 .5 .17 .41 0 .4")
    inner = _curve(np.concatenate([inner, inner[-2::-1] * (-1, 1)]))
    jaw = outline[outline[:, 1] > 0.12]
    shape = np.concatenate([jaw[jaw[:, 0] > 0], jaw[jaw[:, 0] <= 0], inner[::-1]])
    if p["beard"]:
        canvas.inside(shape, lambda c: c.fill(shape, hair), 0.25 + 0.65 * p["beard"], 0.06)


def _strands(canvas, first, last, hair, rng, count=6):
    """Fill the region between two curves with strands of hair that follow them."""
    canvas.fill(np.concatenate([first, last[::-1]]), hair)
    for tone in (0.72, 0.86, 1.14, 1.28) if count else ():
        canvas.lines(first + rng.random((count, 1, 1)) * (last - first), hair * tone, 0.022)


def _curls(canvas, hair, rng, low, high):
    """Strew curls between two radii round the top of the head."""
    angle, radius = rng.uniform(-np.pi - 0.2, 0.2, 240), rng.uniform(low, high, 240)
    dots = np.stack([np.cos(angle) * radius, np.sin(angle) * radius - 0.38], -1)
    dots = np.stack([dots, dots], 1)
    for i, tone in enumerate((0.78, 0.88, 1.0, 1.08)):
        canvas.lines(dots[i::4], hair * tone, 0.1)


def _draw_hair_behind(canvas, p, hair, rng):
    style, volume = p["hair_style"], p["hair_volume"]
    hem = 1.2 if style == _SCARF else p["hair_length"]
    if style == _BUN:
        canvas.disc((0, -1.36), 0.3, hair * 0.8)
    if style in (_LONG, _SCARF):
        edge = _whole(_path("0 -1.15 .5 -1.1 .84 -.7 .86 0 .9 .6 .84 1.15 .4 1.3 0 1.3"))
        edge[:, 1] *= np.where(edge[:, 1] > 0, hem / 1.2, 1)
        canvas.fill(edge * (1 + volume, 1), hair * (0.75 if style == _SCARF else 0.6))
    if style == _CURLY:
        canvas.disc((0, -0.38), 0.8 + 1.2 * volume, hair * 0.8)
        _curls(canvas, hair, rng, 0.72, 0.85 + 1.4 * volume)


def _draw_hair(canvas, p, hair, skin, rng):
    style, volume, wide = p["hair_style"], p["hair_volume"], (p["head_width"], 1)
    if style == _BALD:
        return
    outer, inner = _path("0 -.93 .42 -.88 .7 -.62 .8 -.22 .76 .2"), _path(_HAIRLINES[style])
    outer, inner = outer * (1 + 0.6 * volume) * wide - (0, 0.2 + 0.4 * volume), inner * wide
    if style in (_LONG, _SCARF):
        outer[3:] = np.array([(0.86, 0.1), (0.78, 1.2)]) + (volume, 0)
        if style == _LONG:
            inner[4, 1] = outer[4, 1] = p["hair_length"]
    else:
        outer[4] = inner[4] + (0.03, 0)
    inner[:3, 1] += p["hairline"]
    shift = np.array([1, 0.8, 0.3, 0, 0])[:, None] * (p["hair_part"], 0)
    shift = shift * (style in (_SIDE_PART, _LONG))
    for side in (-1, 1):
        top, low = _curve(outer * (side, 1) + shift), _curve(inner * (side, 1) + shift)
        shade = np.concatenate([top, low[::-1] + (-0.03 * side, 0.04)])
        canvas.inside(shade, lambda c, s=shade: c.fill(s, skin * 0.5), 0.5, 0.03)
        _strands(canvas, top, low, hair, rng, 0 if style in (_SCARF, _CURLY) else 6)
    if style == _CURLY:
        _curls(canvas, hair, rng, 0.6 - p["hairline"], 0.75 + volume)


def _draw_glasses(canvas, p):
    colour, width = ((40, 35, 35), 0.035) if p["glasses"] == 2 else ((110, 130, 140), 0.018)
    ring = _path(
        "1 0 .8 .8 0 1 -.8 .8 -1 0 -.8 -.8 0 -1 .8 -.8"
        if p["glasses"] == 2
        else "1 0 .7 .7 0 1 -.7 .7 -1 0 -.7 -.7 0 -1 .7 -.7"
    )
    for side in (-1, 1) if p["glasses"] else ():
        centre = np.array([side * (0.325 + p["eye_distance"]), -0.08])
        lens = _curve(ring * (0.235, 0.19) + centre, True)
        canvas.inside(lens, lambda c, lens=lens: c.fill(lens, (245, 240, 235)), 0.1)
        temple = [centre + (side * 0.22, -0.04), (side * 0.78, -0.12)]
        bridge = [centre - (side * 0.225, 0.03), (0, -0.13)]
        canvas.lines([[*lens, lens[0]]], colour, width)
        canvas.lines([temple, bridge], colour, width)
