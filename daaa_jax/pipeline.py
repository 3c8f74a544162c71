"""The stages in order: pair, translate, source, adapt; each resumed, or skipped if finished."""

import dataclasses
import functools
import importlib.metadata
import platform
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from clu import parameter_overview
from jax.sharding import Mesh
from ml_collections import ConfigDict

from daaa_jax import (
    adaptation,
    evaluation,
    models,
    pairing,
    preflight,
    settings,
    source,
    translation,
)
from daaa_jax.data import load_task
from daaa_jax.data.pairs import all_images
from daaa_jax.data.types import Task
from daaa_jax.errors import UserError
from daaa_jax.runtime import markers
from daaa_jax.runtime import mesh as meshes
from daaa_jax.runtime.context import Context
from daaa_jax.runtime.metrics import MetricWriter

STAGES = ("pair", "translate", "source", "adapt")
NEEDS = {"translate": ["pair"], "adapt": ["pair", "translate", "source"]}
RESULT = "result.json"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "ml-collections", "clu", "numpy")


def run(config: ConfigDict, workdir: Path, stage: str = "all") -> dict[str, Any]:
    """Runs the stages, or one of them, in a working directory.

    Args:
      config: the whole config.
      workdir: where everything is written; an earlier run of the same config is continued.
      stage: `all`, or one of `STAGES`, which then needs the finished ones before it.

    Returns:
      The result, as `result.json` holds it; empty unless all stages are finished.

    Raises:
      UserError: for anything that the user can mend.
    """
    if stage not in ("all", *STAGES):
        raise UserError(f"--stage={stage} is unknown: choose {', '.join(STAGES)}, or leave it out")
    _check_same_config(workdir, config)
    if (workdir / RESULT).exists():
        return markers.read_json(workdir / RESULT)
    # Before anything is written: a run with bad settings, or without its data, leaves nothing.
    mesh = meshes.data_mesh()
    settings.check(config, mesh)
    preflight.check_workdir(workdir)
    preflight.check_reused(config)
    task = load_task(config.data)
    preflight.check_networks(config, task)
    stages = _Run(config, task, workdir, mesh)
    stages.check_needs(stage)
    _write_config(workdir, config)
    with MetricWriter(workdir) as writer:
        print_overview(config, task)
        stages.through(stage, writer)
        if stage not in ("all", "adapt"):
            return {}
        result = stages.result()
    markers.write_json(workdir / RESULT, result)
    return markers.plain(result)


def _check_same_config(workdir: Path, config: ConfigDict) -> None:
    path = workdir / markers.CONFIG_NAME
    if not path.exists():
        return
    content = markers.read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("config"), dict):
        raise UserError(f"{path} is not the file that a run writes: choose another --workdir")
    found = _what(ConfigDict(content["config"]))
    differing = markers.differing_settings(found, _what(config))
    if differing:
        raise UserError(
            f"{workdir} belongs to another config: {'; '.join(differing[:5])}. Choose another "
            f"--workdir, or the settings that it was made with"
        )


def _write_config(workdir: Path, config: ConfigDict) -> None:
    content = {"config": config.to_dict(), "command": shlex.join(sys.argv), "versions": versions()}
    markers.write_json(workdir / markers.CONFIG_NAME, content)


def _what(config: ConfigDict) -> dict[str, Any]:
    """The settings that say what is computed, without those that say where and how."""
    what = markers.plain(config.to_dict())
    what.pop("run", None)
    data = what.setdefault("data", {})
    data["made_from_photos"] = bool(data.get("photos_dir"))
    for name in ("dir", "tfds_dir", "photos_dir"):
        data.pop(name, None)
    return what


def versions() -> dict[str, str]:
    """Versions of Python, of the packages that compute, and the kind of device."""
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        **packages,
        "devices": f"{jax.device_count()} x {device.device_kind}",
    }


