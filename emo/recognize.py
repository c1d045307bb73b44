"""Any exported file → predictions, through one preprocessor. Used from notebooks/05 and 06."""

import json
import os
import threading
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from emo import EmoError, faces, files, metrics
from emo.dataset import IMAGE_MEAN, IMAGE_STD, LUMA, resize_face
from emo.model import load_model

CHUNK = 64  # faces in one forward pass, so that a long list does not fill the memory
STARTER = Path(__file__).with_name("assets") / "starter.onnx"  # made by docs/make_starter.py
NOT_SURE = 0.35  # confidence below which the front ends say "not sure"
PREPROCESSING = ("image_size", "mean", "std", "colour")
# What a model's config may say: one of these values, or numbers from … to … of a shape.
CHOICES = {"colour": ("rgb", "grey"), "va": ("annotated", "derived", "none")}
RANGES = {"image_size": (32, 512, ()), "mean": (-10, 10, (3,)), "std": (1e-3, 10, (3,))}
RANGES |= {"temperature": (0.01, 100, ()), "crop_margin": (0, 2, ())}


class EmotionPreprocessor:
    """Turn face crops into model input; `create_recognizer(…).preprocessor` fits a model."""

    def __init__(self, image_size=224, mean=IMAGE_MEAN, std=IMAGE_STD, colour="rgb"):
        if colour not in ("rgb", "grey"):
            raise EmoError(f"colour is {colour!r}; expected 'rgb' or 'grey'")
        self.image_size = image_size
        self.mean, self.std, self.colour = list(mean), list(std), colour

    def preprocess_cv2(self, face_bgr):
        """Map one face crop (H, W, 3) BGR uint8 to a float tensor (1, 3, S, S)."""
        return self.preprocess_batch([face_bgr])

    def preprocess_batch(self, faces_bgr):
        """Map a list of BGR uint8 crops of any sizes to a float tensor (B, 3, S, S)."""
        # As `dataset.normalise`, but looked up: the threads with which PyTorch would compute it
        # keep those of ONNX Runtime from their cores, 20 ms a face.
        mean, std = (np.float32(v)[:, None] for v in (self.mean, self.std))  # (3, 1)
        values, grey = np.arange(256, dtype=np.float32) / 255, self.colour == "grey"
        table = values * np.float32(LUMA)[:, None] if grey else (values - mean) / std  # (3, 256)
        tensors = np.empty((len(faces_bgr), 3, self.image_size, self.image_size), np.float32)
        for face, out in zip(faces_bgr, tensors, strict=True):
            face = resize_face(face, self.image_size)
            for channel, plane in enumerate(out):  # R, G, B
                np.take(table[channel], face[..., 2 - channel], out=plane, mode="clip")
            if grey:
                out[:] = (out.sum(axis=0) - mean[..., None]) / std[..., None]
        return torch.from_numpy(tensors)


class EmotionRecognizer:
    """One model file of any format, safe with threads; `run` maps arrays as the method `run`."""

    def __init__(self, run, config):
        self._run, self.config, self._lock = run, config, threading.Lock()
        self.classes, self.va = list(config["classes"]), config.get("va", "none")
        self.temperature = float(config.get("temperature", 1.0))
        self.crop_margin = float(config.get("crop_margin", faces.DEFAULT_MARGIN))
        self.preprocessor = EmotionPreprocessor(*(config[name] for name in PREPROCESSING))

    def predict(self, tensor):
        """Predict one face, a tensor (1, 3, S, S) or (3, S, S) from the preprocessor.

        Returns `emotion`, `emotion_id`, `confidence`, `probabilities` (by class name),
        `valence` and `arousal` in [−1, 1]; both are None for a model never taught them.
        """
        batch = tensor.reshape(-1, *tensor.shape[-3:])  # a single face is a batch of one
        if len(batch) != 1:
            raise EmoError(f"predict takes one face, got {len(batch)}; use predict_batch")
        return self.predict_batch(batch)[0]

    def predict_batch(self, tensors):
        """Predict faces (B, 3, S, S); returns a list of B dicts as `predict` does."""
        logits, va = self.run(tensors)
        results, probabilities = [], metrics.softmax(logits, self.temperature)
        for shares, pair in zip(probabilities.tolist(), va.tolist(), strict=True):
            best = int(np.argmax(shares))
            result = {"emotion": self.classes[best], "emotion_id": best, "confidence": shares[best]}
            result["probabilities"] = dict(zip(self.classes, shares, strict=True))
            result["valence"], result["arousal"] = (None, None) if self.va == "none" else pair
            results.append(result)
        return results

    def run(self, tensors):
        """Return raw (logits (B, 8), va (B, 2)) float32 arrays of faces (B, 3, S, S)."""
        faces = np.ascontiguousarray(torch.as_tensor(tensors).detach().cpu().numpy(), np.float32)
        size = self.preprocessor.image_size
        if faces.shape[1:] != (3, size, size):
            expected = f"(B, 3, {size}, {size}) from preprocessor.preprocess_batch(BGR crops)"
            raise EmoError(f"got faces of shape {faces.shape}, expected {expected}")
        none = np.zeros((0, len(self.classes)), np.float32), np.zeros((0, 2), np.float32)
        with self._lock:
            parts = [self._run(faces[i : i + CHUNK]) for i in range(0, len(faces), CHUNK)]
        return tuple(np.concatenate(column) for column in zip(none, *parts, strict=True))

    def recognize(self, image_bgr, detector):
        """Return what `find` and `predict` say of each face in a BGR image, largest first."""
        places, faces = self.find(image_bgr, detector)
        return [p | r for p, r in zip(places, self.predict_batch(faces), strict=True)]

    def find(self, image_bgr, detector):
        """Return the faces of a BGR image: dicts of `bbox` and `score`, tensor (B, 3, S, S)."""
        found = detector.detect(image_bgr)
        crops = [faces.crop_face(image_bgr, bbox, self.crop_margin) for bbox, _ in found]
        places = [{"bbox": bbox, "score": score} for bbox, score in found]
        return places, self.preprocessor.preprocess_batch(crops)


