"""A course in multi-task facial emotion recognition: eight emotions, valence and arousal."""

import os
from importlib import import_module

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime reports to Microsoft else
_NAMES = {  # room → its public names, imported when first used: PyTorch and friends take seconds
    "evaluation": ["evaluate"],
    "export": ["export_to_keras", "export_to_onnx", "export_to_torchscript"],
    "faces": ["MediaPipeFaceDetector"],
    "model": ["create_model"],
    "recipes": ["TrainConfig"],
    "recognize": ["EmotionPreprocessor", "create_recognizer"],
    "train": ["fit"],
}
_ROOM_OF = {name: room for room, names in _NAMES.items() for name in names}
__all__ = ["EmoError", *_ROOM_OF]


class EmoError(ValueError):
    """Say what was got, what was expected and what to do next, in one sentence."""


def __getattr__(name):
    if name not in _ROOM_OF:
        raise AttributeError(f"module 'emo' has no attribute {name!r}")
    return getattr(import_module(f"emo.{_ROOM_OF[name]}"), name)
