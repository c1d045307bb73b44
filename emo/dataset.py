"""Splits, packed images, batches and augmentation. Explained in notebooks/02 and 03."""

import hashlib
import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from filelock import FileLock
from PIL import Image
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm.auto import tqdm

from emo import EmoError
from emo.emotions import PROBABILITY_COLUMNS
from emo.files import read_json, require_space, work_folder, write_json

IMAGE_MEAN = (0.485, 0.456, 0.406)  # ImageNet, RGB: what the pretrained backbones were fed
IMAGE_STD = (0.229, 0.224, 0.225)
LUMA = (0.299, 0.587, 0.114)  # of R, G and B: BT.601, as OpenCV
SPLIT_SHARES = {"train": 0.70, "val": 0.15, "test": 0.15}
BLOCK, CHUNK = 4096, 32  # images written down as done at once; images of one task of a thread


def split_manifest(manifest, seed=0):
    """Fill `split` where it is empty: 70/15/15 by emotion, or what official parts leave open.

    A row's place depends on its path (or its `group`) and the seed alone, not on the rows' order;
    a group never straddles two splits. Official parts stay. Choosing a model on the part that one
    reports would flatter it: val without a test part becomes test, and val is carved from train.
    """
    split = manifest.get("split", pd.Series("", index=manifest.index)).fillna("").astype(str)
    if unknown := set(split) - {"", *SPLIT_SHARES}:
        raise EmoError(f"split {sorted(unknown)[0]!r} is unknown; expected train, val or test")
    if "group" in manifest:  # what is open follows the official part of its group
        official = split.where(split != "").groupby(manifest["group"]).transform("first")
        split = split.where(split != "", official.fillna(""))
    if set(split) == {"train", "val"}:
        split = split.replace("val", "test")
    if "val" not in set(split):
        split = split.replace("train", "")
    shares = {n: s for n, s in SPLIT_SHARES.items() if n == "train" or n not in set(split)}
    rest = manifest[split == ""]
    group = rest.get("group", rest["image_path"]).astype(object)
    group = group.where(group.notna(), rest["image_path"]).astype(str)
    code, names = pd.factorize(group.to_numpy(object), sort=True)
    counts = pd.get_dummies(rest["emotion"].to_numpy()).groupby(code).sum()  # rows of each group
    # A group counts as its most frequent emotion; within an emotion, groups stand in hash order.
    units = pd.DataFrame({"emotion": counts.idxmax(axis=1), "rows": counts.sum(axis=1)})
    units["order"] = pd.util.hash_array(names, hash_key=f"emo{seed:013d}", categorize=False)
    rows = units.sort_values(["emotion", "order"]).groupby("emotion")["rows"]
    place = (rows.cumsum() - units["rows"] / 2) / rows.transform("sum")
    bounds = np.cumsum([0, *shares.values()]) / sum(shares.values())
    part = pd.cut(place, bounds, right=False, labels=list(shares)).astype(object)
    split[split == ""] = part[code].to_numpy()
    return manifest.assign(split=split)


def decode(path, flags=cv2.IMREAD_COLOR):
    """Read an image as BGR uint8 (H, W, 3), upright; None when it is unreadable or cut off.

    One of more than 179 million pixels is not read: a small file may claim to be that large.
    """
    try:
        data = Path(path).read_bytes()  # cv2.imread fails on non-ASCII paths on Windows
        cut_off = data[:2] == b"\xff\xd8" and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda")
        whole = data and not cut_off  # a JPEG ends (FF D9) after its last scan (FF DA)
        with Image.open(io.BytesIO(data)):  # reads the size alone, and refuses a bomb
            return cv2.imdecode(np.frombuffer(data, np.uint8), flags) if whole else None
    except Exception:  # both raise whatever the damage leads to
        return None