def create_recognizer(model_path=None, config_path=None, device="cpu", threads=None):
    """Open a model file by its suffix: .pth, .pt (TorchScript), .onnx, .h5; without: `STARTER`.

    The config comes from `config_path`, the file or `model_config.json` beside it. `threads`: of
    the CPU, None = all. A missing, damaged or unsafe file, or another model's config: `EmoError`.
    """
    path = Path(model_path or STARTER)
    if path.suffix not in LOADERS:
        raise EmoError(f"{path} ends in {path.suffix!r}; expected {', '.join(LOADERS)}")
    if not path.is_file():
        raise EmoError(f"{path} does not exist; train and export a model first (README)")
    if device not in ("cpu", "cuda"):
        raise EmoError(f"device is {device!r}; expected cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise EmoError("device is cuda, but PyTorch sees no GPU here; use device cpu")
    try:
        run, inside = LOADERS[path.suffix](path, device, threads)
    except EmoError:
        raise
    except Exception as error:  # each library has its own, onnxruntime's without a public base
        reason = str(error).partition("\n")[0]
        raise EmoError(f"{path} is damaged or no {path.suffix} model ({reason})") from error
    beside = path.with_name("model_config.json")
    source = config_path or (beside if not inside and beside.is_file() else None)
    config = files.read_json(source) if source else inside or {}
    given = config if isinstance(config, dict) else ()
    if missing := ", ".join(sorted({"classes", *PREPROCESSING} - set(given))):
        raise EmoError(f"{path} lacks {missing}; keep its model_config.json beside it or name it")
    for name, value in config.items():
        if not _makes_sense(name, value):
            fault = f"{source or path} holds an impossible {name}: {str(value)[:60]}"
            raise EmoError(f"{fault}; use the model_config.json that was written with the model")
    fault = [n for n in ("classes", *PREPROCESSING) if inside and inside.get(n) != config[n]]
    recognizer, size = EmotionRecognizer(run, config), config["image_size"]
    try:
        recognizer.run(np.zeros((1, 3, size, size), np.float32))
    except Exception as error:
        fault = [f"image_size: {str(error).partition(chr(10))[0]}"]
    if fault:
        fault = f"{source or path} does not fit the model in {path} ({', '.join(fault)})"
        raise EmoError(f"{fault}; use the model_config.json that was written with it")
    return recognizer


def _makes_sense(name, value):
    """Tell whether an entry of a model's config is of the right kind and size."""
    if name == "classes":
        return isinstance(value, list) and [type(word) for word in value] == [str] * metrics.CLASSES
    if name in CHOICES or name not in RANGES:
        return value in CHOICES.get(name, [value])
    low, high, shape = RANGES[name]
    with suppress(ValueError):  # a ragged list
        numbers, kind = np.array(value), np.integer if name == "image_size" else np.number
        usual = numbers.shape == shape and np.issubdtype(numbers.dtype, kind)
        return bool(usual and ((low <= numbers) & (numbers <= high)).all())


def _load_torch(path, device, threads):
    if path.suffix == ".pth":
        model = load_model(path).to(device)
        inside = model.config if "mean" in model.config else None
    else:
        extra = {"model_config.json": ""}
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # jit is deprecated
            model = torch.jit.load(str(path), map_location=device, _extra_files=extra).eval()
        inside = json.loads(extra["model_config.json"] or "{}")

    @torch.inference_mode()
    def run(faces):
        before = torch.get_num_threads()
        torch.set_num_threads(threads or before)
        try:
            return [v.float().cpu().numpy() for v in model(torch.from_numpy(faces).to(device))]
        finally:
            torch.set_num_threads(before)

    return run, inside


def _load_onnx(path, device, threads):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()  # of physical cores
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")  # else they keep cores
    provider = f"{device.upper()}ExecutionProvider"  # the CPU's steps in by itself
    if provider not in onnxruntime.get_available_providers():
        raise EmoError("this onnxruntime has no GPU support; install onnxruntime-gpu or use cpu")
    settings = {"device_id": torch.cuda.current_device()} if device == "cuda" else {}
    session = onnxruntime.InferenceSession(str(path), options, [(provider, settings)])
    inside = json.loads(session.get_modelmeta().custom_metadata_map.get("model_config", "{}"))
    return (lambda faces: session.run(["logits", "va"], {"image": faces})), inside


def _load_keras(path, device, threads):
    keras = import_keras()
    model = keras.models.load_model(path, compile=False)

    def run(faces):
        outputs = model(np.ascontiguousarray(faces.transpose(0, 2, 3, 1)))  # channels last
        return [keras.ops.convert_to_numpy(value) for value in outputs]

    return run, None


def import_keras():
    """Import Keras 3, on PyTorch where TensorFlow was not chosen; name the extra when absent."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    try:
        import keras
    except ImportError as error:
        raise EmoError("Keras is not installed; pip install 'emo[keras]'") from error
    return keras


LOADERS = {".pth": _load_torch, ".pt": _load_torch, ".onnx": _load_onnx, ".h5": _load_keras}
