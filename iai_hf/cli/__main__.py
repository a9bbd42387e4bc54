"""`python -m iai_hf.cli`, as `accelerate launch -m` needs it."""

from iai_hf.cli import main

main()
