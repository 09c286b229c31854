"""Makes the notebooks in colab/ from the .py files of the same names: runs all cells and stores their outputs.

pip install jupytext nbclient ipykernel
python scripts/notebooks.py            # all notebooks
python scripts/notebooks.py 06         # only the notebooks whose names start with 06
"""

import sys
from pathlib import Path

COLAB = Path(__file__).resolve().parents[1] / "colab"


def main() -> None:
    """Runs the command line."""
    import jupytext
    import nbclient  # pyright: ignore[reportMissingImports]

    for source in sorted(COLAB.glob(f"{''.join(sys.argv[1:2])}*.py")):
        notebook = jupytext.read(source)
        nbclient.NotebookClient(notebook, timeout=3_600, resources={"metadata": {"path": COLAB}}).execute()
        for number, cell in enumerate(notebook.cells):
            cell["id"] = f"cell-{number}"  # jupytext draws random ids
            cell.get("metadata", {}).pop("execution", None)  # the time of each run
        jupytext.write(notebook, source.with_suffix(".ipynb"), fmt="ipynb")
        print(source.with_suffix(".ipynb").relative_to(COLAB.parent))


if __name__ == "__main__":
    main()
