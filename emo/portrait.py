"""Draws the parameters of a face, those of `emo.synth.sample`, as a picture."""

import tomllib
from functools import lru_cache
from itertools import product
from pathlib import Path

import cv2
import numpy as np

FACE = tomllib.loads(Path(__file__).with_name("face.toml").read_text("utf-8"))
_SHAPES = {name: np.array(points, float) for name, points in FACE["shapes"].items()}
_MOVES = np.zeros((len(FACE["moves"]), 25, 2))  # of the landmarks
for _move, _steps in zip(_MOVES, map(np.array, FACE["moves"].values()), strict=True):
    _move[_steps[:, 0].astype(int)] = _steps[:, 1:]
_SIDE, _ORIGIN = 3.2, np.array([1.6, 1.75])  # the texture: its side, and where its (0, 0) lies
_GRID = 80  # relief and light are computed on a grid of 80 x 80, then enlarged


def render(parameters, size=224):
    """Return the face as a uint8 image, BGR; `size` is its side or its (height, width)."""
    p, shape = parameters, np.broadcast_to(size, 2).tolist()
    rng, (outline, halves) = np.random.default_rng(p["background"]), _geometry(p)
    camera = _Camera(p, halves, shape)
    # Monk's swatch, lightened as a camera's automatic exposure does.
    skin = 255 * (_bgr("skin", p["skin_tone"] - 1) / 255) ** 0.74 * (0.84, 0.94, 1.04)
    side = round(_SIDE * camera.scale * (1.3 if shape[0] < 400 else 1))
    canvas = _Canvas(np.zeros((side, side, 4), np.uint8), side / _SIDE, _ORIGIN * side / _SIDE)
    _draw_head(canvas, p, skin, outline, halves)
    light = cv2.resize(_light(p, camera), (side, side), interpolation=cv2.INTER_CUBIC)
    head = cv2.multiply(canvas.image, light, dtype=cv2.CV_8U)
    at = (camera.unproject(shape) + _ORIGIN.astype(np.float32)) * np.float32(side / _SIDE) - 0.5
    head = cv2.remap(head, at, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    # What the head is laid over: two tones that blend, shoulders and neck.
    low, high = rng.uniform(40, 215, (2, 1)) + rng.normal(0, 20, (2, 3))
    blend = rng.random((5, 7, 1))
    scene = (low * blend + high * (1 - blend)).clip(0, 255).astype(np.uint8)
    image = cv2.resize(scene, shape[::-1], interpolation=cv2.INTER_CUBIC)
    canvas = _Canvas(image, camera.scale, camera.project(np.zeros((1, 2)))[0])
    tone = p["light"] * np.array([1 - p["warmth"], 1, 1 + p["warmth"]])
    body = {name: _whole(half) for name, half in FACE["body"].items()}
    body |= {"skin": skin * tone, "cloth": _bgr("cloth", p["clothes"]) * tone}
    canvas.paint(FACE["steps"]["body"], body)
    keep = cv2.cvtColor(255 - head[..., 3], cv2.COLOR_GRAY2BGR)
    image = cv2.add(cv2.multiply(image, keep, scale=1 / 255), head[..., :3])
    if p["blur"] > 0.25:
        image = cv2.GaussianBlur(image, (0, 0), p["blur"] * image.shape[0] / 96)
    if p["noise"]:
        image = image + p["noise"] * rng.standard_normal(image.shape, np.float32)
        image = image.clip(0, 255).astype(np.uint8)
    if p["jpeg"] < 100:
        jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, p["jpeg"]])[1]
        image = cv2.imdecode(jpeg, cv2.IMREAD_COLOR)
    return image


def true_box(parameters, size=224):
    """Return (x, y, width, height) in pixels of the face, brow to chin, without ears and hair."""
    outline, halves = _geometry(parameters)
    brows = [q["landmarks"][:4] * (q["side"], 1) for q in halves]
    face = np.concatenate([outline[outline[:, 1] > -0.35], *brows])
    pixels = _Camera(parameters, halves, np.broadcast_to(size, 2).tolist()).project(face)
    (x, y), (right, bottom) = pixels.min(axis=0), pixels.max(axis=0)
    return tuple(int(round(v)) for v in (x, y, right - x, bottom - y))


