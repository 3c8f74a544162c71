"""DomainNet, 30 tasks between six domains of 345 classes (Peng et al., ICCV 2019).

    python -m daaa_jax.main --config=configs/domainnet.py:c2s --config.data.dir=DIR

The argument is a task of two of `c` (clipart), `i` (infograph), `p` (painting), `q` (quickdraw),
`r` (real) and `s` (sketch), then words and settings as in `configs/office.py`.

Data: the cleaned version of https://ai.bu.edu/M3SDA/, 18 GB. `DIR` holds the unpacked `clipart/`
and so on, and the lists `clipart_train.txt`, `clipart_test.txt` and so on, whose paths begin with
the domain. Training reads the training lists of both domains; the target is measured on its test
list.

The network is the usual ResNet-101; CDAN's release has no DomainNet: solver, batches and crops
are those of its other benchmarks, see `configs/photos.py`; the settings of our method are
Office-31's and untuned. Accuracy reached: not run.
"""

from ml_collections import ConfigDict

from configs import photos

DOMAINS = {
    "c": "clipart",
    "i": "infograph",
    "p": "painting",
    "q": "quickdraw",
    "r": "real",
    "s": "sketch",
}
# Training and test images of the cleaned version.
COUNTS = {
    "clipart": (33_525, 14_604),
    "infograph": (36_023, 15_582),
    "painting": (50_416, 21_850),
    "quickdraw": (120_750, 51_750),
    "real": (120_906, 52_041),
    "sketch": (48_212, 20_916),
}


def get_config(argument: str = "") -> ConfigDict:
    """The config of one of the 30 tasks; see the module's docstring for `argument`."""
    config = photos.get_config()
    photos.solver_of_cdan(config)
    config.model.update(name="resnet101", weights="resnet101")
    config.data.name = "domainnet"
    config.data.expected_classes = 345
    config.data.expected_counts = ConfigDict(
        {
            f"{domain}_{split}": count
            for domain, counts in COUNTS.items()
            for split, count in zip(("train", "test"), counts, strict=True)
        }
    )
    splits = {letter: f"{domain}_train" for letter, domain in DOMAINS.items()}
    tests = {f"{domain}_train": f"{domain}_test" for domain in DOMAINS.values()}
    return photos.choose(config, argument, "domainnet", splits, tests)
