"""Faces drawn from facial action units, with true labels. Explained in notebooks/02."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from tqdm.auto import tqdm

from emo import EmoError, files
from emo.emotions import CLASS_MEAN_VA, EMOTIONS, emotion_id
from emo.portrait import FACE, render, true_box

ACTION_UNITS = tuple(FACE["action_units"])
COVERS = tuple(FACE["covers"])  # what may hide a part of the face: `occlusion` 1, 2 and 3
PROTOTYPES = FACE["prototypes"]  # emotion: action units, how often and how strong each one is


def sample(emotion=None, *, seed, identity=None, frontal=False):
    """Draw the parameters of one face: a flat dict of numbers and one string, `group`.

    `emotion` (a name or an AffectNet id 0–7) and `identity` (a number) are drawn where None;
    `frontal`: no large turns, occlusion or blur. Valence, arousal: class mean × intensity + noise.
    """
    rng = np.random.default_rng([seed, 1])
    emotion = emotion_id(emotion) if isinstance(emotion, str) else emotion
    emotion = int(rng.integers(8) if emotion is None else emotion)
    if not 0 <= emotion < 8:
        raise EmoError(f"unknown emotion {emotion}; expected 0 to 7 or a name such as 'Happy'")
    identity = int(rng.integers(10**6)) if identity is None else int(identity)
    intensity = float(0.45 + 0.55 * rng.beta(2.2, 1.2))
    units = _display(emotion, intensity, rng)
    blend = _display(int(rng.integers(8)), 0.35 * (rng.random() < 0.25), rng)
    stray = 0.35 * rng.random(len(units)) * (rng.random(len(units)) < 0.1)
    units = {name: max(units[name], blend[name], float(stray[i])) for i, name in enumerate(units)}
    mean = CLASS_MEAN_VA[emotion] * (0.45 + 0.75 * intensity)
    face = {"emotion": emotion, "group": f"p{identity:07d}", "identity": identity}
    face["valence"], face["arousal"] = rng.normal(mean, 0.1).clip(-1, 1).tolist()
    face |= {"intensity": intensity} | units
    face["gaze_x"], face["gaze_y"] = rng.normal(0, 0.25, 2).clip(-0.6, 0.6).tolist()
    rng = np.random.default_rng([seed, 2])  # the picture tells nothing about the emotion
    face |= _sample_person(identity) | _draw_from(FACE["picture"], rng)
    face["occlusion"] = int(rng.choice(1 + len(COVERS), p=(0.94, 0.02, 0.02, 0.02)))  # 0: nothing
    if frontal:
        face |= {n: 0.4 * face[n] for n in "yaw pitch roll blur noise".split()} | {"occlusion": 0}
    face |= {"jpeg": int(rng.integers(60, 96)), "background": int(rng.integers(10**6))}
    return {key: round(v, 4) if isinstance(v, float) else v for key, v in face.items()}


def write_dataset(dest, count, seed=0, size=96, frontal=False):
    """Write `count` faces and labels.csv, all or nothing; return `dest`. Same seed, same bytes."""
    dest = Path(dest)
    if count < 8 or not 32 <= size <= 512:
        raise EmoError(f"got {count} faces of {size} px; expected 8 or more of 32 to 512 px")
    if dest.exists() and not (dest.is_dir() and not any(dest.iterdir())):
        raise EmoError(f"{dest} exists and is not empty; give a new folder or empty this one")

    def write(index):
        identity = seed * 10**5 + index // 8  # eight faces a person, one for each emotion
        face = sample(index % 8, seed=seed * 10**7 + index, identity=identity, frontal=frontal)
        path = f"images/{face['group']}_{index % 8}.jpg"
        image = cv2.imencode(".jpg", render(face, size), [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
        (folder / path).write_bytes(image.tobytes())
        return {"image_path": path} | face

    with files.claim(dest), files.atomic_path(dest, folder=True) as folder:
        (folder / "images").mkdir()
        pool = Parallel(-1 if count > 400 else 1, batch_size=16, return_as="generator")
        rows = pool(delayed(write)(index) for index in range(count))
        rows = tqdm(rows, "drawing faces", count, unit="face")
        first = ["image_path", "emotion", "valence", "arousal", "group", "skin_tone"]
        pd.DataFrame(list(rows)).set_index(first).to_csv(folder / "labels.csv")
    return dest


def animate(seconds=12, fps=15, size=(480, 640), seed=0):
    """Yield (frame, truth): a person who passes through all emotions, in a seamless loop.

    `frame`: (height, width, 3) uint8, BGR; `truth`: time (s), emotion (id), valence, arousal, bbox.
    """
    face = sample("Neutral", seed=seed, frontal=True) | FACE["film"]
    usual = [{unit: 0.9 * v for unit, share, v in PROTOTYPES[n] if share >= 0.5} for n in EMOTIONS]
    stations = np.hstack([pd.DataFrame(usual, columns=ACTION_UNITS).fillna(0), CLASS_MEAN_VA])
    count = max(8, round(seconds * fps))
    for frame in range(count):
        phase, turn = 8 * frame / count, 2 * np.pi * frame / count
        now, then = int(phase), (int(phase) + 1) % 8
        mix = np.clip((phase % 1 - 0.6) / 0.4, 0, 1)
        mix = mix * mix * (3 - 2 * mix)
        *display, valence, arousal = (stations[now] * (1 - mix) + stations[then] * mix).tolist()
        face |= dict(zip(ACTION_UNITS, display, strict=True))
        face["AU43"] = max(face["AU43"], np.exp(-(((phase % 2 - 0.45) / 0.06) ** 2)))  # a blink
        face |= {name: a * np.sin(n * turn + b) for name, (a, n, b) in FACE["sway"].items()}
        truth = {"time": frame / fps, "emotion": now if mix < 0.5 else then}
        truth |= {"valence": valence, "arousal": arousal, "bbox": true_box(face, size)}
        yield render(face, size), truth


def _display(emotion, intensity, rng):
    """Return {action unit: [0, 1]} of a random display of an emotion."""
    units, mirrored = dict.fromkeys(ACTION_UNITS, 0.0), rng.random() < 0.5
    for unit, share, strength in PROTOTYPES[EMOTIONS[emotion]]:
        strength = (rng.random() < share) * np.clip(strength * intensity * rng.normal(1, 0.2), 0, 1)
        units[unit.replace("L", "R") if mirrored else unit] = float(strength)
    return units


def _draw_from(table, rng):
    return dict(zip(table, rng.triangular(*np.transpose([*table.values()])).tolist(), strict=True))


def _sample_person(identity):
    rng = np.random.default_rng([identity, 3])
    tone, values = int(rng.integers(1, 11)), _draw_from(FACE["person"], rng)
    feminine, old = rng.random() < 0.5, values["age"] > 0.65
    return values | {
        "skin_tone": tone,
        "beard": 0.0 if feminine or rng.random() < 0.5 else float(rng.uniform(0.2, 1)),
        "makeup": float(rng.random()) if feminine else 0.0,
        "glasses": int(rng.choice([0, 0, 0, 0, 1, 2])),
        "hair_style": int(rng.choice(FACE["hair"]["feminine" if feminine else "masculine"])),
        "hair_colour": int(rng.integers(8, 10) if old else rng.integers(0, 3 if tone > 5 else 8)),
        "eye_colour": int(rng.integers(0, 3 if tone > 6 else 8)),
        "clothes": int(rng.integers(10)),
    }
