"""Office-31, the six tasks of Table 2.

    python -m daaa_jax.main --config=configs/office.py:w2a --config.data.dir=DIR

`DIR` holds `amazon/`, `dslr/` and `webcam/`, each `[images/]<class>/*.jpg`. The argument is a task
(`a2w`, `d2w`, `w2d`, `a2d`, `d2a`, `w2a`), then `cpu` for sizes that a CPU can train (with
EfficientNet-Lite0), `pod` for batches for 32 chips, or `smoke` for a smoke test, then settings:
`configs/office.py:w2a,adapt.beta=0.05`.
"""

from ml_collections import ConfigDict

from configs import base, photos

DOMAINS = {"a": "amazon", "d": "dslr", "w": "webcam"}
TASKS = tuple(f"{s}2{t}" for s in DOMAINS for t in DOMAINS if s != t)


def get_config(argument: str = "") -> ConfigDict:
    """The config of one of the six tasks; see the module's docstring for `argument`."""
    config = photos.get_config()
    config.data.name = "office"
    config.data.expected_classes = 31
    config.data.expected_counts = ConfigDict({"amazon": 2817, "dslr": 498, "webcam": 795})
    return choose(config, argument, "office")


def choose(config: ConfigDict, argument: str, name: str) -> ConfigDict:
    """Applies a task, the words after it, and settings."""
    words, settings = base.split_argument(argument, {**dict.fromkeys(TASKS), **photos.WORDS})
    tasks = [word for word in words if word in TASKS]
    if len(tasks) != 1:
        raise ValueError(
            f"config argument {argument!r} must name one task, as in configs/{name}.py:w2a; "
            f"expected one of {', '.join(TASKS)}"
        )
    source, target = tasks[0].split("2")
    config.data.update(source=DOMAINS[source], target=DOMAINS[target])
    photos.words(config, words)
    base.override(config, settings)
    return config
