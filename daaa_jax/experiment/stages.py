"""The stages of a run: their inputs, and whether and where each of them is finished.

A stage is valid if the hash stored with it equals the hash of its current inputs.
"""

from collections.abc import Callable, Mapping
from typing import Any

from flax import traverse_util
from ml_collections import ConfigDict

from daaa_jax import models
from daaa_jax.data.images import Images
from daaa_jax.data.types import Task
from daaa_jax.errors import UserError
from daaa_jax.experiment.workdir import ADDED_LATER, Workdir, identity_settings
from daaa_jax.models import published_weights
from daaa_jax.runtime import files

OURS = "daaa"  # `config.method` of the paper's method
STAGES = ("pair", "translate", "source", "adapt")
NEEDS = {"translate": ("pair",), "adapt": ("pair", "translate", "source")}
NO_REUSE = "none"  # `run.reuse` without reuse: every stage is run here
# Increased when a change of the code changes a stage's output, so that the output of an older
# version is not reused.
VERSIONS = {"pair": 3, "translate": 3, "source": 3, "adapt": 4}
_SHOWN = 5  # settings that differ


def other_versions(workdir: Workdir) -> list[str]:
    """Which stages a working directory has finished with another version than the present one."""
    markers = {stage: workdir.marker(stage) for stage in STAGES}
    versions = {
        stage: marker["settings"].get("version") for stage, marker in markers.items() if marker
    }
    return [
        f"version {version} of stage {stage}, now {VERSIONS[stage]}"
        for stage, version in versions.items()
        if version != VERSIONS[stage]
    ]


def needs_translations(config: ConfigDict) -> bool:
    """Whether any loss of the method uses a translation."""
    adapt = config.adapt
    used = adapt.mix.t_f or adapt.mix.s_f or adapt.beta or config.em.posterior == "paired"
    return config.method == OURS and bool(used)


def trains_cyclegan(config: ConfigDict) -> bool:
    """Whether a run has the stages `pair` and `translate`."""
    return needs_translations(config) and not config.pair.translations


def reads_weights(config: ConfigDict) -> bool:
    """Whether any network of the run starts from `model.weights`."""
    return not config.source.checkpoint or config.adapt.init == "scratch"


def directions(task: Task) -> tuple[str, str]:
    """Names of the translations from the source to the target domain, and back."""
    source, target = task.source_name, task.target_name
    return f"{source}_to_{target}", f"{target}_to_{source}"


def stages_of(config: ConfigDict) -> tuple[str, ...]:
    """The stages that a run has; external translations and source networks replace some."""
    absent = set() if trains_cyclegan(config) else {"pair", "translate"}
    absent |= {"source"} if config.source.checkpoint else set()
    return tuple(stage for stage in STAGES if stage not in absent)


def why_no_generators(config: ConfigDict) -> str:
    """Why a run trains no CycleGAN."""
    if config.method != OURS:
        return f"method={config.method} has no generators"
    if needs_translations(config):
        return f"pair.translations={config.pair.translations} replaces the CycleGAN"
    return (
        "no loss uses translations (adapt.mix.t_f, adapt.mix.s_f and adapt.beta are 0, and "
        "em.posterior is target)"
    )


def inputs(
    config: ConfigDict,
    task: Task,
    external_translations: Mapping[str, Images],
    external_source: models.Variables | None,
) -> dict[str, dict[str, Any]]:
    """Inputs that determine each stage's output.

    Args:
      config: the whole config.
      task: the two domains.
      external_translations: by direction, those of `pair.translations`; empty if none.
      external_source: the source network of `source.checkpoint`, if any.

    Returns:
      By stage: settings, seeds, checksums of data and of external files, the stage's version.
    """
    settings = identity_settings(config)
    images = {
        task.source_name: files.checksum(task.source_train.images),
        task.target_name: files.checksum(task.target_train.images),
    }
    model = settings["model"]
    if "dtype" in model:
        model["dtype"] = models.computation_type(config.model)
    if reads_weights(config):
        model["weights"] = published_weights.identity(config.model.weights)
    pair = {"images": images, "pair": settings["pair"]}
    translate = pair | {"translate": settings["translate"]}
    source = {
        "augment": settings["augment"],
        "source": settings["source"],
        "model": model,
        "images": {task.source_name: images[task.source_name]},
        "labels": files.checksum(task.source_train.labels),
    }
    adapt = source | {name: settings[name] for name in ("seed", "adapt", "em", "evaluate")}
    if needs_translations(config):
        adapt |= translate
    if config.method != OURS:
        adapt["method"] = {config.method: settings["baselines"].get(config.method)}
    adapt |= {
        "images": images,
        "classes": task.class_names,
        "measured": {
            name: files.checksum(vars(getattr(task.evaluation, name)))
            for name in ("source_test", "target_test", "target_train", "source_held_out")
            if getattr(task.evaluation, name) is not None
        },
    }
    if config.adapt.init == "scratch" and config.model.weights:
        adapt["start"] = "pretrained"  # it was random in earlier versions
    if external_translations:
        adapt["pair"] = {
            name: [files.checksum(part) for part in images.parts]
            for name, images in external_translations.items()
        }
    if external_source is not None:
        adapt["source"] = files.checksum(external_source)
    stages = {"pair": pair, "translate": translate, "source": source, "adapt": adapt}
    return {
        name: _without_later_defaults(needs) | {"version": VERSIONS[name]}
        for name, needs in stages.items()
    }


