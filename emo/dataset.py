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
    split = manifest.get("split", pd.Series("", index=manifest.index)).fillna("").astype(str)
    if unknown := set(split) - {"", *SPLIT_SHARES}:
        raise EmoError(f"split {sorted(unknown)[0]!r} is unknown; expected train, val or test")
    if "val" not in set(split):
        split = split.where(split != "train", "")  # official train without val: carve val from it
    official = set(split) - {"train"}
    shares = {name: share for name, share in SPLIT_SHARES.items() if name not in official}
    empty = split == ""
    if empty.any():
        split[empty] = _draw_splits(manifest[empty], shares, seed)
    return manifest.assign(split=split)


def _draw_splits(manifest, shares, seed):
    group = manifest.get("group", manifest["image_path"]).astype(object)
    group = group.where(group.notna(), manifest["image_path"]).astype(str).to_numpy(object)
    counts = pd.crosstab(group, manifest["emotion"].to_numpy())  # a row for each group
    # A group counts as its most frequent emotion; within an emotion, groups stand in hash order.
    units = pd.DataFrame({"emotion": counts.idxmax(axis=1), "rows": counts.sum(axis=1)})
    names = units.index.to_numpy(object)
    units["order"] = pd.util.hash_array(names, hash_key=f"emo{seed:013d}")
    units = units.rename_axis("group").sort_values(["emotion", "order", "group"])
    rows = units.groupby("emotion")["rows"]
    place = (rows.cumsum() - units["rows"] / 2) / rows.transform("sum")
    bounds = np.cumsum(list(shares.values())) / sum(shares.values())
    split = np.array(list(shares), object)[np.searchsorted(bounds[:-1], place, side="right")]
    return pd.Series(split, units.index)[group].to_numpy()


def decode(path):
    """Read an image file as BGR uint8 (H, W, 3), turned upright; None when it is unreadable."""
    try:
        data = np.fromfile(path, np.uint8)  # cv2.imread fails on non-ASCII paths on Windows
        return cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    except (OSError, cv2.error):
        return None


def resize_face(face_bgr, size):
    """Scale a face (H, W, 3) BGR uint8 to (size, size, 3), for training and live alike."""
    shape = getattr(face_bgr, "shape", None)
    if not shape or len(shape) != 3 or shape[2] != 3 or 0 in shape:
        raise EmoError(f"expected a face as a BGR image (H, W, 3), got {shape}")
    if shape[:2] == (size, size):
        return face_bgr
    way = cv2.INTER_AREA if min(shape[:2]) > size else cv2.INTER_LINEAR
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
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    matrix = torch.stack([mirror * cos, -sin, zero, mirror * sin, cos, zero], dim=1).view(-1, 2, 3)
    grid = functional.affine_grid(matrix, images.shape, align_corners=False).to(images.dtype)
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
        self.votes = None
        if set(PROBABILITY_COLUMNS) <= set(manifest):
            self.votes = torch.tensor(manifest[list(PROBABILITY_COLUMNS)].to_numpy(np.float32))

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
    return DataLoader(  # `dict` leaves the batch of `__getitems__` as it is
        dataset, batch_size, shuffle, generator=generator, drop_last=drop_last, collate_fn=dict
    )


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
    readable = np.delete(np.arange(len(paths)), facts["unreadable"])
    if not len(readable):
        raise EmoError(f"none of the {len(paths)} images in {root} is readable; get them again")
    kept = manifest.iloc[readable].reset_index(drop=True)
    kept.attrs["unreadable"] = [paths[i] for i in facts["unreadable"]]
    return _Rows(images, readable) if facts["unreadable"] else images, kept, facts["colour"]


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
        sizes = f"{needed / 1e9:.1f} GB for {len(paths)} images, {free / 1e9:.1f} GB are free"
        raise EmoError(f"{target.parent} needs {sizes}; make room or use a smaller image size")
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
                    grey = grey and (face == face[..., :1]).all()
        pack.flush()
        del pack
        facts = {"unreadable": unreadable, "colour": "grey" if grey else "rgb"}
        write_json(target.with_suffix(".json"), facts)


def _face(path, size):
    image = decode(path)
    return None if image is None else cv2.cvtColor(resize_face(image, size), cv2.COLOR_BGR2RGB)
