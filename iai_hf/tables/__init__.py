"""Amortizers of tables of numbers: their solvers, and how they are meta-trained."""
