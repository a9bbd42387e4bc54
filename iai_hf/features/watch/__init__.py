"""What a state keeps to notice changes of its stream (`watch.py`), how (`scores.py`, `detectors.py`), and what then."""

from iai_hf.features.watch import forecasts
from iai_hf.features.watch.scores import KEPT
from iai_hf.features.watch.watch import KINDS, PART, Watch

__all__ = ["KEPT", "KINDS", "PART", "Watch", "forecasts"]
