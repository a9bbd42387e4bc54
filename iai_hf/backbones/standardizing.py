"""Features with every dimension on a scale of its own, where a few dimensions would drown the others.

In causal language models two dimensions of a hidden state hold most of its square (massive activations, Sun et al.
2024, arXiv 2402.17762), so that all texts point in nearly the same direction. Means and deviations are those of the
sample below: a property of the backbone, so that features of all chunks, machines and parts of a stream agree.

Measured on SmolLM2's features, six held-out tasks, 16 / 64 / 256 examples (untrained `iterative`, accuracy in %):
    as they are                        49.0  57.1  68.2
    from the task's own 256 texts      52.2  60.4  69.8
    from 28 to 140 texts of others     51.9  60.2  69.2
    half the median deviation added    52.8  60.6  71.0
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from iai_hf.backbones.stages import Standardize

if TYPE_CHECKING:
    import torch

    from iai_hf.backbones.backbone import Backbone

DROWNING = 1 / 3  # of the square of features, in their two largest dimensions; MiniLM has 0.01, SmolLM2 0.78
FEW = 16  # dimensions, of which two are many
ADDED = 0.5  # of the median deviation, to each, so that dimensions without a signal stay small
SAMPLE = (
    "What is the capital of Australia?",
    "How do I reset the password of my account?",
    "Please book a table for four on Friday evening.",
    "Turn the lights off in the kitchen.",
    "The film is far too long, but its last scene is worth the wait.",
    "I love this phone, the battery lasts for two days!",
    "Worst service I have ever had. Never again.",
    "It arrived on time and works as described.",
    "Shares fell by three percent after the bank cut its forecast.",
    "The home team won the final in extra time on Sunday.",
    "Researchers have found a new planet that orbits a nearby star.",
    "The government will vote on the new tax law next week.",
    "so tired today, can't wait for the weekend :)",
    "@friend omg that is hilarious",
    "I am worried about the results of the test.",
    "We were all very sad when she left the village.",
    "A list can be sorted in place by calling its sort method.",
    "Error: connection refused on port 8080 after three attempts.",
    "def add(a, b): return a + b",
    "My application crashes whenever I open the second window.",
    "Take two tablets a day after meals unless your doctor tells you otherwise.",
    "The patient reported headaches and a mild fever for five days.",
    "The tenant shall pay the rent on the first day of each month.",
    "We propose a method that learns from few examples and compare it with three others.",
    "Mix the flour with the butter, add an egg and bake it for half an hour.",
    "The bridge was built in 1894 and crosses the river near the old mill.",
    "Yes, that is fine with me.",
    "No idea, sorry.",
    "Who wrote the play that you saw last night?",
    "Because it was raining, the children stayed at home and painted.",
    "Vaccines should be free for everyone, and nobody should have to queue for them.",
    "Congratulations, you have won a prize! Call this number now to claim it.",
    "Hello! Could you tell me when the next train to Berlin leaves?",
    "Why is the card that I ordered two weeks ago not here yet?",
    "The camera is sharp, the screen is dim, and the price is fair.",
    "He scored twice before half time, then limped off the pitch.",
    "sports",
    "anger",
    "business and finance",
    "question about a person",
)
_SAMPLED: WeakKeyDictionary[Backbone, torch.Tensor] = WeakKeyDictionary()  # pooled, `[texts, hidden_size]`


def standardized(backbone: Backbone, *, always: bool = False) -> Backbone:
    """The backbone with features in which each dimension counts by what is usual for it.

    What is usual is told by the plain backbone: an adapter of it was learned on these scales.

    Args:
        always: also where no dimension drowns the others; else the backbone is returned as it is.
    """
    plain = backbone.uncached.plain
    vectors = _SAMPLED.get(plain)
    if vectors is None:
        vectors = _SAMPLED[plain] = plain.alone.pooled(SAMPLE)
    square = vectors.square().mean(0)
    drowned = len(square) > FEW and square.topk(2).values.sum() > DROWNING * square.sum()
    if not (drowned or always):
        return backbone
    deviation = vectors.std(0)
    deviation = deviation + ADDED * deviation.median()
    stage = Standardize(vectors.mean(0), deviation.clamp(min=float(deviation.max()) * 1e-6))
    parts = [backbone.fingerprint, str(stage)]
    if backbone.fingerprint != plain.fingerprint:
        parts.append(plain.fingerprint)
    fingerprint = hashlib.sha256(" ".join(parts).encode()).hexdigest()[:32]
    return backbone.variant(fingerprint, pipeline=replace(backbone.pipeline, stages=(*backbone.pipeline.stages, stage)))
