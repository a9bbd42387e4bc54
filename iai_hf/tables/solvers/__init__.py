"""Solvers: the tensor side of numeric amortizers, many tasks at once. One file an idea."""
