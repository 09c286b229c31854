"""Runs to render, and a reader of pages that checks their form."""

import csv
import io
import itertools
import re
import urllib.parse
from html.parser import HTMLParser

import numpy as np

VOID = {"meta", "link", "br", "hr", "img", "input"}


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


def make_probes():
    names = ("density", "kept", "validation_accuracy", "search_seconds", "compile_seconds", "anneal_seconds")
    names += ("cpu_seconds",)
    rows = (
        (0.5, 500, 0.9612, 0, 1, 2, 3.5),
        (0.25, 250, 0.9434, 0, 1, 2, 4.5),
        (0.354, 354, 0.9501, 0, 1, 2, 5.5),
    )
    rows += ((0.297, 297, 0.9499, 0, 1, 2, 5.0),)
    return [dict(zip(names, row, strict=True)) for row in rows]


def with_parts(result):
    """A result that began with score search, and whose annealing ended early."""
    names = ("part", "energy", "validation_accuracy", "test_accuracy", "cpu_seconds")
    rows = (("largest weights", None, 0.2105, 0.2011, 0.0), ("score search", 0.4321, 0.8612, 0.8587, 12.34))
    rows += (("annealing", 0.3003, 0.8712, 0.8888, 34.56),)
    parts = [dict(zip(names, row, strict=True)) for row in rows]
    steps = {"num_steps": 45_000, "planned_steps": 200_000, "score_steps": 6_000, "patience": 0.2}
    return result | {"parts": parts, "start": "score_search", "estimates": "forward"} | steps


def saved(text):
    """The rows of each CSV that a page holds, by its name."""
    links = [values for tag, values in Page(text).elements if tag == "a" and "download" in values]
    files = {values["download"]: values["href"].removeprefix("data:text/csv;charset=utf-8,") for values in links}
    return {name: list(csv.reader(io.StringIO(urllib.parse.unquote(file)))) for name, file in files.items()}


def make_weights(masks):
    rng = np.random.default_rng(2)
    return [rng.normal(size=mask.shape) for mask in masks.values()]


def make_evolution(trace, masks, times=5):
    """Masks that come nearer to the best one, at steps of the trace."""
    rng = np.random.default_rng(3)
    best = np.concatenate([np.ravel(mask) for mask in masks.values()])
    drawn = [np.where(rng.random(best.size) < i / (times - 1), best, rng.permuted(best)) for i in range(times)]
    return {"step": np.array([0, *trace["step"][-times + 1 :]]), "masks": np.array(drawn)}
