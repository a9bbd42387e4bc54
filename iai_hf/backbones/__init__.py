"""Backbones: pretrained encoders and causal language models, frozen, behind one small interface."""

from iai_hf.backbones.backbone import Backbone, Features
from iai_hf.backbones.load import load_backbone

__all__ = ["Backbone", "Features", "load_backbone"]