def print_overview(config: ConfigDict, task: Task) -> None:
    """Prints the parameters of the networks, without making any."""
    key, image = jax.random.key(0), jnp.zeros((1, *task.source_train.images.shape[1:]))
    classifier = models.create_classifier(config.model, len(task.class_names), "sum_squares")
    generator, discriminator = pairing.make_networks(config.pair)
    for name, init in (
        ("generator", generator.init),
        ("discriminator", discriminator.init),
        ("classifier", functools.partial(classifier.init, train=False)),
    ):
        shapes = jax.eval_shape(init, key, image)["params"]
        table = parameter_overview.get_parameter_overview(shapes, include_stats=False)
        print(f"{name}:\n{table}", flush=True)


class _Run:
    """One run: a task, its settings, and the stages on them."""

    def __init__(self, config: ConfigDict, task: Task, workdir: Path, mesh: Mesh):
        self.config, self.task, self.workdir, self.mesh = config, task, workdir, mesh
        self.model = models.create_classifier(
            config.model, len(task.class_names), config.adapt.attention
        )
        self.generator, _ = pairing.make_networks(config.pair)
        self.evaluate = evaluation.make_evaluator(self.model, mesh, config)
        originals = {
            task.source_name: task.source_train.images,
            task.target_name: task.target_train.images,
        }
        # The CycleGAN knows its domains by the order of their names: one serves both directions.
        self.domains = dict(sorted(originals.items()))
        self.settings = self._settings()

    def _settings(self) -> dict[str, dict[str, Any]]:
        """What each stage's outcome depends on: settings, seed and inputs."""
        what = _what(self.config)
        images = {name: markers.checksum(array) for name, array in self.domains.items()}
        pair = {"seed": what["seed"], "images": images, "pair": what["pair"]}
        translate = pair | {"translate": what["translate"]}
        source = {name: what[name] for name in ("seed", "model", "augment", "source")} | {
            "images": {self.task.source_name: images[self.task.source_name]},
            "labels": markers.checksum(self.task.source_train.labels),
        }
        adapt = source | translate | {name: what[name] for name in ("adapt", "em")}
        return {"pair": pair, "translate": translate, "source": source, "adapt": adapt}

    def check_needs(self, wanted: str) -> None:
        """Makes sure that a stage which shall run alone has what it builds upon."""
        for needed in NEEDS.get(wanted, ()):
            if self._finished(needed, self._home(needed)) is None:
                raise UserError(
                    f"--stage={wanted} needs the stage {needed}, which is not finished in "
                    f"{self.workdir}: run --stage={needed} first, or leave --stage out"
                )

    def through(self, wanted: str, writer: MetricWriter) -> None:
        """Runs one stage, or all of them."""
        context = Context(self.workdir, self.mesh, writer, self.config.run)
        for name, run in (
            ("pair", self._pair),
            ("translate", self._translate),
            ("source", self._source),
            ("adapt", self._adapt),
        ):
            if wanted in ("all", name):
                self._stage(name, run, context)

    def _home(self, stage: str) -> Path:
        """The workdir that holds a stage: this one, or the reused one that has it finished."""
        own, other = self.workdir, Path(self.config.run.reuse).expanduser()
        reuses = self.config.run.reuse and self._finished(stage, own) is None
        if reuses and self._finished(stage, other):
            return other
        return own

    def _finished(self, stage: str, workdir: Path) -> dict[str, Any] | None:
        marker = markers.read_marker(workdir / stage)
        same = marker and marker["fingerprint"] == markers.fingerprint(self.settings[stage])
        return marker if same else None

    def _stage(
        self, name: str, run: Callable[[Context], Mapping[str, Any]], context: Context
    ) -> None:
        """Runs a stage unless it is finished, and writes its marker."""
        home = self._home(name)
        marker = self._finished(name, home)
        if marker:
            print(f"{name}: finished before, in {home / name}", flush=True)
            return
        if self.config.run.reuse:
            print(f"{name}: not reused, {self._why_not_reused(name)}", flush=True)
        self._begin(name)
        extra = run(context)
        markers.write_marker(self.workdir / name, name, self.settings[name], extra)

    def _why_not_reused(self, name: str) -> str:
        marker = markers.read_marker(Path(self.config.run.reuse).expanduser() / name)
        if marker is None:
            return f"not finished in {self.config.run.reuse}"
        return "; ".join(markers.differing_settings(marker["settings"], self.settings[name])[:5])

    def _begin(self, name: str) -> None:
        """Makes sure that a half-done stage goes on with the inputs that it began with."""
        path = self.workdir / name / "started.json"
        if path.exists():
            begun = markers.read_json(path)
            differing = markers.differing_settings(begun, self.settings[name])
            if differing:
                raise UserError(
                    f"stage {name} in {self.workdir} began with other inputs: "
                    f"{'; '.join(differing[:5])}. Restore them, or remove {path.parent}"
                )
        markers.write_json(path, self.settings[name])

    def _at(self, stage: str, context: Context) -> Context:
        return dataclasses.replace(context, workdir=self._home(stage))

    def _pair(self, context: Context) -> Mapping[str, Any]:
        return self._generators(context)[1]

    def _generators(self, context: Context) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """Trains the generators; restores them where that was done."""
        return pairing.run(self.config, *self.domains.values(), context)

    def _translate(self, context: Context) -> Mapping[str, Any]:
        start = time.monotonic()
        params, _ = self._generators(self._at("pair", context))
        first, second = self.domains
        for name, origin, other in (("a_to_b", first, second), ("b_to_a", second, first)):
            translation.run(
                self.config,
                self.generator,
                params[name],
                self.domains[origin],
                f"{origin}_to_{other}",
                context,
            )
        return {"seconds": time.monotonic() - start}

    def _source(self, context: Context) -> Mapping[str, Any]:
        measured = self.task.evaluation

        def figures(variables):
            return {
                "source_test": self.evaluate(variables, measured.source_test).accuracy,
                "target_test": self.evaluate(variables, measured.target_test).accuracy,
            }

        _, memory = source.run(self.config, self.model, self.task.source_train, figures, context)
        return memory

    def _adapt(self, context: Context) -> Mapping[str, Any]:
        task, folder = self.task, self._home("translate") / "translate"
        variables, _ = source.run(
            self.config, self.model, task.source_train, lambda _: {}, self._at("source", context)
        )
        # Here and not in stage `source`, which may be one that another target domain shares.
        before = {
            "source_test": self.evaluate(variables, task.evaluation.source_test).accuracy,
            "target_test": self.evaluate(variables, task.evaluation.target_test).accuracy,
        }
        images = all_images(
            task.source_train.images,
            translation.read(folder / f"{task.source_name}_to_{task.target_name}"),
            task.target_train.images,
            translation.read(folder / f"{task.target_name}_to_{task.source_name}"),
        )
        target, memory = adaptation.run(
            self.config,
            self.model,
            variables,
            images,
            task.source_train.labels,
            self.evaluate,
            task.evaluation,
            context,
        )
        final = self.evaluate(target, task.evaluation.target_test)
        return {
            **memory,
            "source_network": before,
            "per_class": final.per_class,
            "confusion": final.confusion,
        }

    def result(self) -> dict[str, Any]:
        """The result of a run whose stages are all finished."""
        extra = {stage: self._finished(stage, self._home(stage))["extra"] for stage in STAGES}
        adapt = extra["adapt"]
        source_only = adapt["source_network"]
        development = self.config.data.get("development_size", 0)
        return {
            "task": f"{self.task.source_name} -> {self.task.target_name}",
            "data": self.config.data.name,
            "made_from_photos": bool(self.config.data.photos_dir),
            "seed": self.config.seed,
            "evaluated_on": "development" if development else "test",
            "accuracy": {
                "source_test": source_only["source_test"],
                "source_only": source_only["target_test"],
                "target_test": {
                    name: adapt[name]["target_test"] for name in ("last", "selected", "oracle")
                },
            },
            "per_class": dict(zip(self.task.class_names, adapt["per_class"], strict=True)),
            "confusion": adapt["confusion"],
            "seconds": {stage: extra[stage]["seconds"] for stage in STAGES},
            "versions": versions(),
        }
