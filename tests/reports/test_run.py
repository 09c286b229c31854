"""The page on a run: well-formed, self-contained, complete, and made for every shape of run."""

import html
import itertools
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from sa_jax.reports.run import render_report
from tests.reports.pages import (
    Page,
    make_evolution,
    make_probes,
    make_run,
    make_weights,
    saved,
    with_parts,
    with_survival,
)

OPTIONAL = (
    "magnitude_test_accuracy",
    "random_test_accuracy",
    "num_steps",
    "anneal_seconds",
    "seed",
    "versions",
)


def test_page_holds_the_figures_of_the_run():
    result, trace, masks = make_run()
    page = Page(render_report(result, trace, masks, (4, 4)))
    for expected in (
        f"{result['kept']} of {result['total']} branches kept (25.0 %): 88.9 % test accuracy",
        "16-6-5-3 relu network, random weights, on digits.",
        "Annealing chose branches; no weight was changed. No derivative of the energy was taken.",
        "pixels still feed the network",
        *("87.1 %", "94.0 %", "73.1 %", "10.8 %", "2,000,000", "61,234", "26.25", "12345", "0.7.1"),
        ", ".join(map(str, result["kept_per_layer"])),
        "sa-jax run --gin_file=operative.gin --workdir=NEW_DIR",
    ):
        assert expected in page.text
    assert page.tags.count("h1") == 1
    assert "Warnings" not in page.text


def test_page_loads_nothing_and_runs_nothing():
    text = render_report(*make_run(), (4, 4))
    page = Page(text)
    assert page.loads
    assert all(load.startswith(("#", "data:")) for load in page.loads)
    assert "script" not in page.tags
    assert "@import" not in text
    assert set(re.findall(r"url\((.)", text)) <= {"#"}


def test_figures_have_descriptions_and_ids_of_their_own():
    page = Page(render_report(*make_run(), (4, 4)))
    assert len(page.svgs) == 5
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.svgs)
    assert len(page.ids) == len(set(page.ids))
    assert {load[1:] for load in page.loads if load.startswith("#")} <= set(page.ids)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("chains", [2, 3, 20])
@pytest.mark.parametrize("image_shape", [(4, 4), None])
def test_chains_are_compared(chains, image_shape):
    result, trace, masks = make_run(chains=chains)
    survival = with_survival(result, masks, chains)
    page = Page(render_report(result, trace, masks, image_shape, survival))
    spread = "" if chains == 2 else " (55.0 % to 70.0 %)"
    assert f"both keep 61.0 %{spread}; two random masks would share 14.3 %." in page.text
    assert "Each chain shares 33.0 % with the initial mask" in page.text
    assert f"energies of the chains are between 0.3 and {0.3 + 0.01 * (chains - 1):.4g}." in page.text
    every = sum(int((share == 1).sum()) for share in survival.values())
    chance = result["total"] * (result["kept"] / result["total"]) ** chains
    assert f"Every chain keeps the same {every} branches; by chance it would be" in page.text
    if chains == 2:
        assert f"by chance it would be {chance:.2g}." in page.text
    if image_shape:
        counts = np.rint(chains * survival["Dense_0"])
        share = 100 * (counts * (counts - 1)).sum() / (chains - 1) / counts.sum()
        assert f"another chain keeps too, for each pixel. Over all pixels it is {share:.1f} %." in page.text
    assert len(page.svgs) == (7 if image_shape else 6)
    assert "Do the chains agree?" not in render_report(result, trace, masks, image_shape)


@pytest.mark.filterwarnings("error")
def test_probes_of_a_search_are_listed():
    result, trace, masks = make_run()
    result |= {"probes": make_probes(), "target_accuracy": 0.95, "dense_validation_accuracy": 0.955}
    page = Page(render_report(result, trace, masks, (4, 4)))
    assert "a validation accuracy of at least 95.00 %" in page.text and "4 probes" in page.text
    for figure in ("96.12 %", "94.34 %", "35.4 %", "5.5 s"):
        assert figure in page.text
    drawn = render_report(result, trace, masks, None).split('id="probes-PathCollection_')
    reached, missed = (part.count("<use") for part in drawn[1:3])
    assert (reached, missed) == (2, 2)
    assert "How the density was found" not in render_report(*make_run(), (4, 4))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("density", [1.0, 1e-4])
