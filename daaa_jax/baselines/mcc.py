"""MCC, minimum class confusion: target predictions that confuse no class with another.

Jin et al., Minimum Class Confusion for Versatile Domain Adaptation, ECCV 2020.
"""

from collections.abc import Mapping

from jax import Array

from daaa_jax import losses
from daaa_jax.baselines.method import ClassifierOutput, Inputs, Method, Params


class Mcc(Method):
    """The class confusion on target images, with the temperature and weight of the release."""

    def penalty(
        self, aux_params: Params, source: ClassifierOutput, target: ClassifierOutput, inputs: Inputs
    ) -> Mapping[str, Array]:
        """The class confusion, its weight constant as in the release."""
        confusion = losses.class_confusion(target.logits, self.settings.temperature)
        return {"confusion": self.settings.weight * confusion}
