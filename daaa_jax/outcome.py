"""What a trained target network leaves: its files, what the report asks of it, and the result."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax import linen as nn
from ml_collections import ConfigDict

from daaa_jax import workdir
from daaa_jax.data.images import Images
from daaa_jax.data.types import Task
from daaa_jax.evaluation import Evaluator, diagnostics
from daaa_jax.models import Variables, network_file
from daaa_jax.runtime import device_memory, distributed

LAST = Path("adapt") / "last.safetensors"
SELECTED = Path("adapt") / "selected.safetensors"


class Outcome:
    """Of one seed, in the working directory that a lone run of it would have."""

    def __init__(
        self, home: Path, config: ConfigDict, task: Task, model: nn.Module, evaluate: Evaluator
    ):
        """Writes nothing yet.

        Args:
          home: the working directory.
          config: the whole config, of this seed.
          task: both domains.
          model: the classifier.
          evaluate: measures a network on some images.
        """
        self.home, self.config, self.task = home, config, task
        self.model, self.evaluate = model, evaluate

    def keep(self, step: int, variables: Variables) -> None:
        """Writes a network that may be the selected one.

        Earlier ones stay for a while: a run that is killed before its next checkpoint goes back.
        """
        path = self._candidate(step)
        write_network(path, variables, "selected", self.config, self.task)
        if distributed.is_first():
            for old in sorted(p for p in path.parent.glob("selected-*") if p <= path)[:-3]:
                old.unlink()

    def finish(
        self,
        target: Variables,
        memory: Mapping[str, Any],
        source: Variables,
        synthetic_target: Images | None,
    ) -> dict[str, Any]:
        """Writes what is left to write.

        Args:
          target: the network after the last update.
          memory: of the loop.
          source: the source network.
          synthetic_target: G_ST(x^S), where the method has it.

        Returns:
          What the result needs to know.
        """
        em = memory.get("em")
        write_network(self.home / LAST, target, "last", self.config, self.task, em)
        print("adapt: measuring what the report shows", flush=True)
        with device_memory.enough_memory(
            "the report", "evaluate.audit_images, evaluate.batch_size"
        ):
            diagnostics.write(
                self.home / "adapt",
                model=self.model,
                networks={"source": source, "adapted": target},
                task=self.task,
                synthetic_target=synthetic_target,
                evaluate=self.evaluate,
                config=self.config,
            )
        if distributed.is_first():
            candidate = self._candidate(memory["selected"]["step"])
            if candidate.exists():  # else renamed before, by a run that was killed right after
                # Written before the second view was measured, perhaps.
                about = network_file.read_about(candidate) | ({} if em is None else {"em": em})
                network_file.write(
                    self.home / SELECTED, network_file.read_tensors(candidate), about
                )
            for other in candidate.parent.glob("selected-*"):
                other.unlink()
        distributed.barrier("selected network written")
        final = self.evaluate(target, self.task.evaluation.target_test)
        return {**memory, "per_class": final.per_class, "confusion": final.confusion}

    def _candidate(self, step: int) -> Path:
        return self.home / "adapt" / f"selected-{step:09d}.safetensors"


def write_network(
    path: Path,
    variables: Variables,
    which: str,
    config: ConfigDict,
    task: Task,
    em: Mapping[str, Any] | None = None,
) -> None:
    """Writes a classifier with all that its use needs to know.

    `em` is what `second_view.SecondView.measure` found, for an adapted one.
    """
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
        **({} if em is None else {"em": em}),
    }
    network_file.write(path, variables, about)


def result(
    config: ConfigDict, task: Task, extra: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """The result of a run whose stages are all finished.

    Args:
      config: the whole config.
      task: both domains.
      extra: by stage, what it has left in its marker.
    """
    adapt, measured = extra["adapt"], task.evaluation
    figure, trained_on = measured.source_figure, ""
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
        },
        "made_from_photos": bool(config.data.get("photos_dir", "")),
        "seed": config.seed,
        "evaluated_on": measured.target_images + trained_on,
        "accuracy": {
            figure: adapt["source_network"][figure],
            "source_only": adapt["source_network"]["target_test"],
            # The source network on G_TS(x), and both images of a pair: where there is a G_TS.
            **({"source_translated": adapt["source_translated"]} if "paired" in adapt else {}),
            "target_test": {
                name: adapt[name]["target_test"] for name in ("last", "selected", "oracle")
            }
            | adapt.get("paired", {}),
        },
        **({"em": adapt["em"]} if "em" in adapt else {}),
        "per_class": dict(zip(task.class_names, adapt["per_class"], strict=True)),
        "translation_colours": extra.get("translate", {}).get("colours", {}),
        "confusion": adapt["confusion"],
        "seconds": {stage: extra[stage]["seconds"] for stage in extra},
        "step_bytes": {
            stage: known["step_bytes"] for stage, known in extra.items() if known.get("step_bytes")
        },
        "versions": workdir.versions(),
    }
