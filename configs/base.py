"""Default settings of all tasks, and parsing of a config's argument."""

import ast
import difflib
from collections.abc import Mapping

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The defaults: the paper's settings where given, otherwise ours."""
    config = ConfigDict()
    config.seed = 0  # of training; data.seed fixes splits and generated domains

    config.smoke = False  # metrics are not meaningful; set by the word smoke

    # Training of the target network: daaa; or a baseline, a file each in daaa_jax/baselines: dann,
    # jan, jan_a, dsn, ada, pixelda, cdan, mcc, shot; upper_bound uses target labels.
    config.method = "daaa"
    _data(config)
    _pair(config)
    _source(config)
    _adapt(config)
    _em(config)
    _baselines(config)
    _evaluate(config)
    _run(config)
    return config


def _data(config: ConfigDict) -> None:
    """Data, augmentation and the classifier."""
    config.data = ConfigDict()
    config.data.seed = 0
    config.data.dir = ""
    # Share of labelled source images held out from training, for deep embedded validation.
    config.data.source_holdout = 0.0

    # Augmentation of training images. Both images of a pair are augmented alike, or their attention
    # maps would not correspond.
    config.augment = ConfigDict()
    config.augment.shift = 0  # pixels: largest random shift, edges repeated
    config.augment.crop = 0  # pixels: side of the random crop for the classifiers; 0: no crop
    # Smallest share of an image's area that a crop shows, resized to `crop`; 1: crops of `crop`
    # pixels, not resized.
    config.augment.area = 1.0
    config.augment.flip = False  # random horizontal flip, with probability 1/2

    config.model = ConfigDict()
    config.model.name = "digits"
    # Pretrained: a name in models/published_weights.py, a file, hf:owner/name, or "" for none.
    config.model.weights = ""


def _pair(config: ConfigDict) -> None:
    """Section 3.1: CycleGAN (Eq. 1-3) and translation."""
    pair = config.pair = ConfigDict()
    # A folder of external translations, A_to_B/ and B_to_A/, each image named as its original;
    # replaces the stages pair and translate.
    pair.translations = ""
    pair.seed = config.get_oneway_ref("seed")  # set it to share networks between seeds
    pair.filters = 32
    pair.downsamplings = 1
    pair.blocks = 3
    pair.identity_start = False  # start with generators close to the identity, models/generator.py
    pair.discriminator_filters = 64
    pair.discriminator_layers = 2
    # Whether discriminators see the deviation within a batch, see models/discriminator.py.
    pair.batch_deviation = False
    pair.adversarial = "lsgan"  # or vanilla, the paper's log-likelihood
    pair.cycle_weight = 10.0
    pair.identity_weight = 0.0  # relative to cycle_weight; 0.5 for photos
    pair.enlarge = 0  # pixels: resize images to this, then crop at random to their size; 0: do not
    pair.flip = False  # random horizontal flip, with probability 1/2
    pair.pool_size = 50  # past translations replayed to the discriminators
    # Number of pools: 1 as in the original; 0 for one per image of a batch, so that no device waits
    # for images of others.
    pair.pools = 1
    pair.batch_size = 16
    pair.epochs = 8  # over the larger domain, the last half with a decaying learning rate
    pair.optimizer = _optimizer(learning_rate=2e-4, b1=0.5, schedule="linear")

    config.translate = ConfigDict()
    config.translate.batch_size = 256
    config.translate.part_size = 4096  # images per file


def _source(config: ConfigDict) -> None:
    """The source network."""
    source = config.source = ConfigDict()
    # An external source network, which replaces the stage: a workdir, or a weights file that
    # includes the classifier layer.
    source.checkpoint = ""
    source.seed = config.get_oneway_ref("seed")
    source.batch_size = 128
    source.epochs = 10
    source.round_epochs = 5  # epochs between evaluations
    source.optimizer = _optimizer(learning_rate=1e-3, schedule="linear")


