"""A shared backbone with two heads, and its checkpoint. Built by hand in notebooks/03."""

import io
import pickle
from pathlib import Path
from typing import NamedTuple
from urllib.error import URLError

import torch
from torch.nn import Identity, Linear, Module, ReLU, Sequential, Tanh

from emo import EmoError
from emo.emotions import EMOTIONS
from emo.files import atomic_path

HIDDEN = 256  # width of both heads; half of ResNet-18's 512 features


class EmotionOutput(NamedTuple):
    """What the model returns: `logits` (B, 8) before softmax, `va` (B, 2) in [−1, 1]."""

    logits: torch.Tensor
    va: torch.Tensor


class EmotionModel(Module):
    """Shared features (B, F) → two small heads; `config` (plain values) travels in the weights."""

    def __init__(self, backbone, features, config):
        super().__init__()
        self.backbone = backbone
        classes = len(config["classes"])
        self.emotion_head = Sequential(Linear(features, HIDDEN), ReLU(), Linear(HIDDEN, classes))
        self.va_head = Sequential(Linear(features, HIDDEN), ReLU(), Linear(HIDDEN, 2), Tanh())
        self.config = config

    def forward(self, image):
        """Map normalised images (B, 3, H, W) to an `EmotionOutput`."""
        features = self.backbone(image)
        return EmotionOutput(self.emotion_head(features), self.va_head(features))

    def get_extra_state(self):
        """Return the config, to be saved with the weights."""
        return self.config

    def set_extra_state(self, state):
        """Take over the config that was saved with the weights."""
        self.config = dict(state)


def create_model(backbone="resnet18", num_classes=8, pretrained=True):
    """Build the two-headed model on any torchvision classifier that ends in a linear layer.

    `pretrained` loads ImageNet weights through torch.hub's cache, or raises `EmoError`.
    """
    from torchvision import models  # here, because it takes seconds, and .onnx files need none

    if backbone not in models.list_models(module=models):
        raise EmoError(f"unknown backbone {backbone!r}; expected one of torchvision, e.g. resnet18")
    try:
        network = models.get_model(backbone, weights="DEFAULT" if pretrained else None)
    except (URLError, OSError, RuntimeError) as error:
        why = f"the ImageNet weights of {backbone} could not be fetched ({error})"
        raise EmoError(f"{why}; connect once, or use --no-pretrained (pretrained=False)") from error
    heads = [(name, part) for name, part in network.named_modules() if isinstance(part, Linear)]
    if not heads or backbone in ("inception_v3", "googlenet"):
        raise EmoError(f"{backbone} has no single linear layer to replace; choose e.g. resnet18")
    name, classifier = heads[-1]
    network.set_submodule(name, Identity())
    classes = EMOTIONS if num_classes == len(EMOTIONS) else map(str, range(num_classes))
    config = {"backbone": backbone, "classes": list(classes)}
    return EmotionModel(network, classifier.in_features, config)


def save_torch(value, path):
    """Write tensors and plain values to a `.pth` file, whole or not at all."""
    buffer = io.BytesIO()  # written to a file by PyTorch, a full disk is no OSError
    torch.save(value, buffer)
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def load_torch(path):
    """Load a `.pth` file as data only; raise `EmoError` when it is missing, damaged or unsafe."""
    if not Path(path).is_file():
        raise EmoError(f"{path} does not exist; train a model first: python -m emo train …")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        why = f"is no file of plain weights and could run code ({str(error).splitlines()[0]})"
        raise EmoError(f"{path} {why}; use a file that `emo train` wrote") from error
    except Exception as error:  # whatever the damage leads to
        raise EmoError(f"{path} is damaged or no PyTorch file ({error}); write it again") from error


def load_model(path):
    """Rebuild the model of a `best_model.pth`, `last.pth` or `model_weights.pth`, in eval mode."""
    saved = load_torch(path)
    state = saved.get("model", saved) if isinstance(saved, dict) else {}
    config = state.get("_extra_state") if isinstance(state, dict) else None
    kinds = {"backbone": str, "classes": list}
    if not isinstance(config, dict) or any(type(config.get(n)) is not k for n, k in kinds.items()):
        raise EmoError(f"{path} holds no emo model (no config inside); train one: emo train …")
    model = create_model(config["backbone"], len(config["classes"]), pretrained=False)
    try:
        model.load_state_dict(state)
    except (RuntimeError, AttributeError) as error:
        why = f"do not fit a {config['backbone']} ({str(error).splitlines()[-1].strip()})"
        raise EmoError(f"the weights in {path} {why}; use a file that `emo train` wrote") from error
    return model.eval()
