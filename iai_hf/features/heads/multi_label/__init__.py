"""Heads for any number of labels a text: the three regimes on C binary problems that share features and thresholds.

`head.py` is what they share, `experts.py` the closed forms, `thresholds.py` where a label is to apply. They stand
beside the heads of one label a text, whose learned numbers are not theirs.
"""

from iai_hf.features.heads.multi_label.explicit import MultiLabelExplicitHead
from iai_hf.features.heads.multi_label.implicit import MultiLabelImplicitHead
from iai_hf.features.heads.multi_label.parametric import MultiLabelParametricHead

__all__ = ["MultiLabelExplicitHead", "MultiLabelImplicitHead", "MultiLabelParametricHead"]
