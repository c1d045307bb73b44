"""A course in multi-task facial emotion recognition: eight emotions, valence and arousal."""

from emo.errors import EmoError
from emo.evaluation import evaluate
from emo.export import export_to_keras, export_to_onnx, export_to_torchscript
from emo.faces import MediaPipeFaceDetector
from emo.model import create_model
from emo.recognize import EmotionPreprocessor, create_recognizer
from emo.train import TrainConfig, fit

__all__ = [
    "EmoError",
    "EmotionPreprocessor",
    "MediaPipeFaceDetector",
    "TrainConfig",
    "create_model",
    "create_recognizer",
    "evaluate",
    "export_to_keras",
    "export_to_onnx",
    "export_to_torchscript",
    "fit",
]
