"""`sa-jax layers` on a terminal: what it prints."""

import numpy as np
import pytest

from sa_jax import cli


@pytest.mark.slow
def test_the_command_prunes_and_says_what_it_did(tmp_path, capsys):
    rng = np.random.default_rng(0)
    sizes = {"first": (12, 16), "second": (8, 12), "third": (8, 12)}
    np.savez(tmp_path / "weights.npz", **{f"{name}.weight": rng.normal(size=size) for name, size in sizes.items()})
    inputs = {name: rng.normal(size=(50, size[1])) for name, size in sizes.items()} | {"third": np.zeros((1, 12))}
    np.savez(tmp_path / "grams.npz", **{name: x.T @ x for name, x in inputs.items()})
    bindings = [f"layers.{name}='{tmp_path / name}.npz'" for name in ("weights", "grams")]
    bindings += ["layers.pattern='2:4'", "layers.refit=True"]
    arguments = ["layers", "--gin_file=configs/layers.gin", *(f"--gin_bindings={b}" for b in bindings)]
    assert cli.main([*arguments, f"--workdir={tmp_path / 'out'}"]) == 0
    printed = capsys.readouterr()
    assert "192 of 384 weights kept (50.0%) in 3 layers" in printed.out
    assert "3 layers, 384 weights" in printed.err and "nan" not in printed.err
    assert "3/3  third, output lost: magnitude 0.00%, wanda 0.00%, annealed 0.00%, refit 0.00%" in printed.err
    assert "third: 8 of 8 outputs were not refitted, because their inputs are 0 or too few" in printed.err
    assert "layers.pattern = '2:4'" in (tmp_path / "out/operative.gin").read_text()
    assert cli.main([*arguments, "--gin_bindings=layers.patern=0.5", f"--workdir={tmp_path / 'out'}"]) == 2
    assert "layers has no setting 'patern'; did you mean pattern?" in capsys.readouterr().err
    assert cli.main(arguments) == 2
    assert "--workdir=DIR is missing: it names the folder for the results" in capsys.readouterr().err