def _bgr(palette, number):
    return np.array([*bytes.fromhex(FACE["colours"][palette][number])][::-1], float)


@lru_cache
def _basis(count, closed):
    """Return the matrix (points, count) that runs a Catmull-Rom curve through `count` points."""
    eye = np.pad(np.eye(count), ((1, 2), (0, 0)), mode="wrap" if closed else "edge")
    t = np.linspace(0, 1, 5)[:-1, None] ** range(4)
    t = t @ [[0, 1, 0, 0], [-0.5, 0, 0.5, 0], [1, -2.5, 2, -0.5], [-0.5, 1.5, -1.5, 0.5]]
    rows = np.concatenate([t @ eye[i : i + 4] for i in range(count)])
    return rows[: None if closed else -3]  # an open curve ends at its last point


def _curve(points, closed=False):
    return _basis(len(points), closed) @ np.asarray(points, float)


def _whole(half):
    """Return the closed curve of a half outline, from its top to its bottom, and its mirror."""
    return _curve(np.concatenate([half, np.multiply(half[-2:0:-1], (-1, 1))]), closed=True)


def _geometry(p):
    """Return the closed contour of the head (N, 2), and (side, parameters, landmarks) of halves."""
    x, y = np.hsplit(_SHAPES["head"], 2)
    low = np.clip((y - 0.2) / 0.6, 0, 1)
    wide = p["head_width"] * (1 + (p["jaw_width"] - 1) * low)
    x, y = x * wide, y + (p["chin_length"] + 0.16 * p["AU26"]) * low
    rest, lips = np.array(FACE["landmarks"]["rest"], float), (0, 0.558)
    rest[4:12] = (rest[4:12] - rest[24]) * p["eye_size"] + rest[24]
    rest[4:12, 1] -= p["eye_tilt"] * (rest[4:12, 0] - 0.32) / 0.15
    rest[12:14, 0] *= p["nose_width"]
    rest[14:24] = (rest[14:24] - lips) * (p["mouth_width"], p["lip_fullness"]) + lips
    return _whole(np.hstack([x, y])), [_half(p, rest, -1), _half(p, rest, 1)]


def _half(p, landmarks, side):
    """Return parameters, landmarks and curves of half a face in one dict, x outwards."""
    letter = "L" if side == 1 else "R"
    q = p | {"side": side, "gaze_x": side * p["gaze_x"], "light_x": side * p["light_x"]}
    q |= {"AU12": max(p["AU12"], p[f"AU12{letter}"]), "AU14": p[f"AU14{letter}"]}
    half = landmarks + np.tensordot([q[unit] for unit in FACE["moves"]], _MOVES, 1)
    half[5:8] += (half[9:12] + (0, 0.004) - half[5:8]) * p["AU43"]
    half[20:22, 1] = np.maximum(half[20:22, 1], half[18:20, 1] + 0.002)
    half[22:24, 1] = np.maximum(half[22:24, 1], half[20:22, 1] + 0.02)
    for name, (at, add, factor, closed) in FACE["curves"].items():
        q[name] = _curve(half[at] + np.multiply(add, p.get(factor, 1)), closed)
    fold, eye = half[4:9] + (0, -0.045), half[24]
    fold[1:4, 1] = np.minimum(fold[1:4, 1], -0.09 - 0.08 * p["eye_size"])
    gaze = eye + 0.05 * np.array([[q["gaze_x"], q["gaze_y"]]])
    glint = gaze + (0.025 * np.sign(q["light_x"]), -0.028)
    if p["glasses"]:
        lens = _curve(FACE["glasses"][p["glasses"] - 1], True) * (side, 1) + eye + (0.005, 0.01)
        temple, bridge = [eye + (0.225, -0.03), (0.78, -0.12)], [eye - (0.22, 0.02), (0, -0.13)]
        q |= {"lens": lens, "rim": [*lens, lens[0]], "temple": temple, "bridge": bridge}
    return q | {"landmarks": half, "fold": _curve(fold), "gaze": gaze, "glint": glint}


