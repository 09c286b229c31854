"""What a command shows while it runs."""

import time

from sa_jax.commands.run.progress import LINE_SECONDS, described, shown_progress
from sa_jax.commands.run.records import Progress


def test_a_line_comes_now_and_then_where_there_is_no_terminal(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with shown_progress() as (show, say):
        now[0] += 2
        say("loading digits")
        for step in range(1, 5):
            now[0] += 0.6 * LINE_SECONDS
            show(Progress("annealing", step, 4, 1e3, 0.5, 0.4, 1e-3, 0.25))
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "sa-jax: 0:02  loading digits"
    assert [line.split("  ")[1] for line in said[1:]] == ["annealing, step 2/4", "annealing, step 4/4"]
    assert "energy 0.5000  best 0.4000  accepted 25.0%" in said[1] and said[1].startswith("sa-jax: 0:14  ")


def test_the_probe_of_a_search_is_named():
    steps, figures = described(Progress("score search", 100, 200, 5.0, 0.25, probe=3, density=0.125))
    assert steps == "probe 3, 12.5 % kept, score search, step 100/200" and figures == "energy 0.2500  5 steps/s"
