"""What the tasks made of photos share: Office-31, its ten shared classes, and own folders."""

from ml_collections import ConfigDict

from configs import base

# The last convolution at each of four sizes, of ResNet-50 and of EfficientNet-Lite0: the joint
# kernel, a product over layers, tells nothing of many.
JMMD_LAYERS = (
    r"stage1_block2/conv3|stage2_block3/conv3|stage3_block5/conv3|stage4_block2/conv3"
    r"|block(2|4|10|15)/conv_project"
)


def get_config() -> ConfigDict:
    """The paper's settings for Office-31 where it gives them, JAN's where it refers to JAN."""
    config = base.get_config()
    config.data.update(
        source="",
        target="",
        target_test="",  # a labelled folder to measure on, instead of the target's own labels
        image_size=256,  # images are resized to this square, translated, then cropped
        on_error="raise",  # or skip: leave out images that cannot be read
        limit=0,  # use only this many images of each domain
        expected_classes=0,  # 0: any number
        expected_counts=ConfigDict(),
    )
    config.augment.update(crop=224, flip=True)

    config.model.update(
        name="resnet50",  # or efficientnet_lite0
        weights="resnet50",  # a name in models/pretrained.py, a file, or "" for random ones
        version="v1.5",  # of ResNet-50: torchvision's; or v1, Caffe's, which the paper used
        inputs="imagenet",  # or caffe: what ResNet-50's weights expect of an image
        dtype="auto",  # float32 on a CPU, else bfloat16; or either. Variables are float32
        remat=False,  # less memory and a third more time
    )

    # CycleGAN as released, at 256.
    config.pair.update(
        filters=64,
        downsamplings=2,
        blocks=9,
        discriminator_filters=64,
        discriminator_layers=3,
        identity_weight=0.5,
        batch_size=0,  # an image on each device
        pools=0,
        epochs=100,
        enlarge=286,  # pixels: images are resized to this, and a random part of the old size seen
        flip=True,
    )
    config.translate.update(batch_size=16, part_size=256)

    # The solver of JAN's text, and of CAN (Kang et al., CVPR 2019): SGD, 0.01 for the new layer and
    # a tenth of it for pretrained ones.
    solver = dict(
        name="sgd",
        learning_rate=1e-3,
        schedule="progress",
        momentum=0.9,
        weight_decay=5e-4,
        classifier_factor=10.0,
    )
    config.source.update(batch_size=64, epochs=30, round_epochs=5)
    config.source.optimizer.update(solver)
    config.adapt.update(
        batch_size=64,
        rounds=20,
        round_steps=200,
        # Frozen statistics make both networks agree at step 0, but leave the information score
        # lower on D->A and W->A of office10.
        batch_norm="batch",
        beta=0.02,  # 52 layers, not three
        layers="(?!conv1$|conv_stem$).*",  # all but the first convolution
        jmmd_layers=JMMD_LAYERS,
    )
    config.adapt.optimizer.update(solver)
    # The source network is good enough on the target to begin with.
    config.em.start_step = 0
    config.evaluate.batch_size = 64
    return config


def on_cpu(config: ConfigDict) -> None:
    """Sizes, and a network, that two CPU cores carry in an hour or two; figures are lower."""
    config.data.image_size = 112
    config.augment.crop = 96
    config.model.update(name="efficientnet_lite0", weights="efficientnet_lite0")
    config.pair.update(filters=32, blocks=6, discriminator_filters=32, enlarge=124, epochs=4)
    config.source.update(batch_size=16, epochs=10)
    config.adapt.update(batch_size=16, rounds=6, round_steps=100)
    # Ours, not JAN's, and chosen on office10 D->A with its labels: few updates want a higher rate.
    # The source network (seed 0) has 51.0 % of the target's images right with it, 40.6 without,
    # 46.4 without and three times the epochs (all three with a batch-norm momentum of 0.9).
    for stage in (config.source, config.adapt):
        stage.optimizer.learning_rate = 3e-3


def on_pod(config: ConfigDict) -> None:
    """Batches for 32 chips: each a multiple of them. Figures with these sizes are not known yet.

    Learning rates grow with the square root of the batch, CycleGAN's (Adam) and JAN's (SGD) alike;
    rounds are as many updates, each of four times the images.
    """
    # An image on each chip, which the released CycleGAN had one of: as many epochs as there.
    config.pair.update(batch_size=32, pools=32)
    config.pair.optimizer.learning_rate *= 32**0.5
    config.translate.batch_size = 256
    config.source.batch_size = 256
    config.source.optimizer.learning_rate *= 2
    config.adapt.batch_size = 256
    config.adapt.optimizer.learning_rate *= 2
    config.evaluate.batch_size = 256


def smoke(config: ConfigDict) -> None:
    """Every stage and every file, at sizes that show nothing but that they work."""
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
    config.run.update(log_every=1, checkpoint_every=2)


def words(config: ConfigDict, chosen: list[str]) -> None:
    """Applies the words that all of these tasks know: `cpu`, `pod` and `smoke`."""
    for name, change in WORDS.items():
        if name in chosen:
            change(config)


WORDS = {"cpu": on_cpu, "pod": on_pod, "smoke": smoke}
