"""Amortizers inside a causal language model: what they learn, how it is meta-trained, and its export to PEFT."""
