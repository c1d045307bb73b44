"""Splits, packed images, batches and augmentation. Explained in notebooks/02 and 03."""

import hashlib
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from emo.emotions import PROBABILITY_COLUMNS
from emo.errors import EmoError
from emo.files import atomic_path, read_json, write_json

IMAGE_MEAN = (0.485, 0.456, 0.406)  # ImageNet, RGB: what the pretrained backbones were fed
IMAGE_STD = (0.229, 0.224, 0.225)
SPLIT_SHARES = {"train": 0.70, "val": 0.15, "test": 0.15}
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, RGB: what cv2.COLOR_RGB2GRAY uses


def split_manifest(manifest, seed=0):
    """Fill `split` where it is empty: 70/15/15 by emotion, or what official parts leave open.

    A row's place depends on its path (or its `group`) and the seed alone, so reordering the rows
    changes nothing, and a group never straddles two splits. Given a test part, val is carved out
    of train: choosing a model on the part that one reports would flatter it.
    """
    manifest = manifest.copy()
    split = manifest.get("split", pd.Series("", index=manifest.index)).fillna("").astype(str)
    unknown = set(split) - {"", *SPLIT_SHARES}
    if unknown:
        raise EmoError(f"split {sorted(unknown)[0]!r} is unknown; expected train, val or test")
    if "val" not in set(split):
        split = split.where(split != "train", "")  # official train without val: carve val from it
    shares = {
        name: s for name, s in SPLIT_SHARES.items() if name not in set(split) or name == "train"
    }
    empty = (split == "").to_numpy()
    if empty.any():
        split = split.to_numpy(object)
        split[empty] = _draw_splits(manifest[empty], shares, seed)
    manifest["split"] = split
    return manifest


def _draw_splits(manifest, shares, seed):
    group = manifest["image_path"].astype(str)
    if "group" in manifest:
        group = manifest["group"].astype(object).where(manifest["group"].notna(), group).astype(str)
    order = pd.util.hash_array(group.to_numpy(object), hash_key=f"emo{seed:013d}")
    names, bounds = list(shares), np.cumsum(list(shares.values())) / sum(shares.values())
    table = pd.DataFrame({"group": group.to_numpy(), "order": order})
    table["emotion"] = manifest["emotion"].to_numpy()
    # A group counts as its most frequent emotion; within an emotion, groups stand in hash order.
    sizes = table.groupby(["group", "order", "emotion"]).size().reset_index(name="rows")
    sizes = sizes.sort_values(["rows", "emotion"], ascending=[False, True])
    units = sizes.drop_duplicates("group").drop(columns="rows")
    units = units.merge(table.groupby("group").size().reset_index(name="rows"), on="group")
    units = units.sort_values(["emotion", "order", "group"])
    middle = units.groupby("emotion")["rows"].cumsum() - units["rows"] / 2
    place = middle / units.groupby("emotion")["rows"].transform("sum")
    units["split"] = np.array(names, object)[np.searchsorted(bounds[:-1], place, side="right")]
    return group.map(units.set_index("group")["split"]).to_numpy(object)


def decode(path):
    """Read an image file as BGR uint8 (H, W, 3), turned upright; None when it is unreadable."""
    try:
        data = np.fromfile(path, np.uint8)  # cv2.imread fails on non-ASCII paths on Windows
        return cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    except (OSError, cv2.error):
        return None


def resize_face(face_bgr, size):
    """Scale a face crop (H, W, 3) BGR uint8 to (size, size, 3), averaging when it shrinks.

    The one place where faces are resized: training, evaluation and the live demo all call it.
    """
    if face_bgr is None or face_bgr.ndim != 3 or face_bgr.shape[2] != 3 or not face_bgr.size:
        shape = None if face_bgr is None else face_bgr.shape
        raise EmoError(f"expected a face as a BGR image (H, W, 3), got {shape}")
    if face_bgr.shape[:2] == (size, size):
        return face_bgr
    shrinks = min(face_bgr.shape[:2]) > size
    way = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(face_bgr, (size, size), interpolation=way)


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


def augment(images, degrees=15.0):
    """Flip and rotate normalised images (B, 3, H, W) by up to ±`degrees`, each one differently.

    A mirrored face keeps its emotion, valence and arousal. Corners repeat the border.
    """
    count, device = len(images), images.device
    angle = torch.deg2rad((torch.rand(count, device=device) * 2 - 1) * degrees)
    mirror = torch.where(torch.rand(count, device=device) < 0.5, -1.0, 1.0)
    zero = torch.zeros_like(angle)
    rows = [
        torch.stack([mirror * angle.cos(), -angle.sin(), zero], dim=1),
        torch.stack([mirror * angle.sin(), angle.cos(), zero], dim=1),
    ]
    grid = functional.affine_grid(torch.stack(rows, dim=1), images.shape, align_corners=False)
    grid = grid.to(images.dtype)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


