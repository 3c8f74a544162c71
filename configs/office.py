"""Office-31, the six tasks of Table 2.

    python -m daaa_jax.main --config=configs/office.py:w2a --config.data.dir=DIR

Data: https://faculty.cc.gatech.edu/~judy/domainadapt/ (office31). `DIR` holds `amazon/`, `dslr/`
and `webcam/`, each `[images/]<class>/*.jpg`. The argument is a task (`a2w`, `d2w`, `w2d`, `a2d`,
`d2a`, `w2a`), then `cpu` for sizes that a CPU can train (with EfficientNet-Lite0), `pod` for
batches for 32 chips, or `smoke` for a smoke test, then settings:
`configs/office.py:w2a,adapt.beta=0.05`. Accuracy reached: not run at its size.
"""

from ml_collections import ConfigDict

from configs import photos

DOMAINS = {"a": "amazon", "d": "dslr", "w": "webcam"}


def get_config(argument: str = "") -> ConfigDict:
    """The config of one of the six tasks; see the module's docstring for `argument`."""
    config = photos.get_config()
    config.data.name = "office"
    config.data.expected_classes = 31
    config.data.expected_counts = ConfigDict({"amazon": 2817, "dslr": 498, "webcam": 795})
    return photos.choose(config, argument, "office", DOMAINS)
