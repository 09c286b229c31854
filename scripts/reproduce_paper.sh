#!/usr/bin/env bash
# The paper's experiment, whole: 2 hours on two cores; with --quick a small part of it, in 5 minutes.
# Goes on where it stopped. Tables and pictures go to scripts/results/paper*, those of --quick to the workdir.
#
#     scripts/reproduce_paper.sh [--quick] [WORKDIR]
set -euo pipefail
cd "$(dirname "$0")/.."
bin=.venv/bin
[ -x "$bin/sa-jax" ] || bin=$(dirname "$(command -v sa-jax)")
quick=()
schedules=()
if [ "${1:-}" = --quick ]; then
  shift
  quick=(
    --gin_bindings="DENSITIES=[0.1,0.02]"
    --gin_bindings="compare.datasets={'mnist':[0.1307,0.3081]}"
    --gin_bindings="compare.hidden=[[300,100]]"
    --gin_bindings="run.num_steps=5_000"
    --gin_bindings="run.num_samples=1_000"
    --gin_bindings="run.pretrain_epochs=2"
  )
  schedules=("${quick[@]}" --gin_bindings="DENSITIES=[0.02]" --gin_bindings="METHODS=['cold_fast','middle_fast','hot_fast']")
  workdir=${1:-runs/paper_quick}
  out=$workdir
else
  workdir=${1:-runs/paper}
  out=scripts/results
fi
"$bin/sa-jax" compare --gin_file=configs/paper.gin "${quick[@]}" --workdir="$workdir/main"
"$bin/sa-jax" compare --gin_file=configs/paper_schedules.gin "${schedules[@]}" --workdir="$workdir/schedules"
"$bin/python" scripts/paper.py "$workdir" --out="$out"