def _without_later_defaults(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs of a stage without settings of `ADDED_LATER` that keep the earlier behaviour."""
    flat = traverse_util.flatten_dict(settings, keep_empty_nodes=True)
    kept = {k: v for k, v in flat.items() if (".".join(k), v) not in ADDED_LATER.items()}
    return traverse_util.unflatten_dict(kept)


def _without_machine(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs of a stage without what a finished run does not depend on any more."""
    model = {name: value for name, value in settings["model"].items() if name != "dtype"}
    kept = {name: value for name, value in settings.items() if name not in ("version", "start")}
    return kept | {"model": model}


class Stages:
    """The stages of a run, each with its inputs and the working directory where it is finished."""

    def __init__(
        self,
        workdir: Workdir,
        reuse: str,
        stage_inputs: Mapping[str, Mapping[str, Any]],
        is_complete: Mapping[str, Callable[[Workdir], bool]],
    ):
        """Reads no file yet.

        Args:
          workdir: of the run.
          reuse: `run.reuse`: another working directory, empty, or `none`.
          stage_inputs: see `inputs`.
          is_complete: for each stage that may be reused from another working directory, whether
            all of its files are still there.
        """
        self.workdir, self.inputs, self._is_complete = workdir, stage_inputs, is_complete
        self._given = Workdir(reuse) if reuse not in ("", NO_REUSE) else None
        self._uses_siblings = reuse != NO_REUSE

    def workdir_of(self, stage: str) -> Workdir:
        """The working directory where the stage is finished, or else this one."""
        places = self._places(stage)
        return next((place for place in places if self._marker(stage, place)), self.workdir)

    def finished(self, stage: str) -> dict[str, Any] | None:
        """The marker of a finished stage; None if it is not finished."""
        return self._marker(stage, self.workdir_of(stage))

    def has_result(self) -> bool:
        """Whether the run is finished here, with these settings and data.

        Unlike `finished`, whatever the version and the devices, and even if a stage that it reused
        was removed since.
        """
        marker = self.workdir.marker("adapt")
        if marker is None or not self.workdir.result_json.exists():
            return False
        before, now = _without_machine(marker["settings"]), _without_machine(self.inputs["adapt"])
        return not files.differing_settings(before, now)

    def check_started(self, stage: str) -> None:
        """Checks that a stage that was started here still has the same inputs.

        Raises:
          UserError: if it was started with other inputs; names the differences.
        """
        path = self.workdir.started_json(stage)
        started = files.read_json_or(path, self.inputs[stage])
        if differing := files.differing_settings(started, self.inputs[stage]):
            raise UserError(
                f"stage {stage} in {self.workdir} was started with other settings or data: "
                f"{'; '.join(differing[:_SHOWN])}. Restore them, choose another --workdir, or "
                f"remove {path.parent}"
            )

    def start(self, stage: str) -> None:
        """Records the inputs that a stage is started with."""
        files.write_json(self.workdir.started_json(stage), self.inputs[stage])

    def record_reuse(self, stage: str) -> Workdir:
        """Stores the outputs of a finished stage if it is in another working directory.

        That directory may be gone when this run ends.

        Returns:
          The working directory where the stage is finished.
        """
        other, marker = self.workdir_of(stage), self.finished(stage)
        if marker and other != self.workdir:
            reused = self.workdir.reused()
            reused[stage] = {"from": other.path.absolute(), "extra": marker["extra"]}
            files.write_json(self.workdir.reused_json, reused)
        return other

    def outputs(self, stage: str) -> dict[str, Any]:
        """The outputs of a finished stage, here or elsewhere, for the result."""
        if marker := self._marker(stage, self.workdir):
            return marker["extra"]
        return self.workdir.reused()[stage]["extra"]

    def finish(self, stage: str, outputs: Mapping[str, Any]) -> None:
        """Writes a stage's marker."""
        marker = {
            "stage": stage,
            "fingerprint": files.settings_hash(self.inputs[stage]),
            "settings": self.inputs[stage],
            "extra": outputs,
        }
        files.write_json(self.workdir.finished_json(stage), marker)

    def why_not_reused(self, stage: str) -> str:
        """Why an unfinished stage is not reused from `run.reuse`; empty if that is not given."""
        given = self._given_for(stage)
        if given is None or stage not in self._is_complete:
            return ""
        marker = given.marker(stage)
        if marker is None:
            return f"not finished in {given}"
        differing = files.differing_settings(marker["settings"], self.inputs[stage])
        return "; ".join(differing[:_SHOWN]) or f"its files in {given} are incomplete"

    def _given_for(self, stage: str) -> Workdir | None:
        """The directory `run.reuse`, or the one that it took a stage from itself."""
        return self._given.origin(stage) if self._given else None

    def _places(self, stage: str) -> list[Workdir]:
        if stage not in self._is_complete:
            return [self.workdir]
        others = self.workdir.siblings() if self._uses_siblings else []
        # A run resumes with the stage that it started with, even if siblings finished others since.
        recorded = self.workdir.reused().get(stage, {}).get("from", "")
        others.sort(key=lambda place: str(place) != recorded)
        given = self._given_for(stage)
        return [self.workdir, *([given] if given else []), *others]

    def _marker(self, stage: str, place: Workdir) -> dict[str, Any] | None:
        """The marker of a stage that is finished in a directory with the same inputs; else None.

        Of a sibling, or one that `run.reuse` took the stage from, only if it still has the stage's
        files, as some may have been deleted.
        """
        is_sibling = place not in (self.workdir, self._given)
        try:
            if is_sibling and not (place.config_json.is_file() and self._is_complete[stage](place)):
                return None
            marker = place.marker(stage)
        except (OSError, UserError):
            if is_sibling:
                return None  # a damaged sibling does not affect this run
            raise
        same = marker and marker["fingerprint"] == files.settings_hash(self.inputs[stage])
        return marker if same else None
