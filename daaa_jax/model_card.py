"""The model card of an exported network: its data, settings, figures and limits."""

from collections.abc import Collection, Mapping
from pathlib import Path

from ml_collections import ConfigDict

from daaa_jax import baselines
from daaa_jax import workdir as workdirs
from daaa_jax.models import network_file
from daaa_jax.runtime import markers

_FIGURES = {
    "source_test": "source network, test images of the source domain",
    "source_train": "source network, the source domain's training images",
    "source_only": "source network, target domain",
}


def write(network: network_file.Trained, workdir: Path, which: str) -> str:
    """The card of a network of a working directory, in Markdown."""
    about, config = network.about, workdirs.read_config(workdir)
    path = workdir / "result.json"
    result = markers.read_json(path) if path.exists() else {}
    classes = about["classes"]
    side, crop, crops = about["image_size"], about["augment"]["crop"], about["crops"]
    seen = f"its central {crop}x{crop} pixels" if crop else "all of it"
    seen = f"{crops} crops of {crop or side}x{crop or side} pixels" if crops > 1 else seen
    adapted = which != "source"
    method = config.method if adapted else ""
    lines = [
        f"# Classifier of {len(classes)} classes, "
        + (f"adapted from {about['source']} to {about['target']}" if adapted else "not adapted"),
        "",
        _how(about, method),
        *_data(result),
        "",
        "## Use",
        "",
        f"Input: uint8 RGB images `[B,{side},{side},3]`, turned as their EXIF "
        "orientation says, on white where transparent, resized to that size without regard to "
        f"their aspect by an antialiased bilinear filter (Pillow's `BILINEAR`); the network "
        f"sees {seen}. Everything else, the normalisation too, is inside. Output: probabilities "
        f"`[B,{len(classes)}]`, in the order of `classes.txt`.",
        "",
        "```python",
        "from jax import export",
        'program = export.deserialize(open("model.stablehlo", "rb").read())',
        "probabilities = program.call(images)",
        "```",
        "",
        "## Figures",
        "",
        *_figures(result, which),
        "",
        "## Settings",
        "",
        f"- network: {about['model']['name']}, the `{which}` one of the run"
        + {"selected": ", chosen without target labels", "last": ""}.get(which, ""),
        *(
            [
                "- inference: the mean of the posteriors of the image and, weighted by gamma, of "
                "its translation, which is made inside"
            ]
            if network.generator is not None
            else ()
        ),
        f"- seed {config.seed}; {_beginning(config)}",
        *(_adaptation(config) if adapted else ()),
        *_second_view(about.get("em")),
        "- all of them in the run's `config.json`"
        + (f"; packages: {_versions(result)}" if result else ""),
        "",
        "## Limits",
        "",
        f"- Any image is given one of these classes: {', '.join(classes)}.",
        *(
            (
                f"- It was fitted to images like those of `{about['target']}`; on others, those of "
                "the source domain too, it may do worse.",
                "- Its probabilities are not calibrated."
                if method == "upper_bound"
                else "- Adaptation without labels can fail unseen: measure it on some labelled "
                "images of your own before you rely on it. Its probabilities are not calibrated.",
            )
            if adapted
            else (
                f"- It has seen images of `{about['source']}` alone, and does worse on others.",
                "- Its probabilities are not calibrated.",
            )
        ),
        "- The licences of the training images and of the pretrained weights apply.",
    ]
    return "\n".join(lines) + "\n"


def of_generators(side: int, directions: Collection[str]) -> str:
    """The card of a run's translators of images of `side` pixels, in Markdown."""
    lines = [
        "# Translators of images, " + " and ".join(sorted(directions)),
        "",
        "The generators of a CycleGAN (daaa_jax), trained on unpaired images of both domains.",
        f"Input and output: uint8 RGB images `[B,{side},{side},3]`.",
        "",
        "```python",
        "from jax import export",
        f'program = export.deserialize(open("{min(directions)}.stablehlo", "rb").read())',
        "translations = program.call(images)",
        "```",
        "",
        "Nothing makes sure that a translation keeps an image's class: look at some before you use "
        "them. The licences of the training images apply.",
    ]
    return "\n".join(lines) + "\n"


