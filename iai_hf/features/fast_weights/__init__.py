"""Fast weights: low-rank weights of the backbone's last layers that a task has of its own, and what they need.

`weights.py` holds and trains them, `retained.py` keeps examples to train on again, `evidence.py` says whether to trust
them. `iai_hf.features.adapted_features` puts them on top of a head on frozen features.
"""

from iai_hf.features.fast_weights.evidence import PRIOR_GAIN, Evidence
from iai_hf.features.fast_weights.retained import Retained
from iai_hf.features.fast_weights.weights import Descent, FastWeights, Schedule, batches

__all__ = ["PRIOR_GAIN", "Descent", "Evidence", "FastWeights", "Retained", "Schedule", "batches"]
