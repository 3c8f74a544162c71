"""Settings shared by all tasks of photos."""

from collections.abc import Mapping

from ml_collections import ConfigDict

from configs import base

# The last convolutions of blocks. Of ResNets the last one at each resolution enters the joint
# kernel, which is a product over layers, and uninformative over many.
JMMD_LAYERS = r"stage\d_block\d+/conv[23]|block(2|4|10|15)/conv_project"


# The solver of the JAN paper, and of CAN (Kang et al., CVPR 2019): SGD, rate 0.01 for the new layer
# and a tenth of it for pretrained layers.
_SOLVER = {
    "name": "sgd",
    "learning_rate": 1e-3,
    "schedule": "progress",
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "classifier_factor": 10.0,
}


def get_config() -> ConfigDict:
    """The paper's settings for Office-31, JAN's where the paper refers to JAN, and MCC's loss."""
    config = base.get_config()
    config.data.update(
        source="",
        target="",
        target_test="",  # labelled folder for evaluation, instead of the target's own labels
        # Of list files, data.source=LIST.txt: see daaa_jax/data/image_lists.py.
        root="",  # folder of relative paths; empty: that of the list
        path_prefix="",  # beginning of the paths that is left out
        class_names="",  # a file with a name per line, or names separated by commas
        image_size=256,  # pixels: images are resized to this square, translated, then cropped
        on_error="raise",  # or skip: ignore unreadable images
        # Classes that only the target has; or ignore: their images are unlabelled training images,
        # and are not measured.
        unknown_classes="raise",
        limit=0,  # use only this many images of each domain
        expected_classes=0,  # 0: any number
        expected_counts=ConfigDict(),
    )
    config.augment.update(crop=224, flip=True)

    config.model.update(
        name="resnet50",  # or another of CLASSIFIERS in daaa_jax/models/__init__.py
        # Pretrained: a name in models/published_weights.py, a file, hf:owner/name, or "" for none.
        weights="resnet50",
        version="v1.5",  # of ResNets: torchvision's; or v1, Caffe's, used by the paper
        inputs="imagenet",  # input normalisation of a ResNet's weights; or caffe
        dtype="auto",  # float32 on a CPU, else bfloat16; or one of these. Variables are float32
        remat=False,  # True: less memory, a third more time
    )

    # The released CycleGAN at 256 pixels.
    config.pair.update(
        filters=64,
        downsamplings=2,
        blocks=9,
        discriminator_filters=64,
        discriminator_layers=3,
        identity_weight=0.5,
        batch_size=0,  # one image per device
        pools=0,
        epochs=100,
        enlarge=286,  # pixels: images are resized to this, then cropped at random to their size
        flip=True,
    )
    config.translate.update(batch_size=16, part_size=256)

    config.source.update(batch_size=64, epochs=30, round_epochs=5)
    config.source.optimizer.update(_SOLVER)
    config.adapt.update(
        batch_size=64,
        rounds=20,
        round_steps=200,
        # With frozen statistics both networks agree at step 0, but the information score is lower
        # on D->A and W->A of office10.
        batch_norm="batch",
        beta=0.02,  # 52 layers, not three
        # EM trains on target images that the network is sure of, MCC's loss on all of them. Its
        # weight is that of the release (office10 D->A, `cpu`, seed 0: 87.9 %; half of it: 85.0).
        confusion=1.0,
        layers="(?!conv1$|conv_stem$).*",  # all but the first convolution
        jmmd_layers=JMMD_LAYERS,
    )
    config.adapt.optimizer.update(_SOLVER)
    # EM reinforces errors of the source network that MCC's loss corrects in the first rounds: with
    # EM from the start 81.4 %, from the third round 83.3 (office10 D->A, seed 0, no translations,
    # half the learning rate, half the weight of MCC's loss). Without EM D->A is as good.
    config.em.start_step = 2 * config.adapt.get_oneway_ref("round_steps")
    config.evaluate.batch_size = 64
    return config


def solver_of_cdan(config: ConfigDict) -> None:
    """Solver, batches and crops of the release of CDAN (Long et al., NeurIPS 2018).

    github.com/thuml/CDAN, `pytorch/train_image.py`: Nesterov's momentum, 36 images of each domain,
    rate `0.001 (1 + 0.001 step)^-0.75`, ten times that for the new layer; crops of a random area
    and aspect ratio, resized to 224 pixels, with random flips; ten crops in evaluation. Its twofold
    weight decay is left out. Batches fit 1, 2 or 4 devices; `pod` has some for 32.
    """
    config.augment.area = 0.08
    config.evaluate.crops = 10
    for stage, images in ((config.source, 36), (config.adapt, 72)):
        stage.batch_size = images
        stage.optimizer.update(schedule="iteration", nesterov=True)


