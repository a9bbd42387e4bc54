"""One file a method; each registers under the entry point `iai_hf.amortizers` in setup.cfg."""
