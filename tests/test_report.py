"""The page on a run: well-formed, self-contained, complete, and made for every shape of run."""

import itertools
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from sa_jax.report import render_report

VOID = {"meta", "link", "br", "hr", "img"}
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
        self.tags: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_startendtag(self, tag, attributes):
        values = dict(attributes)
        self.tags.append(tag)
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
