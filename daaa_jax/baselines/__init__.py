"""The baselines by name, one file each; `training.py` trains them as stage `adapt`."""

from flax import linen as nn
from ml_collections import ConfigDict

from daaa_jax.baselines.ada import Ada
from daaa_jax.baselines.cdan import Cdan
from daaa_jax.baselines.dann import Dann
from daaa_jax.baselines.dsn import Dsn
from daaa_jax.baselines.jan import Jan
from daaa_jax.baselines.jan_a import JanA
from daaa_jax.baselines.mcc import Mcc
from daaa_jax.baselines.method import Method
from daaa_jax.baselines.pixelda import PixelDa
from daaa_jax.baselines.shot import Shot
from daaa_jax.baselines.upper_bound import UpperBound

METHODS: dict[str, type[Method]] = {
    "dann": Dann,
    "jan": Jan,
    "jan_a": JanA,
    "dsn": Dsn,
    "ada": Ada,
    "pixelda": PixelDa,
    "cdan": Cdan,
    "mcc": Mcc,
    "shot": Shot,
    "upper_bound": UpperBound,
}


def make(config: ConfigDict, model: nn.Module) -> Method:
    """The method that `config.method` names, one of `METHODS`, for the classifier `model`."""
    return METHODS[config.method](config, model)
