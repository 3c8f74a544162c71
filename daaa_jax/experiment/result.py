"""Outputs of a run: its networks, with what their use requires, and `result.json`."""

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from daaa_jax.data.types import Task
from daaa_jax.experiment.workdir import Workdir, versions
from daaa_jax.models import Variables, network_file
from daaa_jax.runtime import distributed


class Networks:
    """The files of a run's classifiers, with the metadata that their use requires."""

    def __init__(self, workdir: Workdir, config: ConfigDict, task: Task):
        """Writes no file yet."""
        self._workdir, self._config, self._task = workdir, config, task

    def write(
        self, which: str, variables: Variables, path: Path | None = None, **measured: Any
    ) -> None:
        """Writes a network.

        Args:
          which: `source`, `last` or `selected`.
          path: by default `workdir.network(which)`.
          measured: for an adapted network, the measurement of `second_view.SecondView.measure`,
            `em`, if there is one.
        """
        config, task = self._config, self._task
        about = {
            "network": which,
            "source": task.source_name,
            "target": task.target_name,
            "classes": task.class_names,
            "image_size": task.source_train.images.shape[1],
            "augment": config.augment,
            "crops": config.evaluate.crops,
            "model": config.model,
            "attention": config.adapt.attention,
            "layers": config.adapt.layers,
            "ranges": task.ranges.get("source" if which == "source" else "target", {}),
            **measured,
        }
        network_file.write(path or self._workdir.network(which), variables, about)

    def keep(self, step: int, variables: Variables) -> None:
        """Writes a network that may become the selected one.

        The last few are kept, as a run that is killed before its next checkpoint goes back to them.
        """
        path = self._workdir.candidate(step)
        self.write("selected", variables, path)
        if distributed.is_first():
            for old in [p for p in self._workdir.candidates() if p <= path][:-3]:
                old.unlink()

    def select(self, step: int, **measured: Any) -> None:
        """Makes the candidate of a step the selected network, and removes the others.

        Args:
          step: of the candidate.
          measured: see `write`; may be measured after the candidate was written.
        """
        if distributed.is_first():
            path = self._workdir.candidate(step)
            if path.exists():  # else already selected, by a run that was killed right after
                about = network_file.read_about(path) | measured
                tensors = network_file.read_tensors(path)
                network_file.write(self._workdir.selected_network, tensors, about)
            for other in self._workdir.candidates():
                other.unlink()
        distributed.barrier("selected network written")


def result(
    config: ConfigDict,
    task: Task,
    outputs: Mapping[str, Mapping[str, Any]],
    reused: Collection[str] = (),
) -> dict[str, Any]:
    """The result of a run whose stages are all finished.

    Args:
      config: the whole config.
      task: both domains.
      outputs: by stage, the outputs stored in its marker.
      reused: stages taken from another run, which `device_hours` leaves out.
    """
    own = [known for name, known in outputs.items() if name not in reused]
    adapt, measured = outputs["adapt"], task.evaluation
    # Of the classes that have images.
    per_class = [a for a in adapt["per_class"] if a is not None and not math.isnan(a)]
    on_source, trained_on = measured.source_metric, ""
    if config.method == "upper_bound" and measured.target_test is measured.target_train:
        trained_on = ", whose labels it was trained on"
    return {
        "task": f"{task.source_name} -> {task.target_name}",
        "method": config.method,
        "data": config.data.name,
        "images": {
            "source_train": len(task.source_train.images),
            "target_train": len(task.target_train.images),
            "left_out": task.left_out,
            **({"ranges": task.ranges} if any(task.ranges.values()) else {}),
        },
        "made_from_photos": bool(config.data.get("photos_dir", "")),
        "seed": config.seed,
        "evaluated_on": measured.target_images + trained_on,
        "accuracy": {
            on_source: adapt["source_network"][on_source],
            "source_only": adapt["source_network"]["target_test"],
            # Where there is a G_TS: the source network on G_TS(x), and paired inference.
            **({"source_translated": adapt["source_translated"]} if "paired" in adapt else {}),
            "target_test": {
                name: adapt[name]["target_test"] for name in ("last", "selected", "oracle")
            }
            | adapt.get("paired", {}),
        },
        **({"em": adapt["em"]} if "em" in adapt else {}),
        "per_class": dict(zip(task.class_names, adapt["per_class"], strict=True)),
        "mean_per_class": sum(per_class) / len(per_class) if per_class else None,
        "translation_colours": outputs.get("translate", {}).get("colours", {}),
        "confusion": adapt["confusion"],
        "seconds": {stage: outputs[stage]["seconds"] for stage in outputs},
        "reused": sorted(reused),
        "images_per_second": {
            stage: known["images"] / known["device_seconds"]
            for stage, known in outputs.items()
            if known.get("device_seconds")
        },
        "device_hours": sum(known.get("device_seconds", 0.0) for known in own) / 3600,
        "step_bytes": {
            stage: known["step_bytes"]
            for stage, known in outputs.items()
            if known.get("step_bytes")
        },
        "versions": versions(),
    }