def on_cpu(config: ConfigDict) -> None:
    """Sizes and a network for minutes on two CPU cores; accuracies are lower.

    Chosen on office10 using its labels, mostly those of D->A, see docs/defaults.md.
    """
    config.data.image_size = 112
    config.augment.crop = 96
    config.model.update(name="efficientnet_lite0", weights="efficientnet_lite0")
    # Generators that start at the identity, and a smaller CycleGAN whose losses let the style
    # change: sharp translations after a few hundred updates.
    config.pair.update(
        identity_start=True,
        filters=16,
        blocks=3,
        discriminator_filters=16,
        discriminator_layers=2,
        identity_weight=0.1,
        cycle_weight=5.0,
        enlarge=124,
        batch_size=4,
        epochs=2,
    )
    config.source.update(batch_size=16, epochs=10)
    config.adapt.update(batch_size=64, rounds=6, round_steps=50)
    # Higher than JAN's rate, for fewer updates. With 12e-3 D->A falls after three rounds.
    config.source.optimizer.learning_rate = 3e-3
    config.adapt.optimizer.learning_rate = 6e-3


def on_pod(config: ConfigDict) -> None:
    """Batch sizes for 32 chips, multiples of 32. Accuracies have not been measured yet.

    Learning rates of CycleGAN (Adam) and JAN (SGD) are scaled by the square root of the batch size.
    Rounds have as many updates as before.
    """
    # One image per chip. The released CycleGAN had one device; the number of epochs is the same.
    config.pair.update(batch_size=32, pools=32)
    config.pair.optimizer.learning_rate *= 32**0.5
    config.translate.batch_size = 256
    for stage in (config.source, config.adapt):
        stage.optimizer.learning_rate *= (256 / stage.batch_size) ** 0.5
        stage.batch_size = 256
    config.evaluate.batch_size = 256


def smoke(config: ConfigDict) -> None:
    """A smoke run: every stage and file, at sizes whose metrics are not meaningful."""
    config.smoke = True
    config.data.update(image_size=40, limit=24)
    config.augment.crop = 32
    config.model.weights = ""
    config.pair.update(
        filters=4,
        blocks=1,
        discriminator_filters=4,
        discriminator_layers=2,
        enlarge=44,
        epochs=1,
        batch_size=4,
        pools=0,
    )
    config.translate.update(batch_size=8, part_size=10)
    config.source.update(batch_size=8, epochs=2, round_epochs=1)
    config.adapt.update(batch_size=8, rounds=2, round_steps=2)
    config.evaluate.batch_size = 8
    config.em.threshold = 0.0
    config.em.start_step = config.adapt.get_oneway_ref("round_steps")
    config.run.update(log_every=1, checkpoint_every=2)


def choose(
    config: ConfigDict,
    argument: str,
    name: str,
    domains: Mapping[str, str],
    tests: Mapping[str, str] | None = None,
) -> ConfigDict:
    """Applies a task, the words after it, and settings.

    Args:
      config: modified.
      argument: such as `w2a,cpu,adapt.beta=0.05`.
      name: of the config file, for messages.
      domains: folder or list of each domain in `data.dir`, by the letter in a task's name.
      tests: test images of each, if they are separate.

    Raises:
      ValueError: if the argument names no task, or a word or setting is unknown.
    """
    tasks = [f"{source}2{target}" for source in domains for target in domains if source != target]
    chosen, settings = base.split_argument(argument, {**dict.fromkeys(tasks), **WORDS})
    named = [word for word in chosen if word in tasks]
    if len(named) != 1:
        raise ValueError(
            f"config argument {argument!r} must name one task, as in configs/{name}.py:{tasks[0]}; "
            f"expected one of {', '.join(tasks)}"
        )
    source, target = (domains[letter] for letter in named[0].split("2"))
    config.data.update(source=source, target=target, target_test=(tests or {}).get(target, ""))
    words(config, chosen)
    base.override(config, settings)
    return config


def words(config: ConfigDict, chosen: list[str]) -> None:
    """Applies the words that all photo tasks support: `cpu`, `pod` and `smoke`."""
    for name, change in WORDS.items():
        if name in chosen:
            change(config)


WORDS = {"cpu": on_cpu, "pod": on_pod, "smoke": smoke}
