"""VisDA-2017, classification: renderings of objects to photos (Peng et al., 2017).

    python -m daaa_jax.main --config=configs/visda.py --config.data.dir=DIR

The argument may be `cpu`, `pod` or `smoke`, then settings, as in `configs/office.py`.

Data: https://github.com/VisionLearningGroup/taskcv-2017-public, 8 GB. `DIR` holds `train/` (152,397
renderings) and `validation/` (55,388 photos), each `<class>/*`, or lists `train.txt` and
`validation.txt` of their files. The benchmark's score is the mean over the twelve classes:
`mean_per_class` in `result.json`.

The network is the usual ResNet-101; solver, batches and crops are those of CDAN's release, see
`configs/photos.py`; the settings of our method are Office-31's and untuned. Accuracy
reached: not run.
"""

from ml_collections import ConfigDict

from configs import base, photos


def get_config(argument: str = "") -> ConfigDict:
    """The config; see the module's docstring for `argument`."""
    config = photos.get_config()
    photos.solver_of_cdan(config)
    config.model.update(name="resnet101", weights="resnet101")
    config.baselines.mcc.temperature = 3.0  # of MCC's release for this data set
    config.data.update(name="visda", source="train", target="validation", expected_classes=12)
    config.data.expected_counts = ConfigDict({"train": 152_397, "validation": 55_388})
    words, settings = base.split_argument(argument, photos.WORDS)
    photos.words(config, words)
    base.override(config, settings)
    return config
