"""Networks as plain arrays: masks over their branches, energies of their outputs."""
