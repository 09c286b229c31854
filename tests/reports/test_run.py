"""The page on a run: well-formed, self-contained, complete, and made for every shape of run."""

import csv
import html
import io
import itertools
import json
import re
import shutil
import subprocess
import urllib.parse
from html.parser import HTMLParser

import numpy as np
import pytest

from sa_jax.reports.page import STYLE
from sa_jax.reports.run import render_report

VOID = {"meta", "link", "br", "hr", "img", "input"}
OPTIONAL = (
    "magnitude_test_accuracy",
    "random_test_accuracy",
    "num_steps",
    "anneal_seconds",
    "seed",
    "versions",
)


class Page(HTMLParser):
    """Collects what the tests look at, and fails on a tag that is not closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.svgs: list[dict[str, str | None]] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_startendtag(self, tag, attributes):
        values = dict(attributes)
        self.tags.append(tag)
        self.elements.append((tag, values))
        self.ids += [values["id"]] if "id" in values else []
        self.loads += [value for name, value in attributes if name in ("src", "href", "xlink:href")]
        if tag == "svg":
            self.svgs.append(values)

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)


def make_run(sizes=(16, 6, 5, 3), density=0.25, chains=3, entries=20):
    """Makes the arguments of `render_report`, but for the image shape."""
    rng = np.random.default_rng(0)
    shapes = list(itertools.pairwise(sizes))
    total = sum(inputs * outputs for inputs, outputs in shapes)
    kept = round(density * total)
    flat = rng.permutation(np.arange(total) < kept)
    parts = np.split(flat, np.cumsum([inputs * outputs for inputs, outputs in shapes])[:-1])
    masks = {f"Dense_{i}": part.reshape(shape) for i, (part, shape) in enumerate(zip(parts, shapes, strict=True))}
    energy = rng.uniform(0.3, 2.3, (chains, entries))
    trace = {
        "step": np.arange(1, entries + 1) * 100,
        "temperature": np.geomspace(0.02, 2e-5, entries, dtype=np.float32),
        "energy": energy,
        "best_energy": np.minimum.accumulate(energy, 1),
        "acceptance": rng.choice([0, 0.001, 0.3], (chains, entries)),
    }
    result = {
        "dataset": "digits",
        "sizes": list(sizes),
        "activation": "relu",
        "weights": "random",
        "density": density,
        "kept": kept,
        "total": total,
        "kept_per_layer": [int(part.sum()) for part in parts],
        "best_energy": float(energy.min()),
        "test_accuracy": 0.8888,
        "validation_accuracy": 0.8712,
        "dense_test_accuracy": 0.9397,
        "magnitude_test_accuracy": 0.7311,
        "random_test_accuracy": 0.1083,
        "num_steps": 2_000_000,
        "num_chains": chains,
        "steps_per_second": 61_234.5,
        "anneal_seconds": 26.25,
        "seed": 12345,
        "versions": {"jax": "0.7.1", "sa_jax": "0.1.0"},
        "warnings": [],
    }
    return result, trace, masks


def test_page_holds_the_figures_of_the_run():
    result, trace, masks = make_run()
    page = Page(render_report(result, trace, masks, (4, 4)))
    for expected in (
        f"{result['kept']} of {result['total']} branches kept (25.0 %): 88.9 % test accuracy",
        "16-6-5-3 relu network, random weights, on digits.",
        "no weight was changed, nothing was back-propagated",
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


def with_survival(result, masks, chains):
    """What a run of several chains adds: their masks are the given one, with a few branches moved."""
    rng = np.random.default_rng(1)
    drawn = {name: [mask] + [rng.permuted(mask) for _ in range(chains - 1)] for name, mask in masks.items()}
    shares = ("jaccard_mean", "jaccard_min", "jaccard_max", "jaccard_of_random", "jaccard_with_start")
    result |= {
        "mask_overlap": dict(zip(shares, (0.61, 0.55, 0.7, 0.143, 0.33), strict=True)),
        "best_energy_per_chain": [0.3 + 0.01 * chain for chain in range(chains)],
    }
    return {name: np.mean(kernels, 0, dtype=np.float32) for name, kernels in drawn.items()}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("chains", [2, 3, 20])
@pytest.mark.parametrize("image_shape", [(4, 4), None])
def test_chains_are_compared(chains, image_shape):
    result, trace, masks = make_run(chains=chains)
    survival = with_survival(result, masks, chains)
    page = Page(render_report(result, trace, masks, image_shape, survival))
    spread = "" if chains == 2 else " (55.0 % to 70.0 %)"
    assert f"both keep 61.0 %{spread}, where two random masks would share 14.3 %" in page.text
    assert f"energies lie from 0.3 to {0.3 + 0.01 * (chains - 1):.4g}, and" in page.text and "33.0 %" in page.text
    every = sum(int((share == 1).sum()) for share in survival.values())
    chance = result["total"] * (result["kept"] / result["total"]) ** chains
    assert f"{every} branches survive in every chain; by chance it would be" in page.text
    if chains == 2:
        assert f"by chance it would be {chance:.2g}." in page.text
    if image_shape:
        counts = np.rint(chains * survival["Dense_0"])
        share = 100 * (counts * (counts - 1)).sum() / (chains - 1) / counts.sum()
        assert f"the share that another keeps too: {share:.1f} % over all pixels" in page.text
    assert len(page.svgs) == (7 if image_shape else 6)
    assert "Do the chains agree?" not in render_report(result, trace, masks, image_shape)


def make_probes():
    names = ("density", "kept", "validation_accuracy", "compile_seconds", "anneal_seconds", "cpu_seconds")
    rows = ((0.5, 500, 0.9612, 1, 2, 3.5), (0.25, 250, 0.9434, 1, 2, 4.5), (0.354, 354, 0.9501, 1, 2, 5.5))
    rows += ((0.297, 297, 0.9499, 1, 2, 5.0),)
    return [dict(zip(names, row, strict=True)) for row in rows]


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


def test_worth_and_the_best_one_shot_mask_stand_at_the_top():
    result, trace, masks = make_run()
    result |= {
        "worth": "It was <b>worth</b> it.",
        "one_shot_test_accuracy": {"snip": 0.4321, "obd": 0.8123},
        "best_one_shot": "obd",
        "effective_kept": 12,
    }
    page = Page(render_report(result, trace, masks, None))
    assert page.text.index("It was <b>worth</b> it.") < page.text.index("What the first layer")
    assert "b" not in page.tags
    assert "Best one-shot 81.2 %" in page.svgs[0]["aria-label"]
    assert "snip 43.2 %, obd 81.2 %" in page.text
    assert f"12 of {result['kept']} kept branches lie on a path from input to output" in page.text


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
    assert text.index("branches kept") < text.index("Only 3 of 10") < text.index("What the first layer")


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


def test_gallery_shows_the_busiest_units_first():
    result, trace, _ = make_run(sizes=(4, 50, 2))
    first = np.zeros((4, 50), bool)
    first[:3, 7] = first[:2, 30] = first[0, 49] = True
    masks = {"Dense_0": first, "Dense_1": np.ones((50, 2), bool)}
    text = render_report(result, trace, masks, (2, 2))
    gallery = re.search(r"<svg[^>]*40 of 50 hidden units.*?</svg>", text, re.DOTALL)[0]
    assert re.findall(r"<text[^>]*>([^<]*)</text>", gallery) == ["3", "2", "1"] + ["0"] * 37
    assert gallery.count("<image") == 1
    assert "3 of 4 pixels still feed the network" in text


def test_same_run_same_page():
    run = (*make_run(), (4, 4))
    assert render_report(*run) == render_report(*run)
    assert "(50.0 %)" in render_report(*make_run(density=0.5), (4, 4))


def saved(text):
    """The rows of each CSV that a page holds, by its name."""
    links = [values for tag, values in Page(text).elements if tag == "a" and "download" in values]
    files = {values["download"]: values["href"].removeprefix("data:text/csv;charset=utf-8,") for values in links}
    return {name: list(csv.reader(io.StringIO(urllib.parse.unquote(file)))) for name, file in files.items()}


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
    assert "the best chain; all are in trace.csv, beside this page" in Page(text).text


def make_weights(masks):
    rng = np.random.default_rng(2)
    return [rng.normal(size=mask.shape) for mask in masks.values()]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("image_shape", [(2, 2), None])
def test_live_branches_are_drawn_by_sign(image_shape):
    result, trace, _ = make_run(sizes=(4, 3, 2))
    first, second = np.zeros((4, 3), bool), np.zeros((3, 2), bool)
    first[0, 0] = first[1, 0] = first[2, 1] = second[0, 0] = second[0, 1] = True  # unit 1 feeds nothing
    weights = [np.where(np.arange(4)[:, None] == 0, -1.0, 1.0) * np.ones((4, 3)), np.ones((3, 2))]
    text = render_report(result, trace, {"a": first, "b": second}, image_shape, None, weights)
    drawing = re.search(r"<svg[^>]*Drawing of the network.*?</svg>", text, re.DOTALL)[0]
    lines = re.findall(r'<path d="([^"]*)" clip-path[^>]*fill: none; opacity[^>]* stroke: (var\(--\w+\))', drawing)
    lines = [(path.count("L"), color) for path, color in lines]
    assert sorted(lines) == [(1, "var(--accent)"), (1, "var(--second)"), (2, "var(--accent)")]
    assert "The 4 branches that lie on a path" in drawing and "2 of 4, 1 of 3, 2 of 2 units" in drawing


@pytest.mark.parametrize(
    ("dead", "said"), [(False, "Drawn where at most 1,500 branches"), (True, "Drawn where branches")]
)
def test_a_network_that_cannot_be_drawn_says_why(dead, said):
    result, trace, masks = make_run(sizes=(100, 20, 5), density=0.9)
    if dead:
        masks["Dense_1"][:] = False
    assert said in Page(render_report(result, trace, masks, (10, 10), None, make_weights(masks))).text


def make_evolution(trace, masks, times=5):
    """Masks that come nearer to the best one, at steps of the trace."""
    rng = np.random.default_rng(3)
    best = np.concatenate([np.ravel(mask) for mask in masks.values()])
    drawn = [np.where(rng.random(best.size) < i / (times - 1), best, rng.permuted(best)) for i in range(times)]
    return {"step": np.array([0, *trace["step"][-times + 1 :]]), "masks": np.array(drawn)}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("image_shape", [(4, 4), None])
def test_evolution_is_a_slider_without_script(image_shape):
    result, trace, masks = make_run()
    evolution = make_evolution(trace, masks)
    page = Page(render_report(result, trace, masks, image_shape, None, None, evolution))
    radios = [values for tag, values in page.elements if tag == "input"]
    assert len(radios) == 5 and ["checked" in values for values in radios] == [True] + [False] * 4
    labels = {values["for"] for tag, values in page.elements if tag == "label"}
    assert labels == {values["id"] for values in radios}
    assert {values["aria-describedby"] for values in radios} <= set(page.ids)
    alts = [values["alt"] for tag, values in page.elements if tag == "img"]
    assert "Step 0, the mask that annealing began with" in alts[0]
    assert f"Step {trace['step'][-1]:,}, temperature 2e-05: 100.0 % of its branches are in the best" in alts[4]
    seen = np.count_nonzero(evolution["masks"][0][:96].reshape(16, 6).any(1))
    assert f"{seen} of 16 {'pixels' if image_shape else 'inputs'} feed the network" in alts[0]
    assert "script" not in page.tags
    short = {name: values[:2] for name, values in evolution.items()}
    assert "How the mask evolved" not in render_report(result, trace, masks, image_shape, None, None, short)


def test_headings_are_in_order():
    result, trace, masks = make_run()
    result["warnings"] = ["look"]
    survival, weights = with_survival(result, masks, 3), make_weights(masks)
    page = Page(render_report(result, trace, masks, (4, 4), survival, weights, make_evolution(trace, masks)))
    levels = [int(tag[1]) for tag in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1 and all(after <= before + 1 for before, after in itertools.pairwise(levels))


def luminance(color):
    color = color if len(color) == 7 else "#" + "".join(2 * digit for digit in color[1:])
    parts = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colors_have_the_contrast_that_wcag_asks_for(scheme):
    light, dark = re.findall(r":root \{([^}]*)\}", STYLE)
    colors = dict(re.findall(r"--(\w+): (#\w+)", light if scheme == "light" else dark))
    text = [("ink", "card"), ("ink", "page"), ("ink", "warn"), ("soft", "card"), ("accent", "card")]
    for needed, pairs in ((4.5, text), (3, [("second", "card")])):
        for pair in pairs:
            low, high = sorted(luminance(colors[name]) for name in pair)
            assert (high + 0.05) / (low + 0.05) >= needed, pair


# Asks a page in a frame how wide it is, and which pictures show as its slider is moved.
ASKS = """<script>
const shown = [...document.querySelectorAll(".slider input")].map(radio => {
  radio.click();
  return [...document.querySelectorAll(".slider figure")].map(figure => +(figure.offsetHeight > 0)).join("");
});
parent.document.body.dataset["w" + innerWidth] = document.documentElement.scrollWidth + " " + shown.join(" ");
</script></body>"""


def test_page_fits_phone_and_desktop_in_a_browser(tmp_path):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium or Chrome")
    result, trace, masks = make_run(sizes=(16, 6, 5, 3))
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
