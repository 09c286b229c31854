"""The problems that `sa-jax bench` measures."""

from sa_jax.commands.bench import problems


def test_cases():
    quick, full = problems.cases(True), problems.cases(False)
    assert {case.sizes for case in quick} == set(problems.NETWORKS)
    assert {case.density for case in full} >= {0.5, 0.05, 0.02}
    assert {case.samples for case in full} == {1_000, 2_000, 10_000, 60_000}
    assert {(case.chains, case.cores) for case in full} >= {(1, 1), (64, 1), (64, 2)}
    assert all(case.chains % case.cores == 0 for case in quick + full)


def test_equal_fan_out():
    problem = problems.synthesize((9, 8, 8, 4), 0.0, 5, fan_out=3)
    kept = problem.mask[72:136].reshape(8, 8)
    assert (kept.sum(1) == 3).all() and problem.mask.sum() == 3 * (9 + 8 + 8)
