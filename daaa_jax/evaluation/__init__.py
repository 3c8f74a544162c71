"""Evaluation of networks: accuracy, soft labels, label-free selection, report diagnostics."""

from daaa_jax.evaluation.evaluate import (
    Evaluation,
    Evaluator,
    Outputs,
    attention_of,
    make_evaluator,
    of_posteriors,
    outputs,
    paired_posteriors,
    spread,
)
