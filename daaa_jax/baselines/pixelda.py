"""PixelDA: a classifier trained on source images and on their translations to the target's style.

Bousmalis et al., Unsupervised Pixel-Level Domain Adaptation with Generative Adversarial Networks,
CVPR 2017.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from daaa_jax import losses, models
from daaa_jax.baselines.method import ClassifierOutput, Classify, Inputs, Loss, Method, Params


class NoiseChannel(nn.Module):
    """Maps noise vectors `[B,n]` to images of one channel `[B,side,side,1]`, as in the release.

    The same value at each pixel would have no effect: the generator's first convolution has no
    bias, and the instance norm after it subtracts constants.

    Attributes:
      side: height and width of the images.
    """

    side: int

    @nn.compact
    def __call__(self, noise: Array) -> Array:
        return nn.Dense(self.side**2, name="pixels")(noise).reshape(-1, self.side, self.side, 1)


class PixelDa(Method):
    """A generator with source image and noise as inputs, a discriminator, and the classifier.

    Generator and discriminator are those of `config.pair`, with its optimiser. All networks are
    updated at once, each by the gradient of its own loss.
    """

    recolours = False
    optimizer = "pair"

    def create(self, key: Array, image: Array, given: ClassifierOutput) -> Params:
        """Parameters of the generator and the discriminator."""
        generator, discriminator = models.create_gan(self.config.pair)
        keys = jax.random.split(key, 3)
        vector = jnp.zeros((1, self.settings.noise))
        channel = NoiseChannel(image.shape[1]).init(keys[2], vector)["params"]
        noisy = jnp.concatenate([image, image[..., :1]], axis=-1)
        return {
            "generator": {"noise": channel, **generator.init(keys[0], noisy)["params"]},
            "discriminator": discriminator.init(keys[1], image)["params"],
        }

    def loss(self, aux_params: Params, classify: Classify, inputs: Inputs) -> Loss:
        """The sum of the losses of the three networks (Eq. 1 to 4).

        The classifier's, on source images and their translations; the generator's, which is the
        adversarial loss plus `task` times the cross-entropy of the translations; and the
        discriminator's. The paper's adversarial loss is `pair.adversarial=vanilla`.
        """
        adversarial = functools.partial(models.adversarial_loss, self.config.pair)
        fake = self.translate(aux_params["generator"], inputs.source, inputs.key)
        fixed = jax.lax.stop_gradient
        params = aux_params["discriminator"]
        g_adv_loss = adversarial(fixed(params), fake, True)
        # Halved as in CycleGAN, whose networks these are.
        d_loss = 0.5 * adversarial(params, inputs.target, True)
        d_loss += 0.5 * adversarial(params, fixed(fake), False)

        # The same images, with the gradient to the generator multiplied by `task`, and by 2, as the
        # mean below is over twice as many images.
        weighted = fixed(fake) + 2 * self.settings.task * (fake - fixed(fake))
        given = classify(jnp.concatenate([inputs.source, weighted]))
        labels = jnp.concatenate([inputs.labels, inputs.labels])
        supervised = losses.cross_entropy(given.logits, labels).mean()
        parts = {"cross_entropy": supervised, "adversarial": g_adv_loss, "discriminator": d_loss}
        return supervised + g_adv_loss + d_loss, parts, given

    def translate(self, params: Params, images: Array, key: Array) -> Array:
        """Images `[B,H,W,3]` in the target's style, each translated with its own noise."""
        generator, _ = models.create_gan(self.config.pair)
        noise, params = params["noise"], {k: v for k, v in params.items() if k != "noise"}
        vectors = jax.random.uniform(key, (len(images), self.settings.noise), minval=-1, maxval=1)
        channel = NoiseChannel(images.shape[1]).apply({"params": noise}, vectors)
        return generator.apply({"params": params}, jnp.concatenate([images, channel], axis=-1))