def _bumps(rows):
    """Return (80, 80, n): the sum of soft bumps x, y, width, height, *n elevations."""
    centres, sizes, elevations = np.split(np.array(rows).T[..., None], [2, 4])
    at = (np.arange(_GRID) + 0.5) * (_SIDE / _GRID) - _ORIGIN[:, None, None]
    across, down = np.exp(-(((at - centres) / sizes) ** 2))
    return np.stack([down.T @ (across * z) for z in elevations], -1).astype(np.float32)


_TINT = 1 + _bumps([(side * x, *row) for x, *row in FACE["skin"]["tint"] for side in (-1, 1)])


class _Camera:
    """Where points of the face's plane fall in the picture, and back."""

    def __init__(self, p, halves, shape):
        angles = np.radians([-p["pitch"], p["yaw"], p["roll"]])
        nod, turn, roll = (cv2.Rodrigues(axis)[0] for axis in np.diag(angles))
        self.turn, rows = roll @ nod @ turn, []
        for q, (x, *oval, z, weights) in product(halves, FACE["skin"]["relief"]):
            z += sum(q[name] * weight for name, weight in weights.items())
            rows.append((q["side"] * x, *oval, z))
        self.relief = _bumps(rows)[..., 0]  # the height above the face's plane, in units
        self.smooth = cv2.GaussianBlur(self.relief, (0, 0), 2)
        self.scale, self.centre, (height, width) = p["scale"] * shape[0] / 1.42, np.zeros(2), shape
        middle = width / 2 + p["x"] * height, height / 2 + p["y"] * height
        self.centre = middle - self.project(np.array([[0.0, 0.29]]))[0]  # the face's middle

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


def _light(p, camera):
    """Return (80, 80, 4) factors: light and shade of the relief and tints of the skin; 1."""
    dy, dx = (d * np.float32(1.3 * _GRID / _SIDE) for d in np.gradient(camera.relief))
    sun = cv2.normalize(np.array([p["light_x"], p["light_y"], 0.9]), None).ravel() @ camera.turn
    half = cv2.normalize(sun + camera.turn[2], None).ravel()  # halfway to the camera: shine
    x, y, z = np.array([sun, half], np.float32)[..., None, None].swapaxes(0, 1)
    facing, shine = ((z - x * dx - y * dy) / np.sqrt(dx * dx + dy * dy + 1)).clip(-0.3, 1)
    hollow = np.clip(cv2.GaussianBlur(camera.relief, (0, 0), 3) - camera.relief, 0, 1)
    lit = 1 - p["contrast"] * (1 - 1.15 * (facing + np.float32(0.3)) / 1.3) - 2.2 * hollow
    lit = (lit * p["light"]).clip(0.15)[..., None]
    shade = lit + lit * (lit - 1) * np.float32((0.15, 0.05, -0.15))  # shadows on skin are warm
    shade += 0.1 * np.square(np.square(np.square(np.square(shine.clip(0)))))[..., None]
    shade = np.float32(shade * (_TINT * np.float32((1 - p["warmth"], 1, 1 + p["warmth"]))))
    return np.pad(shade, ((0, 0), (0, 0), (0, 1)), constant_values=1)


