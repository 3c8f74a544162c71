"""`benchmarks.agreement` sees differences between two devices."""

import itertools
import json

import jax
import numpy as np
import pytest

from benchmarks import agreement

CASE = agreement.Case(lambda x: {"loss": x.sum(), "images": {"a": 2 * x}}, (np.ones(3),))


@pytest.mark.parametrize(("factor", "code"), [(1.0, None), (1.01, 1), (float("nan"), 1)])
def test_difference_beyond_the_tolerance_ends_with_exit_code_1(
    factor, code, monkeypatch, tmp_path, capsys
):
    put, factors = jax.device_put, itertools.cycle([1.0, factor])

    def scaled(arguments, place):
        factor = next(factors)
        return jax.tree.map(lambda leaf: factor * leaf, put(arguments, place))

    monkeypatch.setattr(jax, "device_put", scaled)
    monkeypatch.setattr(agreement, "cases", lambda small: {"one": lambda: CASE})
    monkeypatch.setattr("sys.argv", ["agreement", f"--out={tmp_path / 'found.json'}"])
    if code:
        with pytest.raises(SystemExit) as ended:
            agreement.main()
        assert ended.value.code == code
    else:
        agreement.main()
    found = json.loads((tmp_path / "found.json").read_text())["one"]
    assert found.keys() == {"loss", "images"}
    if np.isfinite(factor):
        np.testing.assert_allclose(list(found.values()), factor - 1, atol=1e-6)
