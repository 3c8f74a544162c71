"""What every stage gets beside its settings: where to write, on which devices, how often."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from jax.sharding import Mesh
from ml_collections import ConfigDict

from daaa_jax.experiment.workdir import Workdir
from daaa_jax.runtime.metrics import MetricWriter
from daaa_jax.runtime.preemption import Notice


@dataclasses.dataclass(frozen=True)
class Context:
    """Of a run: what all its stages share.

    Attributes:
      workdir: where the stages write.
      mesh: the devices.
      writer: of metrics and pictures.
      settings: `config.run`: how often to log and to save; nothing in it changes a result.
      notice: whether the run is preempted.
      profiled: whether some updates of each stage are traced, see `profiling`.
      later: by stage, what those after it cost in units of its own, see `time_left.later`.
    """

    workdir: Workdir
    mesh: Mesh
    writer: MetricWriter
    settings: ConfigDict
    notice: Notice = dataclasses.field(default_factory=Notice)
    profiled: bool = False
    later: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def profile(self, stage: str) -> Path | None:
        """The folder for a stage's trace, if one is wanted."""
        return self.workdir.profile(stage) if self.profiled else None