class _Canvas:
    """A uint8 image, BGR or premultiplied BGRA, in units of the face; mirrored if `side` is -1."""

    def __init__(self, image, scale, origin, side=1):
        self.image, self.scale, self.origin, self.side = image, scale, origin, side
        self.factor, self.shift = np.array([side, 1]) * (16 * scale), 16 * origin - 7.5

    def _pixels(self, points):
        """Return pixels in sixteenths, the first one's centre at 0, of one curve or several."""
        return (np.array(points, ndmin=3) * self.factor + self.shift).astype(np.int32)

    def fill(self, points, colour):
        cv2.fillPoly(self.image, self._pixels(points), (*colour, 255), cv2.LINE_AA, 4)

    def lines(self, curves, colour, width):
        """Draw open curves; a point twice is a round dot."""
        curves, width = self._pixels(curves), max(1, round(width * self.scale))
        cv2.polylines(self.image, curves, False, (*colour, 255), width, cv2.LINE_AA, 4)

    def disc(self, centre, colour, radius):
        centre, radius = self._pixels(centre)[0, 0].tolist(), round(radius * self.scale * 16)
        cv2.circle(self.image, centre, radius, (*colour, 255), -1, cv2.LINE_AA, 4)

    def paint(self, steps, face):
        """Take steps, which face.toml explains; `face` holds the curves and colours they name."""
        for operation, edges, what, *sizes in steps:
            first, *others = (face[edge] for edge in edges.split())
            points = np.concatenate([first, *(edge[::-1] for edge in others)])
            sizes = [s[0] + s[1] * face[s[2]] if isinstance(s, list) else s for s in sizes]
            if operation == "inside":
                self.inside(points, what, face, *sizes)
            else:
                getattr(self, operation)(points, face[what] * sizes[0], *sizes[1:])

    def inside(self, outline, steps, face, opacity=1.0, soft=0.0):
        """Take steps that show only within `outline`, its edge softened."""
        soft, pad = soft * self.scale, 3 + int(2 * soft * self.scale)
        x, y, w, h = cv2.boundingRect(self._pixels(outline) // 16)
        height, width = self.image.shape[:2]  # OpenCV draws on no empty image: a pixel stays
        left, top = min(max(x - pad, 0), width - 1), min(max(y - pad, 0), height - 1)
        before = self.image[top : max(y + h + pad, 1), left : max(x + w + pad, 1)]
        part = _Canvas(before.copy(), self.scale, self.origin - (left, top), self.side)
        part.paint(steps, face)
        mask = _Canvas(np.zeros_like(before[..., 0]), self.scale, part.origin, self.side)
        mask.fill(outline, (255,))
        mask = mask.image.astype(np.float32) * (opacity / 255)
        if soft > 0.3:
            mask = cv2.GaussianBlur(mask, (0, 0), soft)
        before[:] = cv2.blendLinear(part.image, before, mask, 1 - mask)


def _draw_head(canvas, p, skin, outline, halves):
    steps, rng = FACE["steps"], np.random.default_rng([p["identity"], 4])
    hair, wide, volume = _bgr("hair", p["hair_colour"]), (p["head_width"], 1), p["hair_volume"]
    lips = skin * (0.68, 0.62, 0.88) * (1 - 0.25 * p["makeup"] * np.array([0.8, 1, 0]))
    p = p | FACE["hair"]["styles"][p["hair_style"]]
    p["cover"] = _bgr("cloth", (p["clothes"] + 4) % 10) if "scarf" in p else hair
    p |= {name: _bgr("paint", name) for name in FACE["colours"]["paint"]}
    p |= {"skin": skin, "hair": hair, "lips": lips, "iris": _bgr("iris", p["eye_colour"])}
    image, scale, origin = canvas.image, canvas.scale, canvas.origin
    halves = [(_Canvas(image, scale, origin, q["side"]), p | q) for q in halves]
    edge = _whole(_SHAPES["hair_behind"]) * (1 + volume, 1)
    edge[:, 1] *= np.where(edge[:, 1] > 0, p["hair_length"] / 1.2, 1)
    canvas.paint(p["behind"], p | {"behind": edge, "bun": [(0, -1.36)], "crown": [(0, -0.38)]})
    if "curls" in p:
        _curls(canvas, hair, rng, 0.72, 0.85 + 1.4 * volume)
    ear = _curve(_SHAPES["ear"] + (0.74 * p["head_width"], 0), True)
    canvas.fill([ear, ear * (-1, 1)], skin * 0.85)
    canvas.fill(outline, skin)
    for (part, q), (*crease, weights) in product(halves, FACE["skin"]["creases"]):
        depth = min(1, sum(q[name] * weight for name, weight in weights.items()))
        if depth > 0.05:
            part.lines(_curve(crease), skin * (1 - 0.42 * depth), 0.022)
    canvas.image[:] = cv2.GaussianBlur(canvas.image, (0, 0), max(0.3, 0.012 * canvas.scale))
    p |= {"jaw": outline[outline[:, 1] > 0.12], "beard_edge": _curve(_SHAPES["beard"])}
    if p["beard"]:
        canvas.paint(steps["beard"], p)
    _draw_mouth(canvas, p, halves)
    for part, q in halves:
        part.paint(steps["nose"], q)
        if q["AU43"] < 0.9:
            part.paint(steps["eyeball"], q)
        part.paint(steps["lids_and_brow"] + steps["glasses"][p["glasses"]], q)
    if "edge" in p:
        _draw_hair(p, hair, halves, rng)
    if "curls" in p:
        _curls(canvas, hair, rng, 0.6 - p["hairline"], 0.75 + volume)
    if 0 < p["occlusion"] <= len(FACE["covers"]):  # older data sets hold other numbers
        edge = np.array(list(FACE["covers"].values())[p["occlusion"] - 1]) * wide
        colour = 4 if p["occlusion"] == 3 else (p["clothes"] + 7) % 10  # glasses are dark
        canvas.fill(_whole(edge), _bgr("cloth", colour))


def _draw_mouth(canvas, p, halves):
    """Add the curves of the mouth, which run across both halves, to `p`, and draw it."""
    left, right = (q["landmarks"] * (part.side, 1) for part, q in halves)
    middle = (left + right) / 2
    for name, (*outer, centre) in FACE["lips"].items():
        p[name] = _curve([*left[outer], middle[centre], *right[outer[::-1]]])
    p["bite"] = p["upper_teeth"] * (0.9, 1) + (0, 0.07)
    p["tongue_edge"] = _curve(_SHAPES["tongue"]) + middle[20]
    if middle[20, 1] - middle[18, 1] > 0.012:
        canvas.paint(FACE["steps"]["open_mouth"], p)
    canvas.paint(FACE["steps"]["lips"], p)


def _draw_hair(p, hair, halves, rng):
    wide, volume = (p["head_width"], 1), p["hair_volume"]
    outer = _SHAPES["hair_outside"] * (1 + 0.6 * volume) * wide - (0, 0.2 + 0.4 * volume)
    inner = np.array(p["edge"], float) * wide
    outer[4] = inner[4] + (0.03, 0)
    if "long" in p:
        inner[4, 1] = p["hair_length"]
        outer[3:] = (0.86 + volume, 0.1), (0.78 + volume, p["hair_length"])
    inner[:3, 1] += p["hairline"]
    shift = np.outer([1, 0.8, 0.3, 0, 0], (p["hair_part"], 0))
    for part, q in halves:
        top, low = (_curve(edge + shift * (part.side, 1)) for edge in (outer, inner))
        q |= {"top": top, "low": low, "shadow": low + (-0.03, 0.04)}
        part.paint(FACE["steps"]["hair"], q)
        for tone in p["strands"]:
            part.lines(top + rng.random((6, 1, 1)) * (low - top), hair * tone, 0.022)


def _curls(canvas, hair, rng, low, high):
    """Strew curls between two radii round the top of the head."""
    angle, radius = rng.uniform(-np.pi - 0.2, 0.2, 240), rng.uniform(low, high, 240)
    dots = np.stack([np.cos(angle) * radius, np.sin(angle) * radius - 0.38], -1)[:, None]
    for i, tone in enumerate((0.78, 0.88, 1.0, 1.08)):
        canvas.lines(dots[i::4].repeat(2, axis=1), hair * tone, 0.1)