def test_a_search_of_one_probe_is_drawn(density):
    result, trace, masks = make_run()
    result |= {"probes": make_probes()[:1], "target_accuracy": 0.99, "dense_validation_accuracy": 0.955}
    result["probes"][0]["density"] = density
    Page(render_report(result, trace, masks, (4, 4)))


def test_what_each_part_gained_is_listed():
    result, trace, masks = make_run()
    result = with_parts(result)
    text = render_report(result, trace, masks, (4, 4))
    page = Page(text)
    assert "What each part gained" in page.text
    for row in (
        "largest weights - 21.05 % 20.11 % 0.0 s",
        "score search 0.4321 86.12 % 85.87 % 12.3 s",
        "annealing 0.3003 87.12 % 88.88 % 34.6 s",
    ):
        assert row in page.text
    assert saved(text)["parts.csv"] == [
        ["part", "energy", "validation_accuracy", "test_accuracy", "cpu_seconds"],
        ["largest weights", "", "0.2105", "0.2011", "0.0"],
        ["score search", "0.4321", "0.8612", "0.8587", "12.34"],
        ["annealing", "0.3003", "0.8712", "0.8888", "34.56"],
    ]
    for setting in ("start score_search", "estimates forward", "score steps 6,000", "patience 0.2"):
        assert setting in page.text
    assert "Steps × chains 45,000 × 3" in page.text and "Score search 6,000 steps" in page.text
    assert "What each part gained" not in render_report(*make_run(), (4, 4))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {},
            "Score search and then annealing chose branches; no weight was changed. No derivative of the energy",
        ),
        (
            {"uses_gradients": True},
            "changed. Derivatives of the energy guided the proposals or chose the initial mask.",
        ),
        (
            {"moves_weights": True},
            "Score search and then annealing chose branches and changed weights. No derivative",
        ),
        (
            {},
            "ended after 45,000 of 200,000 planned proposals, because it gained nothing more on validation",
        ),
        (
            {"stopped": True},
            "The run was stopped after 45,000 of 200,000 planned proposals: this is what it has found",
        ),
    ],
)
def test_the_page_says_how_the_branches_were_chosen(changes, sentence):
    result, trace, masks = make_run()
    text = Page(render_report(with_parts(result) | changes, trace, masks, (4, 4))).text
    assert sentence in text
    assert ("gained nothing more" in text) != ("stopped" in changes)
    whole = with_parts(result) | {"num_steps": 200_000}
    assert "planned proposals" not in Page(render_report(whole, trace, masks, (4, 4))).text


def test_worth_and_the_best_one_shot_mask_stand_at_the_top():
    result, trace, masks = make_run()
    result |= {
        "worth": "It was <b>worth</b> it.",
        "one_shot_test_accuracy": {"snip": 0.4321, "obd": 0.8123},
        "best_one_shot": "obd",
        "effective_kept": 12,
    }
    page = Page(render_report(result, trace, masks, None))
    assert page.text.index("It was <b>worth</b> it.") < page.text.index("Inputs that the first layer still uses")
    assert "b" not in page.tags
    assert "OBD (best one-shot) 81.2 %" in page.svgs[0]["aria-label"]
    assert "snip 43.2 %, obd 81.2 %" in page.text
    assert f"12 of {result['kept']} kept branches lie on a path from input to output" in page.text


def with_errors(result):
    """A run with a rival and the standard errors of its accuracies."""
    errors = {"test_accuracy": 0.0166, "dense_test_accuracy": 0.0126, "magnitude_test_accuracy": 0.0234}
    errors |= {
        "random_test_accuracy": 0.0099,
        "best_one_shot_test_accuracy": 0.0206,
        "rival_test_accuracy": 0.0191,
    }
    rival = {
        "method": "edge_popup_momentum",
        "test_accuracy": 0.8432,
        "validation_accuracy": 0.8511,
        "steps": 5432,
    }
    rival |= {"seconds": 3.94, "allowed_seconds": 4.11, "clock": "CPU", "reproducible": False}
    result |= {"rival": rival, "standard_errors": errors, "num_test_samples": 359, "num_validation_samples": 359}
    result |= {"one_shot_test_accuracy": {"snip": 0.4321, "obd": 0.8123}, "best_one_shot": "obd"}
    return result | {"test_accuracy_per_chain": [0.8888, 0.8702, 0.8755]}