def _adapt(config: ConfigDict) -> None:
    """Sections 3.2 and 3.4: the target network (Eq. 4, 5, 12)."""
    adapt = config.adapt = ConfigDict()
    adapt.batch_size = 128
    adapt.rounds = 20
    adapt.round_steps = 1000  # updates; a round ends with an evaluation and a log line
    adapt.init = "source"  # initial target network; or scratch: initialised like the source network
    # Not in the paper: strength of a random colour change (`data.augment.recolour`) of the target
    # network's inputs in the target's style (T_f and T). Soft labels use the unchanged images.
    adapt.recolour = 0.0
    adapt.batch_norm = "batch"  # or frozen: the source network's statistics
    # Shares of a batch: S real source, T_f synthetic target, T real target, S_f synthetic source.
    adapt.mix = ConfigDict({"s": 0.35, "t_f": 0.15, "t": 0.35, "s_f": 0.15})
    adapt.beta = 0.1  # weight of L_AT in Eq. 12; with 0 it is only logged
    # Not in the paper: weights of the losses of MCC (temperature 2.5) and SHOT on target images.
    adapt.confusion = 0.0
    adapt.information = 0.0
    adapt.attention = "sum_squares"  # or sum_abs, max_abs, features (Table A1)
    adapt.measure = "l2"  # or l1, mmd, jmmd (Table 4)
    adapt.layers = ".*"  # aligned layers: a regular expression on the intermediates' names
    adapt.jmmd_layers = ".*"  # in JMMD's joint kernel: the last aligned layer of each size
    # The learning rate restarts with each sync of the posterior network; False is EM-C of Table 3.
    adapt.restart = True
    adapt.optimizer = _optimizer(learning_rate=1e-3, schedule="progress")


def _em(config: ConfigDict) -> None:
    """Section 3.3: EM (Eq. 7-11)."""
    config.em = ConfigDict()
    # N; 1 (without decay) is EM-A of Table 3.
    config.em.refresh_every = config.adapt.get_oneway_ref("round_steps")
    # Not in the paper: weight of the earlier M^post in a sync, 0 to 1; 0 copies the target network.
    # Otherwise M^post, which is also the result, is a moving average of the networks at the syncs.
    config.em.decay = 0.0
    config.em.threshold = 0.95  # p_t; 0 is EM-B of Table 3
    config.em.start_step = config.adapt.get_oneway_ref("round_steps")  # L_EM has no weight before
    config.em.normalize = "batch"  # or kept: divide L_EM by the number of kept samples
    # target: posterior of x^T, as in the paper. paired (not in the paper): product of posteriors of
    # x^T and its translation G_TS(x^T), with a weight gamma that is measured once, without labels,
    # see em.paired_posterior. If a run has translations, gamma is measured with either setting, for
    # inference on both images.
    config.em.posterior = "target"
    config.em.tolerance = 0.2  # share of contradictions from which gamma is 0
    config.em.second_view = "source"  # network for G_TS(x^T); or posterior, M^post
    config.em.class_prior = False  # divide the product by the source classes' frequencies


def _baselines(config: ConfigDict) -> None:
    """Loss weights of the baselines, and widths of their auxiliary networks."""
    config.baselines = ConfigDict(
        {
            "dann": {"weight": 1.0, "widths": (1024, 1024)},
            "jan": {"weight": 5.0},
            "jan_a": {"weight": 5.0, "width": 256},
            "dsn": {
                "reconstruction": 0.01,
                "difference": 0.075,
                "similarity": 0.25,
                "widths": (1024, 1024),
            },
            "ada": {"walker": 1.0, "visit": 0.6, "temperature": 0.1},
            # The weights of the releases.
            "cdan": {"weight": 1.0, "widths": (1024, 1024)},
            "mcc": {"weight": 1.0, "temperature": 2.5},
            "shot": {"weight": 1.0},
            # Task and style weights of the release, 0.01010 and 0.01132; the latter is 1 here.
            "pixelda": {"task": 0.892, "noise": 10},
        }
    )


def _evaluate(config: ConfigDict) -> None:
    """Evaluation, and selection of a round without labels."""
    config.evaluate = ConfigDict()
    config.evaluate.batch_size = 512
    # Selects a round (`selected`) without labels: information, entropy, neighbourhood_density, or
    # deep_embedded, which needs data.source_holdout. All scores are logged. auto is information, or
    # neighbourhood_density where the training itself rewards confident predictions.
    config.evaluate.validator = "auto"
    config.evaluate.validation_images = 4000  # at most, of each domain, for the validators
    config.evaluate.audit_images = 300  # of each domain in the report's t-SNE
    config.evaluate.crops = 1  # centre crop; or 10: centre and corners, each also flipped


