"""Cards of amortizers and states, made from their own record: nothing is typed in by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from iai_hf import __version__

if TYPE_CHECKING:
    from iai_hf.state import TaskState

LIMITS = (
    "A state is made of the examples that it has read, and something of them may be had from it: treat it as "
    "confidential where they are. Its answers are as good, and as biased, as these examples and the frozen backbone."
)


def state_card(state: TaskState, repo_id: str, tags: Sequence[str] = ()) -> str:
    """Card of a task state: what it answers, what it was made from, and a snippet that runs."""
    header = state.header
    labels = header.task.labels
    shown = ", ".join(labels[:20]) + (f" and {len(labels) - 20} more" if len(labels) > 20 else "")
    answers = f"one of {len(labels)} labels ({shown})" if header.task.kind == "classification" else "text"
    return _card(
        repo_id,
        header.method,
        header.backbone,
        "text-classification" if header.task.kind == "classification" else "text-generation",
        ["task-state", *tags],
        f"A task state: what `{header.method}` made of {header.examples:,} examples in {header.steps:,} chunks, in "
        f"{state.nbytes / 1000:,.0f} kB, on the frozen backbone `{header.backbone}`. It answers a text with {answers}.",
        f'from iai_hf import TaskState\n\nstate = TaskState.from_pretrained("{repo_id}")\n'
        'print(state.predict(["a text to answer"]).outputs)',
    )


def amortizer_card(described: Mapping[str, Any], repo_id: str, tags: Sequence[str] = ()) -> str:
    """Card of an amortizer, from what `AutoAmortizer.describe` says of it."""
    method, backbone = described["method"], described["backbone"]
    settings = ", ".join(f"{key} {value}" for key, value in sorted(described["config"].items()) if key != "weights")
    return _card(
        repo_id,
        method,
        backbone,
        None,
        ["amortizer", *tags],
        f"An amortizer: `{method}` on the frozen backbone `{backbone}`, with {settings}. It adapts to a labelled "
        "dataset of any length, chunk by chunk.",
        f'from iai_hf import AutoAmortizer\n\namortizer = AutoAmortizer.from_pretrained("{repo_id}")\n'
        'state = amortizer.adapt(\n    [{"input": "a good film", "output": "positive"}, '
        '{"input": "a dull film", "output": "negative"}]\n)\n'
        'print(amortizer.predict(state, ["a fine film"]).outputs)',
    )


def _card(
    repo_id: str, method: str, backbone: str, pipeline: str | None, tags: Sequence[str], what: str, snippet: str
) -> str:
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        base_model=backbone if backbone.count("/") == 1 and not backbone.startswith(("/", ".")) else None,
        library_name="iai_hf",
        pipeline_tag=pipeline,
        tags=list(dict.fromkeys(["iai_hf", method, *tags])),
    )
    return "\n\n".join(
        [
            f"---\n{data.to_yaml()}\n---",
            f"# {repo_id.split('/')[-1]}",
            what,
            f"```python\n{snippet}\n```",
            "## Limits and risks",
            LIMITS,
            f"Written by iai_hf {__version__}.\n",
        ]
    )
