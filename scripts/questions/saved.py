"""The files of scripts/results/: where they are, how they are read and written."""

import csv
import json
import os
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "scripts" / "results"


def config_path(config: str) -> Path:
    """Where a config is, by its name."""
    return ROOT / "configs" / f"{config}.gin"


def load(name: str) -> dict[str, Any]:
    """A saved result, by its name."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def load_rows(name: str) -> list[dict[str, str]]:
    """The rows of a saved table, by its name."""
    with (RESULTS / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def load_page(name: str) -> str:
    """A saved page, by its name."""
    return (RESULTS / f"{name}.md").read_text().strip()


def save(name: str, result: dict[str, Any]) -> None:
    """Saves a result under its name. The file is written whole or not at all."""
    path = RESULTS / f"{name}.json"
    aside = path.with_suffix(".writing")
    aside.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(aside, path)


def peers() -> dict[str, dict[str, float]]:
    """Test accuracies in % that the code of other authors gave, by method and density."""
    return load("peers")["test_accuracy"]
