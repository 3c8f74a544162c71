"""Office-Home, twelve tasks between four domains of 65 classes (Venkateswara et al., CVPR 2017).

    python -m daaa_jax.main --config=configs/office_home.py:a2c --config.data.dir=DIR

The argument is a task of two of `a` (Art), `c` (Clipart), `p` (Product) and `r` (Real World), then
words and settings as in `configs/office.py`.

Data: https://www.hemanthdv.org/officeHomeDataset.html, 1.1 GB. `DIR` holds `Art/`, `Clipart/`,
`Product/` and `Real World/`, each `<class>/*.jpg`, or lists `Art.txt` and so on of their files.

Solver, batches and crops are those of CDAN's release, see `configs/photos.py`; the settings of our
method are Office-31's and untuned. Accuracy reached: not run.
"""

from ml_collections import ConfigDict

from configs import photos

DOMAINS = {"a": "Art", "c": "Clipart", "p": "Product", "r": "RealWorld"}


def get_config(argument: str = "") -> ConfigDict:
    """The config of one of the twelve tasks; see the module's docstring for `argument`."""
    config = photos.get_config()
    photos.solver_of_cdan(config)
    config.data.name = "office_home"
    config.data.expected_classes = 65
    config.data.expected_counts = ConfigDict(
        {"Art": 2427, "Clipart": 4365, "Product": 4439, "RealWorld": 4357}
    )
    return photos.choose(config, argument, "office_home", DOMAINS)
