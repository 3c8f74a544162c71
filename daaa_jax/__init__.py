"""Deep Adversarial Attention Alignment for unsupervised domain adaptation, in JAX and Flax.

    result = daaa_jax.run("digits", "runs/digits")
    network = daaa_jax.load_network("runs/digits")
    probabilities = daaa_jax.predict(network, ["three.png"])

The functions are those of `daaa_jax.api`.
"""

import importlib
from typing import Any

__all__ = [
    "Result",
    "attention_maps",
    "load_config",
    "load_network",
    "predict",
    "run",
    "translate",
]


def __getattr__(name: str) -> Any:
    # Imported when asked for: it takes seconds that a misspelt flag need not wait for.
    if name == "predict":  # a command's module, which may be called
        return importlib.import_module("daaa_jax.predict")
    if name in __all__:
        return getattr(importlib.import_module("daaa_jax.api"), name)
    raise AttributeError(f"module 'daaa_jax' has no attribute {name!r}")
