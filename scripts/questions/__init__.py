"""What README.md and results/README.md state, a module for each question; README.md in scripts/ lists them."""
