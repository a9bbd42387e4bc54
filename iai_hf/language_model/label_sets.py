"""Sets of labels from a language model: a classifier chain whose links are its next words (Read et al. 2011).

An answer is the labels that apply, in the order that the task knows them. So label c applies to a text where it is what
comes next, behind those that do of the labels before it:

    p(c applies | query, before) = p(c next) / (p(c next) + sum over later c' of p(c' next) + p(end))

The labels before are those that were likelier than not. A text is asked once for each label that applies to it, and
once more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from iai_hf.language_model.prompting import Prompter, Question

if TYPE_CHECKING:
    import torch

    from iai_hf.backbones.conditions import Condition

THRESHOLD = 0.0  # log odds above which a label applies: it is likelier than not


def label_logits(prompter: Prompter, condition: Condition, questions: Sequence[Question]) -> list[torch.Tensor]:
    """Log odds of each question's labels, float32 `[labels]` a question, each given those before it."""
    import torch

    found = [torch.zeros(len(question.answers), dtype=torch.float32) for question in questions]
    written: list[tuple[str, ...]] = [() for _ in questions]
    first = [0] * len(questions)  # of the labels that are not decided
    open_ones = list(range(len(questions)))
    while open_ones:
        links = [questions[i]._replace(answers=questions[i].answers[first[i] :], written=written[i]) for i in open_ones]
        for i, scores in zip(open_ones, prompter.scores(condition, links), strict=True):
            after = scores.flip(0).logcumsumexp(0).flip(0)[1:]  # of later labels and the end
            logits = (scores[:-1] - after).cpu()
            found[i][first[i] :] = logits
            applying = (logits > THRESHOLD).nonzero()[:1, 0].tolist()
            taken = first[i] + applying[0] if applying else len(found[i])
            written[i] = (*written[i], *questions[i].answers[taken : taken + 1])
            first[i] = taken + 1
        open_ones = [i for i in open_ones if first[i] < len(found[i])]
    return found