def _beginning(config: ConfigDict) -> str:
    """The weights that the source network, or that of `adapt.init=scratch`, began with."""
    if config.source.checkpoint and config.adapt.init == "source":
        return f"source network: {config.source.checkpoint}"
    return f"pretrained weights: {config.model.weights or 'none'}"


def _adaptation(config: ConfigDict) -> list[str]:
    length = f"{config.adapt.rounds} rounds of {config.adapt.round_steps} updates"
    if config.method != baselines.OURS:
        return [f"- adaptation: {length}"]
    paired = config.em.get("posterior") == "paired"
    posterior = "both images of a pair (not the paper's)" if paired else "the image"
    strength = config.adapt.get("recolour", 0.0)
    return [
        f"- adaptation: {length}, beta {config.adapt.beta:g}, confidence threshold "
        f"{config.em.threshold:g}, soft labels from {posterior}"
        + (f", colours changed by {strength:g}" if strength else "")
    ]


def _second_view(found: Mapping | None) -> list[str]:
    """How far translations into the source's style were trusted, measured without labels."""
    if found is None:
        return []
    if "confident" not in found:
        return ["- second view: not measured, gamma 0"]
    return [
        f"- second view: gamma {found['gamma']:.3f} (0: translations tell nothing, 1: never "
        f"contradicted); of {found['confident']} confident images {found['contradictions']} "
        f"contradicted on their translations, {found['own']} on themselves, {found['others']} "
        f"outside the most frequent class (e {found['e']:.3f}, e0 {found['e0']:.3f}, "
        f"e1 {found['e1']:.3f})"
    ]


def _how(about: Mapping, method: str) -> str:
    """What it was trained on, and by which method; none for the source network."""
    source, target = (f"`{about[name]}`" for name in ("source", "target"))
    if not method:
        return f"Trained on labelled images of {source}, as the source network of daaa_jax."
    if method == "upper_bound":
        return (
            f"Trained on labelled images of {target} itself, after {source}: the ceiling of what "
            "adaptation without labels can reach (daaa_jax)."
        )
    by = (
        "Deep Adversarial Attention Alignment (Kang et al., ECCV 2018; daaa_jax)"
        if method == baselines.OURS
        else f"the compared method `{method}` of daaa_jax"
    )
    return f"Trained on labelled images of {source} and unlabelled images of {target} by {by}."


def _data(result: dict) -> list[str]:
    if "images" not in result:
        return []
    counts = result["images"]
    left_out = sum(counts["left_out"].values())
    return [
        "",
        f"{counts['source_train']} labelled and {counts['target_train']} unlabelled images"
        + (f"; {left_out} more could not be read." if left_out else "."),
    ]


def _figures(result: dict, which: str) -> list[str]:
    if not result:
        return ["None: the run has no result yet."]
    accuracy = result["accuracy"]
    rows = [(text, accuracy[key]) for key, text in _FIGURES.items() if key in accuracy]
    if which in accuracy["target_test"]:
        rows.append(("this network, target domain", accuracy["target_test"][which]))
    if which in ("last", "selected") and f"paired_{which}" in accuracy["target_test"]:
        rows.append(
            ("this network on image and translation", accuracy["target_test"][f"paired_{which}"])
        )
    known = [(text, value) for text, value in rows if value is not None]
    table = ["| accuracy | |", "| --- | --- |", *(f"| {t} | {v:.1%} |" for t, v in known)]
    if len(known) == len(rows):
        return [*table, "", f"On the target domain measured on {result['evaluated_on']}."]
    return [*table, "", "On the target domain there were no labels to measure with."]


def _versions(result: dict) -> str:
    return ", ".join(f"{name} {version}" for name, version in result["versions"].items())
