"""Amortizers on the features of a backbone: their heads, and how both are meta-trained."""