class FaceDataset(Dataset):
    """Packed faces with their labels; `make_loader` makes batches of it.

    `images` (N, S, S, 3) uint8 RGB, usually a memory map; `manifest` has one row for each. The
    batch holds `image` (B, 3, S, S) uint8 (see `normalise`), `emotion` (B,) int64 with −1 =
    unknown, `va` (B, 2) float32 with NaN = unknown and, where annotators voted, `votes` (B, 8).
    """

    def __init__(self, images, manifest):
        self.images, self.manifest = images, manifest.reset_index(drop=True)
        self.emotion = torch.from_numpy(manifest["emotion"].to_numpy(np.int64, copy=True))
        va = manifest[["valence", "arousal"]].to_numpy(np.float32, copy=True)
        self.va = torch.from_numpy(va)
        self.votes = None
        if set(PROBABILITY_COLUMNS) <= set(manifest):
            votes = manifest[list(PROBABILITY_COLUMNS)].to_numpy(np.float32, copy=True)
            self.votes = torch.from_numpy(votes)

    def __len__(self):
        return len(self.manifest)

    def __getitem__(self, index):
        return {name: value[0] for name, value in self.__getitems__([index]).items()}

    def __getitems__(self, indices):
        """Return one batch; PyTorch's loader calls this instead of one call an item."""
        indices = np.asarray(indices)
        image = torch.from_numpy(self.images[indices]).permute(0, 3, 1, 2)
        batch = {"image": image, "emotion": self.emotion[indices], "va": self.va[indices]}
        return batch if self.votes is None else batch | {"votes": self.votes[indices]}

    def part(self, split):
        """Return the rows of one split, or raise `EmoError` when there are none."""
        rows = np.flatnonzero((self.manifest["split"] == split).to_numpy())
        if not len(rows):
            there = ", ".join(sorted(set(self.manifest["split"]))) or "none"
            raise EmoError(f"the data has no {split} part (parts: {there}); name another split")
        return FaceDataset(_Rows(self.images, rows), self.manifest.iloc[rows])


class _Rows:
    """Some rows of an array, without a copy of it in memory."""

    def __init__(self, images, rows):
        self.images, self.rows = images, rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, indices):
        return self.images[self.rows[indices]]


def make_loader(dataset, batch_size, shuffle=False, seed=0, drop_last=False):
    """Return a `DataLoader` of whole batches; `seed` fixes the order of a shuffled epoch."""
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=shuffle,
        generator=generator,
        drop_last=drop_last,
        collate_fn=_whole_batch,
    )


def _whole_batch(batch):
    return batch


def pack_images(manifest, root, image_size):
    """Decode and resize every image once; return (images, readable manifest, colour).

    `images` is a memory map (N, S, S, 3) of RGB uint8 cached below `root/.emo`, keyed by the
    files' names, sizes and times; `colour` is "grey" when every image is. Unreadable images are
    left out of the manifest and counted in `manifest.attrs["unreadable"]`.
    """
    root, paths = Path(root), list(manifest["image_path"])
    if not 32 <= image_size <= 512:
        raise EmoError(f"image size {image_size} is out of range; expected 32 to 512 pixels")
    if not paths:
        raise EmoError(f"{root} holds no labelled images; run notebooks/01_download.ipynb first")
    target = _pack_path(root, paths, image_size)
    if not (target.is_file() and target.with_suffix(".json").is_file()):
        _write_pack(target, root, paths, image_size)
    facts = read_json(target.with_suffix(".json"))
    images = np.load(target, mmap_mode="r")
    readable = np.ones(len(paths), bool)
    readable[facts["unreadable"]] = False
    if not readable.any():
        raise EmoError(f"none of the {len(paths)} images in {root} is readable; get them again")
    kept = manifest[readable].reset_index(drop=True)
    kept.attrs["unreadable"] = [paths[i] for i in facts["unreadable"]]
    rows = images if readable.all() else _Rows(images, np.flatnonzero(readable))
    return rows, kept, facts["colour"]


def _pack_path(root, paths, image_size):
    key = hashlib.sha256(f"1 {image_size}".encode())
    for path in paths:
        try:
            facts = (root / path).stat()
            key.update(f"{path} {facts.st_size} {facts.st_mtime_ns}\n".encode())
        except OSError:
            key.update(f"{path} missing\n".encode())
    return root / ".emo" / f"faces{image_size}-{key.hexdigest()[:16]}.npy"


def _write_pack(target, root, paths, image_size):
    shape = (len(paths), image_size, image_size, 3)
    target.parent.mkdir(parents=True, exist_ok=True)
    needed, free = int(np.prod(shape)), shutil.disk_usage(target.parent).free
    if needed > free:
        raise EmoError(
            f"packing {len(paths)} images at {image_size} px needs {needed / 1e9:.1f} GB in "
            f"{target.parent}, only {free / 1e9:.1f} GB are free; make room or use a smaller size"
        )
    unreadable, grey = [], True
    with atomic_path(target) as temporary:
        pack = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)
        with ThreadPoolExecutor() as pool:  # cv2 releases the interpreter lock while it decodes
            faces = pool.map(lambda path: _face(root / path, image_size), paths)
            for row, face in enumerate(tqdm(faces, "Packing images", len(paths), unit="image")):
                if face is None:
                    unreadable.append(row)
                else:
                    pack[row] = face
                    grey = grey and _is_grey(face)
        pack.flush()
        del pack
        facts = {"unreadable": unreadable, "colour": "grey" if grey else "rgb"}
        write_json(target.with_suffix(".json"), facts)


def _face(path, size):
    image = decode(path)
    return None if image is None else cv2.cvtColor(resize_face(image, size), cv2.COLOR_BGR2RGB)


def _is_grey(face):
    return np.array_equal(face[..., 0], face[..., 1]) and np.array_equal(face[..., 1], face[..., 2])
