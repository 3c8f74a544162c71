"""MCC, minimum class confusion: target predictions that confuse no class with another.

Jin et al., Minimum Class Confusion for Versatile Domain Adaptation, ECCV 2020.
"""

from daaa_jax import losses
from daaa_jax.baselines.method import DomainOutputs, Inputs, Method, Params, Terms


class Mcc(Method):
    """The class confusion on target images, with the release's weight.

    The release's temperature is 3 on VisDA-2017 and 2.5 on Office-31 and Office-Home. Each domain
    passes through the classifier alone, as there.
    """

    separate_domains = True
    rewards_confidence = True

    def penalty(self, aux_params: Params, given: DomainOutputs, inputs: Inputs) -> Terms:
        """The class confusion, its weight constant as in the release."""
        confusion = losses.class_confusion(given.target.logits, self.settings.temperature)
        return {"confusion": self.settings.weight * confusion}
