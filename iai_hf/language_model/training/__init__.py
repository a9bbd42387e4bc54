"""Meta-training of learners inside the language model: tasks as texts, episodes, the prequential objective."""

from iai_hf.language_model.training.curriculum import TextCurriculum
from iai_hf.training.tasks import TextTask, load_text_tasks

__all__ = ["TextCurriculum", "TextTask", "load_text_tasks"]