def resize_face(face_bgr, size):
    """Scale a face (H, W, 3) uint8 to (size, size, 3), for training and live alike."""
    shape = getattr(face_bgr, "shape", None)
    if not shape or len(shape) != 3 or shape[2] != 3 or 0 in shape:
        raise EmoError(f"expected a face as a BGR image (H, W, 3), got {shape}")
    while min(face_bgr.shape[:2]) >= 2 * size:  # smooth, and faster than the mean over an area
        half = [length // 2 for length in face_bgr.shape[1::-1]]
        face_bgr = cv2.resize(face_bgr, half, interpolation=cv2.INTER_LINEAR)
    return cv2.resize(face_bgr, (size, size), interpolation=cv2.INTER_LINEAR)


def normalise(images, mean=IMAGE_MEAN, std=IMAGE_STD, colour="rgb"):
    """Turn RGB uint8 (B, 3, H, W) into what the model is fed: float32, minus mean, over std.

    `colour="grey"` replaces the channels by their luma first: for models of grey photographs.
    """
    images = images.float() / 255
    if colour == "grey":
        weights = images.new_tensor(LUMA).view(1, 3, 1, 1)
        images = (images * weights).sum(dim=1, keepdim=True).expand(-1, 3, -1, -1)
    mean = images.new_tensor(mean).view(1, 3, 1, 1)
    return (images - mean) / images.new_tensor(std).view(1, 3, 1, 1)


def augment(images, degrees=15.0, zoom=0.0, shift=0.0):
    """Mirror, turn, crop and move normalised images (B, 3, H, W), each one differently.

    A mirrored face keeps its emotion, valence and arousal. `degrees`: the largest rotation; `zoom`:
    the share of the area that a crop may leave out; `shift`: the largest move, in sides of the
    image. One resampling does it all, on the images' device; corners repeat the border.
    """
    draws = torch.rand(6, len(images), device=images.device)  # [0, 1)
    angle, ratio, x, y = (draws[:4] * 2 - 1).unbind()
    mirror = torch.where(draws[4] < 0.5, -1.0, 1.0)
    side, stretch = (1 - zoom * draws[5]).sqrt(), (ratio * zoom / 4).exp()
    across, down = side * stretch, side / stretch
    x, y = (v * ((1 - s).clamp(min=0) + 2 * shift) for v, s in ((x, across), (y, down)))
    cos, sin = torch.deg2rad(angle * degrees).cos(), torch.deg2rad(angle * degrees).sin()
    rows = [mirror * cos * across, -sin * down, x, mirror * sin * across, cos * down, y]
    matrix = torch.stack(rows, dim=1).view(-1, 2, 3)
    grid = functional.affine_grid(matrix, images.shape, align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


class FaceDataset(Dataset):
    """Packed faces with their labels; `make_loader` makes batches of it.

    `images` (N, S, S, 3) uint8 RGB, usually a memory map; `manifest` has one row for each. The
    batch holds `image` (B, 3, S, S) uint8 (see `normalise`), `emotion` (B,) int64 with −1 =
    unknown, `va` (B, 2) float32 with NaN = unknown and, where annotators voted, `votes` (B, 8).
    """

    def __init__(self, images, manifest):
        self.images, self.manifest = images, manifest.reset_index(drop=True)
        self.emotion = torch.tensor(manifest["emotion"].to_numpy(np.int64))
        self.va = torch.tensor(manifest[["valence", "arousal"]].to_numpy(np.float32))
        votes = manifest.reindex(columns=PROBABILITY_COLUMNS).to_numpy(np.float32)
        self.votes = torch.tensor(votes) if set(PROBABILITY_COLUMNS) <= set(manifest) else None

    def __len__(self):
        return len(self.manifest)

    def __getitem__(self, index):
        return {name: value[0] for name, value in self.__getitems__([index]).items()}

    def __getitems__(self, indices):
        """Return one batch; PyTorch's loader calls this instead of one call an item."""
        image = torch.from_numpy(self.images[indices]).permute(0, 3, 1, 2)
        batch = {"image": image, "emotion": self.emotion[indices], "va": self.va[indices]}
        return batch if self.votes is None else batch | {"votes": self.votes[indices]}

    def part(self, split):
        """Return the rows of one split, or raise `EmoError` when there are none."""
        rows = np.flatnonzero((self.manifest["split"] == split).to_numpy())
        if not len(rows):
            there = ", ".join(sorted(set(self.manifest["split"]))) or "none"
            raise EmoError(f"the data has no {split} part (parts: {there}); name another split")
        return FaceDataset(Subset(self.images, rows), self.manifest.iloc[rows])


def make_loader(dataset, batch_size, shuffle=False, seed=0, drop_last=False):
    """Return a `DataLoader` of whole batches; `seed` fixes the order of a shuffled epoch."""
    options = {"drop_last": drop_last, "generator": torch.Generator().manual_seed(seed)}
    options["collate_fn"] = dict  # leaves the batch of `__getitems__` as it is
    return DataLoader(dataset, batch_size, shuffle, pin_memory=torch.cuda.is_available(), **options)


def pack_images(manifest, root, image_size, pack=True):
    """Decode and resize every image once; return (images, readable manifest, colour).

    `images` is a memory map (N, S, S, 3) of RGB uint8, kept in `files.work_folder(root)` and made
    again when a file's name, size or time changes; `colour` is "grey" when every image is.
    Unreadable images are left out of the manifest, listed in its `attrs["unreadable"]`. A killed
    call is resumed by the next. Without `pack`, `images` decodes at each look, or raises EmoError.
    """
    root, paths = Path(root), list(manifest["image_path"])
    if not 32 <= image_size <= 512:
        raise EmoError(f"image size {image_size} is out of range; expected 32 to 512 pixels")
    if not paths:
        raise EmoError(f"{root} holds no labelled images; run notebooks/01_download.ipynb first")
    if not pack:
        images = _Files(root, paths, image_size)
        looks = images[np.linspace(0, len(paths) - 1, min(200, len(paths))).astype(int)]
        grey = np.array_equal(looks[..., :2], looks[..., 1:])  # its channels are the same
        return images, manifest.reset_index(drop=True), "grey" if grey else "rgb"
    key = hashlib.sha256(f"2 {image_size}".encode())
    for path in paths:
        try:
            facts = os.stat(f"{root}/{path}")
            key.update(f"{path} {facts.st_size} {facts.st_mtime_ns}\n".encode())
        except OSError:
            key.update(f"{path} missing\n".encode())
    target = work_folder(root) / f"faces{image_size}-{key.hexdigest()[:16]}.npy"
    with FileLock(target.with_suffix(".lock")):  # makes its folder; a second process waits
        if not (target.is_file() and target.with_suffix(".json").is_file()):
            _write_pack(target, root, paths, image_size)
    try:
        facts = read_json(target.with_suffix(".json"))
        images = np.load(target, mmap_mode="r").reshape(len(paths), image_size, image_size, 3)
        readable = np.delete(np.arange(len(paths)), facts["unreadable"])
    except Exception as error:  # whatever the damage leads to
        raise EmoError(f"{target} is damaged ({error}); delete it, it is made again") from error
    if not len(readable):
        raise EmoError(f"none of the {len(paths)} images in {root} is readable; get them again")
    kept = manifest.iloc[readable].reset_index(drop=True)
    kept.attrs["unreadable"] = [paths[i] for i in sorted(facts["unreadable"])]
    return Subset(images, readable) if facts["unreadable"] else images, kept, facts["colour"]


class _Files:
    """Faces (N, S, S, 3) that are decoded when they are asked for."""

    def __init__(self, root, paths, size):
        self.root, self.paths, self.size = root, paths, size
        self.pool = ThreadPoolExecutor()

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, indices):
        paths = [self.root / self.paths[i] for i in indices]
        faces = np.empty((len(paths), self.size, self.size, 3), np.uint8)
        for path, readable in zip(paths, self.pool.map(_decode_face, paths, faces), strict=True):
            if not readable:
                raise EmoError(f"{path} is unreadable; skip such: emo check --data-dir {self.root}")
        return faces


def _write_pack(target, root, paths, image_size):
    """Fill the pack block by block, noting what is done; go on where a killed process stopped."""
    part, note = target.with_suffix(".part"), target.with_suffix(".json")
    if not part.is_file():
        note.unlink(missing_ok=True)  # of a pack that somebody deleted
    facts = read_json(note) if note.is_file() else {"done": 0, "unreadable": [], "colour": "grey"}
    shape = (len(paths), image_size, image_size, 3)
    if not facts["done"]:
        require_space(target, int(np.prod(shape)), "make room, or use --no-pack")
    start = np.lib.format.open_memmap(part, "r+" if facts["done"] else "w+", np.uint8, shape).offset

    def fill(first):
        """Decode one chunk and write it in its place (written, a full disk raises no signal)."""
        faces = np.zeros((min(CHUNK, len(paths) - first), *shape[1:]), np.uint8)
        for row, face in enumerate(faces, first):
            if not _decode_face(f"{root}/{paths[row]}", face):
                facts["unreadable"].append(row)
        if facts["colour"] == "grey" and not np.array_equal(faces[..., :2], faces[..., 1:]):
            facts["colour"] = "rgb"
        with open(part, "r+b") as file:
            file.seek(start + first * faces[0].size)
            file.write(faces)
        return len(faces)

    bar = tqdm(desc="Packing images", total=len(paths), initial=facts["done"], unit="image")
    with ThreadPoolExecutor() as pool, bar:  # OpenCV releases the lock while it decodes
        for first in range(facts["done"], len(paths), BLOCK):
            facts["done"] = min(first + BLOCK, len(paths))
            for done in pool.map(fill, range(first, facts["done"], CHUNK)):
                bar.update(done)
            write_json(note, facts)
    os.replace(part, target)


def _decode_face(path, out):
    """Decode a file into `out` (S, S, 3) uint8, RGB; tell whether it was readable."""
    image = decode(path, cv2.IMREAD_COLOR_RGB)
    if image is not None:
        out[:] = resize_face(image, len(out))
    return image is not None
