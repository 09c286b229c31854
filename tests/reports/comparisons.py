"""Comparisons to render that look like real ones."""

import math
import zlib

import numpy as np

from sa_jax.reports.comparison import render_comparison

# labels, gradients, moves weights, CPU seconds, and how much of the error grows with sparsity
METHODS = {
    "random": (0, 0, 0, 0.01, 9),
    "magnitude_global": (0, 0, 0, 0.02, 3),
    "magnitude_layerwise": (0, 0, 0, 0.02, 3.6),
    "magnitude_erk": (0, 0, 0, 0.02, 3.3),
    "wanda_global": (0, 0, 0, 0.2, 2.2),
    "wanda_per_output": (0, 0, 0, 0.22, 2.7),
    "node_entropy": (0, 0, 0, 0.3, 5),
    "node_output_norm": (0, 0, 0, 0.03, 6),
    "node_input_norm": (0, 0, 0, 0.03, 7),
    "random_search": (1, 0, 0, 150, 5.5),
    "greedy_swaps": (1, 0, 0, 60, 1.9),
    "genetic_algorithm": (1, 0, 0, 170, 3.2),
    "score_search": (1, 0, 0, 20, 0.9),
    "anneal_alone": (1, 0, 0, 320, 0.8),
    "snip": (1, 1, 0, 0.9, 2.1),
    "obd": (1, 1, 0, 1.4, 1.8),
    "obs_mask": (1, 1, 0, 4, 1.7),
    "cbs_mask": (1, 1, 0, 20, 1.6),
    "edge_popup": (1, 1, 0, 45, 1.5),
    "edge_popup_momentum": (1, 1, 0, 46, 1.3),
    "movement": (1, 1, 0, 44, 1.4),
    "l0_gates": (1, 1, 0, 60, 2.5),
    "score_search_gradient": (1, 1, 0, 18, 0.7),
    "anneal": (1, 1, 0, 340, 0.6),
    "woodfisher": (1, 1, 1, 6, 1.2),
    "obs_update": (1, 1, 1, 5, 1.1),
    "magnitude_finetuned": (1, 1, 1, 40, 0.25),
    "smaller_dense": (1, 1, 1, 30, 0.7),
    "anneal_nudged": (1, 1, 1, 380, 0.35),
}


DENSITIES = (0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.02)


ACCURACIES = {
    ("wanda_global", 0.5): [0.90, 0.92],
    ("wanda_global", 0.1): [0.50, 0.60],
    ("anneal", 0.5): [0.90, 0.90],
    ("anneal", 0.1): [0.80, 0.82],
    ("magnitude_finetuned", 0.5): [0.93, 0.93],
    ("magnitude_finetuned", 0.1): [0.70, 0.70],
}


def make_comparison(methods=tuple(METHODS), densities=DENSITIES, seeds=3, datasets=("mnist", "fashion_mnist")):
    """Makes the rows and paired tests of a comparison that looks like a real one."""
    rows, paired = [], []
    for dataset in datasets:
        rows += [make_row("dense", dataset, 1.0, seed) for seed in range(seeds)]
        for method in methods:
            rows += [make_row(method, dataset, density, seed) for density in densities for seed in range(seeds)]
        others = [
            method for method in methods if method not in ("anneal", "smaller_dense") and "anneal" in methods
        ]
        paired += [make_test(method, dataset, density, seeds) for method in others for density in densities]
    return rows, paired


def make_row(method, dataset, density, seed):
    """One cell; the smaller dense network is impossible where it would be too small."""
    labels, gradients, moves, seconds, slope = METHODS.get(method, (1, 1, 1, 12, 0))
    rng = np.random.default_rng(zlib.crc32(f"{method}{dataset}".encode()) + seed)
    accuracy = 0.94 if dataset == "mnist" else 0.88
    if method != "dense":
        lost = 0.02 * slope * (math.exp(0.9 * math.log(1 / density) - 0.5) - 0.8) / 3
        accuracy = float(np.clip(accuracy - lost + rng.normal(0, 0.004 + 0.05 * (lost > 0.2)), 0.1, 0.99))
    totals = [784 * 40, 40 * 20, 20 * 10]
    wider = min(1, density ** (1 - len(method) % 7 / 10))
    kept = [int(density * totals[0]), int(wider * totals[1]), int(wider * totals[2])]
    if method == "node_entropy" and density < 0.1:
        kept[2] = 0
    effective = int(sum(kept) * (1 - 0.05 * slope * (1 - density)))
    row = {"dataset": dataset, "network": "784-40-20-10", "weights": "pretrain", "method": method, "seed": seed}
    row |= {"density": density, "sparsity": 1 - density, "kept": sum(kept), "total": sum(totals)}
    row |= {"uses_labels": bool(labels), "uses_gradients": bool(gradients), "moves_weights": bool(moves)}
    row |= {"test_accuracy": accuracy, "validation_accuracy": accuracy, "test_loss": 0.3, "reason": ""}
    row |= {"kept_per_layer": kept, "total_per_layer": totals, "cpu_seconds": seconds * rng.uniform(0.9, 1.1)}
    row |= {"effective_kept": effective, "effective_compression": sum(totals) / effective, "num_evaluations": None}
    if method == "smaller_dense" and density < 0.05:
        row |= impossible("no dense network of 784 inputs has as few as 647 branches")
    return row


def impossible(reason):
    names = ("kept", "kept_per_layer", "effective_kept", "effective_compression")
    return dict.fromkeys((*names, "test_accuracy", "validation_accuracy", "test_loss")) | {"reason": reason}


def make_test(method, dataset, density, seeds):
    difference = (METHODS[method][-1] - 0.6) * 0.01 / density**0.5
    test = {"dataset": dataset, "network": "784-40-20-10", "weights": "pretrain", "density": density}
    test |= {"reference": "anneal", "method": method, "difference": difference, "standard_error": 0.004}
    return test | {"p_value": 0.001, "real": abs(difference) > 0.01, "num_seeds": seeds}


def few(accuracies, densities=(0.5, 0.1), methods=("wanda_global", "anneal", "magnitude_finetuned")):
    """Rows of a few methods whose accuracies, `{(method, density): one per seed}`, are given."""
    seeds = len(next(iter(accuracies.values())))
    rows, _ = make_comparison(methods, densities, seeds, ("mnist",))
    for row in rows:
        if (row["method"], row["density"]) in accuracies:
            row["test_accuracy"] = accuracies[row["method"], row["density"]][row["seed"]]
    return rows


def render(rows, paired=(), worth=("It was.",), command="sa-jax compare", machine="a processor"):
    return render_comparison(rows, paired, worth, command, {"jax": "0.7.1"}, machine)
