#!/usr/bin/env bash
# Measures every figure that the pages quote and whose code has changed since; many hours. See measure_all.py.
#
#     scripts/measure_all.sh [--check] [--list] [--only=NAME,NAME] [--jobs=2]
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=$root/.venv/bin/python
[ -x "$python" ] || python=python3
"$python" -c "import sa_jax" || { echo "sa_jax is not installed: run 'make demo' first" >&2; exit 2; }
exec "$python" "$root/scripts/measure_all.py" "$@"
