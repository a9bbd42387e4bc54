"""Heads: streaming classifiers on frozen features, each a torch module whose few parameters are meta-learned.

`head.py` is what they share; `parametric.py`, `explicit.py` and `implicit.py` are the paper's three regimes. The
closed forms that the parametric one stacks are in `experts.py`. The same for any number of labels a text are in
`multi_label/`. A new head is also a class in `iterative.py` beside this folder and an entry point in `setup.cfg`.
"""

from iai_hf.features.heads.explicit import ExplicitHead
from iai_hf.features.heads.head import TEMPLATES, Head
from iai_hf.features.heads.implicit import ImplicitHead
from iai_hf.features.heads.multi_label import (
    MultiLabelExplicitHead,
    MultiLabelImplicitHead,
    MultiLabelParametricHead,
)
from iai_hf.features.heads.parametric import ParametricHead

__all__ = [
    "TEMPLATES",
    "ExplicitHead",
    "Head",
    "ImplicitHead",
    "MultiLabelExplicitHead",
    "MultiLabelImplicitHead",
    "MultiLabelParametricHead",
    "ParametricHead",
]