def _run(config: ConfigDict) -> None:
    """How a run is executed: these settings do not change results or identify a workdir."""
    config.run = ConfigDict()
    # MiB of images held on each device, -1 for a share of its memory; larger datasets are streamed.
    config.run.resident_mib = -1
    config.run.parameter_shards = 1  # devices that share one copy of the state (FSDP)
    config.run.workers = 0  # processes that prepare streamed batches; 0: two threads
    # Updates per dispatch, at most, where a device's images are in its memory; 0: 25 for small
    # networks on accelerators, else 1. Results agree to rounding.
    config.run.block_steps = 0
    config.run.log_every = 50  # updates
    config.run.checkpoint_every = 500  # updates, a multiple of log_every; also after each round
    # Reuses stages that a run in the same parent folder finished with the same settings and data.
    # A workdir named here is searched first; "none" reuses nothing.
    config.run.reuse = ""
    config.run.compilation_cache = True
    config.run.deterministic = False  # on a GPU: bitwise reproducible, slower


def _optimizer(**changes) -> ConfigDict:
    return ConfigDict(
        {
            "name": "adam",  # or sgd
            "learning_rate": 1e-3,
            "schedule": "constant",  # or progress, iteration, linear: see daaa_jax/schedules.py
            "decay_fraction": 0.5,  # linear: last part of training, in which the rate falls to zero
            "b1": 0.9,
            "b2": 0.999,
            "momentum": 0.9,  # of sgd
            "nesterov": False,  # of sgd
            "weight_decay": 0.0,
            "classifier_factor": 1.0,  # learning rate of the classifier layer, relative
        }
        | changes
    )


def split_argument(argument: str, words: Mapping[str, object]) -> tuple[list[str], dict[str, str]]:
    """Splits `word,word,key=value` into its words and settings.

    Raises:
      ValueError: if a word is not in `words`; names the nearest one.
    """
    chosen, settings = [], {}
    for part in filter(None, argument.split(",")):
        key, equals, value = part.partition("=")
        if equals:
            settings[key] = value
        elif part in words:
            chosen.append(part)
        else:
            raise ValueError(f"config argument {part!r} is unknown{_nearest(part, words)}")
    return chosen, settings


_BOOLS = {"true": "True", "false": "False"}


def override(config: ConfigDict, settings: Mapping[str, str]) -> None:
    """Overrides settings, such as `{"adapt.beta": "0.3"}`; values are parsed by the setting's type.

    Raises:
      ValueError: if a setting is unknown, or a value has the wrong type.
    """
    for key, text in settings.items():
        *parents, last = key.split(".")
        node, known = config, True
        for name in parents:
            known = known and isinstance(node, ConfigDict) and name in node
            node = node[name] if known else node
        if not known or not isinstance(node, ConfigDict) or last not in node:
            raise ValueError(f"setting {key!r} is unknown{_nearest(key, _names(config))}")
        if isinstance(node[last], ConfigDict):
            raise ValueError(
                f"setting {key!r} is a group: {', '.join(_names(node[last], f'{key}.'))}"
            )
        try:
            value = (
                text if isinstance(node[last], str) else ast.literal_eval(_BOOLS.get(text, text))
            )
            if isinstance(value, bool) != isinstance(node[last], bool):
                raise TypeError
            node[last] = float(value) if isinstance(node[last], float) else value
        except (TypeError, ValueError, SyntaxError) as error:
            kind = type(node[last]).__name__
            kind = "bool, True or False" if kind == "bool" else kind
            raise ValueError(f"setting {key}={text}: expected a value of type {kind}") from error


def _names(config: ConfigDict, prefix: str = "") -> list[str]:
    names: list[str] = []
    for key, value in config.items():
        nested = isinstance(value, ConfigDict)
        names += _names(value, f"{prefix}{key}.") if nested else [prefix + key]
    return names


def _nearest(word: str, words) -> str:
    near = difflib.get_close_matches(word, list(words), n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(sorted(words))}"