def test_each_accuracy_has_its_standard_error_and_each_bar_its_name():
    result, trace, masks = make_run()
    result = with_errors(with_parts(result))
    page = Page(render_report(result, trace, masks, None))
    assert page.svgs[0]["aria-label"] == (
        "Bar chart of test accuracy: Score search, then annealing 88.9 ±1.7 %; Edge-popup, momentum (as much CPU "
        "time) 84.3 ±1.9 %; OBD (best one-shot) 81.2 ±2.1 %; Magnitude, global 73.1 ±2.3 %; Random (mean of ten) "
        "10.8 ±1.0 %; Dense 94.0 ±1.3 %"
    )
    assert "branches kept (25.0 %): 88.9 ±1.7 % test accuracy" in page.text
    assert "±: one standard error, because there are only 359 test samples" in page.text
    assert "it used 3.9 of 4.1 s of CPU time" in page.text and "made 5,432 steps" in page.text
    assert "so another run may find another mask" in page.text.replace("  ", " ")
    assert "Test accuracy of the chains 87.0 to 88.9 %" in page.text
    # By hand: the root of 0.8712 * 0.1288 / 359, and of 0.8587 * 0.1413 / 359.
    assert "Validation accuracy 87.1 ±1.8 %" in page.text and "85.87 ±1.84 %" in page.text


def test_the_best_one_shot_mask_may_be_that_of_the_largest_weights():
    result, trace, masks = make_run()
    result |= {"one_shot_test_accuracy": {"magnitude_global": 0.7311}, "best_one_shot": "magnitude_global"}
    label = Page(render_report(result, trace, masks, None)).svgs[0]["aria-label"]
    assert label.count("Magnitude, global") == 1 and "Magnitude, global (best one-shot) 73.1 %" in label


def test_text_from_outside_is_escaped():
    result, trace, masks = make_run()
    result |= {"dataset": "<b>data</b>", "weights": "<i>$x$.npz", "warnings": ["<u>look"], "move": "<s>"}
    masks = {f'<q>$"{name}': mask for name, mask in masks.items()}
    text = render_report(result, trace, masks, None)
    page = Page(text)
    assert not {"b", "i", "u", "s", "q"} & set(page.tags)
    for expected in ("on <b>data</b>.", "weights from <i>$x$.npz", "<u>look", '<q>$"Dense_0'):
        assert expected in page.text


def test_warnings_come_before_the_pictures():
    result, trace, masks = make_run()
    result["warnings"] = ["Only 3 of 10 classes are predicted."]
    text = Page(render_report(result, trace, masks, None)).text
    assert (
        text.index("branches kept")
        < text.index("Only 3 of 10")
        < text.index("Inputs that the first layer still uses")
    )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("shape", "image_shape"),
    [
        ({"chains": 1, "entries": 1}, None),
        ({"chains": 20, "entries": 400}, (4, 4)),
        ({"sizes": (12, 50, 8, 7, 6, 5)}, (2, 6)),
        ({"sizes": (600, 300, 2)}, None),
        ({"sizes": (1, 1), "density": 1.0}, (1, 1)),
        ({"density": 1.0}, (4, 4)),
    ],
    ids=["one entry", "20 chains", "5 layers", "wide", "one branch", "dense"],
)
def test_every_shape_of_run(shape, image_shape):
    result, trace, masks = make_run(**shape)
    page = Page(render_report(result, trace, masks, image_shape))
    assert all(name in page.text for name in masks)


def test_page_stays_small_for_the_longest_trace():
    run = make_run(sizes=(4096, 64, 10), density=0.5, chains=64, entries=400)
    assert len(render_report(*run, (64, 64))) < 600_000


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0])
def test_odd_curves(value):
    result, trace, masks = make_run()
    for name in ("temperature", "energy", "best_energy", "acceptance"):
        trace[name] = np.full_like(trace[name], value)
    result["best_energy"] = value
    Page(render_report(result, trace, masks, (4, 4)))
    _, some, _ = make_run()
    some["energy"][:, :3] = value
    Page(render_report(result, some, masks, (4, 4)))


@pytest.mark.parametrize("key", OPTIONAL)
@pytest.mark.parametrize("left_out", [True, False])
def test_optional_figures_may_be_missing(key, left_out):
    result, trace, masks = make_run()
    if left_out:
        del result[key]
    else:
        result[key] = None
    Page(render_report(result, trace, masks, None))


