"""Any two folders of images.

    python -m daaa_jax.main --config=configs/folder.py --config.data.source=A --config.data.target=B

The source is `A/<class>/*.jpg`. The target is either the same, with labels for evaluation only, or
a flat folder without labels. Both may be records instead (`daaa_jax/convert.py`), local or on
object storage. The argument may be `cpu`, `pod` or `smoke`, then settings, as in
`configs/office.py`. With `cpu`, 10 to 20 minutes on two cores for 1,000 images; for the accuracy to
expect see `configs/office10.py`, which has the same settings.
"""

from ml_collections import ConfigDict

from configs import base, photos


def get_config(argument: str = "") -> ConfigDict:
    """The config; see the module's docstring for `argument`."""
    config = photos.get_config()
    config.data.name = "folder"
    config.model.update(name="efficientnet_lite0", weights="efficientnet_lite0")
    words, settings = base.split_argument(argument, photos.WORDS)
    photos.words(config, words)
    base.override(config, settings)
    return config
