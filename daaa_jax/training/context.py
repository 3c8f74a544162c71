"""The context that all stages of a run share: working directory, devices, writer, intervals."""

import dataclasses
from pathlib import Path

from jax.sharding import Mesh
from ml_collections import ConfigDict

from daaa_jax.experiment.workdir import Workdir
from daaa_jax.runtime.metrics import MetricWriter
from daaa_jax.runtime.preemption import Notice


@dataclasses.dataclass(frozen=True)
class Context:
    """What all stages of a run share.

    Attributes:
      workdir: where the stages write.
      mesh: the devices.
      writer: of metrics and images.
      settings: `config.run`, such as the logging and saving intervals; none changes a result.
      notice: whether the run is preempted.
      profiled: whether some updates of each stage are traced, see `profiling`.
    """

    workdir: Workdir
    mesh: Mesh
    writer: MetricWriter
    settings: ConfigDict
    notice: Notice = dataclasses.field(default_factory=Notice)
    profiled: bool = False

    def trace(self, stage: str) -> Path | None:
        """The folder for a trace of some updates of a stage; None if it is not traced."""
        return self.workdir.profile(stage) if self.profiled else None
