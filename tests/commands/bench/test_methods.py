"""The methods that `sa-jax bench` times."""

import pytest

from sa_jax.commands.bench import ceilings, methods, problems


@pytest.mark.slow
@pytest.mark.skipif(not methods.has_native(), reason="needs native code")
@pytest.mark.parametrize("cores", [1, 2])
def test_native_makes_the_same_walk_as_incremental(cores):
    case = problems.Case((12, 6, 4, 3), 0.4, 50, 2 * cores, cores)
    problem = problems.synthesize(case.sizes, case.density, case.samples)
    counted = ceilings.count(case.sizes, case.density)
    assert methods.native(problem.network).settle and not methods.incremental(problem.network).settle
    acceptances = []
    for name in ("incremental", "native"):
        method = methods.jax_method(name, case, problem, counted)
        seconds, acceptance = method.walk(method.steps_at_once)
        assert seconds > 0 and method.compile_seconds > 0 and method.arrays_bytes > 0
        acceptances.append(acceptance)
    assert 0 < acceptances[0] < 1
    assert acceptances[0] == pytest.approx(acceptances[1], abs=0.02)  # rounding may change a decision