@pytest.mark.slow
def test_same_run_same_page():
    run = (*make_run(), (4, 4))
    assert render_report(*run) == render_report(*run)
    assert "(50.0 %)" in render_report(*make_run(density=0.5), (4, 4))


def test_numbers_are_in_the_page_as_csv():
    result, trace, masks = make_run()
    result |= {"probes": make_probes(), "target_accuracy": 0.95, "dense_validation_accuracy": 0.955}
    result |= {"dataset": 'di,g"its &#', "one_shot_test_accuracy": {"snip": 0.4321}}
    files = saved(render_report(result, trace, masks, (4, 4)))
    rows = files["trace.csv"]
    assert rows[0] == ["chain", "step", "temperature", "energy", "best_energy", "acceptance"]
    assert [float(row[3]) for row in rows[1:]] == np.ravel(trace["energy"]).tolist()
    figures = dict(files["figures.csv"])
    assert figures["dataset"] == result["dataset"] and figures["one_shot_test_accuracy.snip"] == "0.4321"
    assert json.loads(figures["kept_per_layer"]) == result["kept_per_layer"]
    kept = [str(int(mask.sum())) for mask in masks.values()]
    assert [row[1] for row in files["layers.csv"][1:]] == kept
    assert [float(row[2]) for row in files["probes.csv"][1:]] == [0.9612, 0.9434, 0.9501, 0.9499]


def test_of_a_long_trace_the_best_chain_is_in_the_page():
    result, trace, masks = make_run(chains=20, entries=400)
    trace["best_energy"][7, -1] = 0.01
    text = render_report(result, trace, masks, (4, 4))
    rows = saved(text)["trace_best_chain.csv"][1:]
    assert len(rows) == 400 and {row[0] for row in rows} == {"7"}
    assert "the best chain; the file trace.csv beside this page has all chains" in Page(text).text


def test_headings_are_in_order():
    result, trace, masks = make_run()
    result["warnings"] = ["look"]
    survival, weights = with_survival(result, masks, 3), make_weights(masks)
    page = Page(render_report(result, trace, masks, (4, 4), survival, weights, make_evolution(trace, masks)))
    levels = [int(tag[1]) for tag in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1 and all(after <= before + 1 for before, after in itertools.pairwise(levels))


# Asks a page in a frame how wide it is, and which pictures show as its slider is moved.
ASKS = """<script>
const shown = [...document.querySelectorAll(".slider input")].map(radio => {
  radio.click();
  return [...document.querySelectorAll(".slider figure")].map(figure => +(figure.offsetHeight > 0)).join("");
});
parent.document.body.dataset["w" + innerWidth] = document.documentElement.scrollWidth + " " + shown.join(" ");
</script></body>"""


@pytest.mark.slow
def test_page_fits_phone_and_desktop_in_a_browser(tmp_path):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium or Chrome")
    result, trace, masks = make_run(sizes=(16, 6, 5, 3))
    result = with_parts(result)
    result |= {"probes": make_probes(), "target_accuracy": 0.95, "dense_validation_accuracy": 0.955}
    survival, weights = with_survival(result, masks, 3), make_weights(masks)
    text = render_report(result, trace, masks, (4, 4), survival, weights, make_evolution(trace, masks, 9))
    (tmp_path / "report.html").write_text(text)
    asking = re.sub(r"<meta http-equiv[^>]*>", "", text).replace("</body>", ASKS)
    frames = (
        f'<iframe width="{width}" height="800" srcdoc="{html.escape(asking)}"></iframe>' for width in (390, 1200)
    )
    (tmp_path / "frames.html").write_text(f"<body>{''.join(frames)}</body>")

    def browse(page):
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr"]
        command = [
            chromium,
            *options,
            f"--user-data-dir={tmp_path / 'profile'}",
            "--dump-dom",
            str(tmp_path / page),
        ]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)

    assert ":CONSOLE" not in browse("report.html").stderr
    said = browse("frames.html").stdout
    one_at_a_time = " ".join("0" * i + "1" + "0" * (8 - i) for i in range(9))
    for width in (390, 1200):
        assert f'data-w{width}="{width} {one_at_a_time}"' in said
