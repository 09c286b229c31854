"""Landscapes whose proposals cost what they change, and the same ones by full evaluation."""
