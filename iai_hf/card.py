"""Cards of amortizers and states, made from their own record: nothing is typed in by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from iai_hf import __version__
from iai_hf.backbones.numeric import PREFIX
from iai_hf.files import CURVE_FILE
from iai_hf.header import StateHeader
from iai_hf.hub import base_model, is_folder, public
from iai_hf.shipped import WHENCE

if TYPE_CHECKING:
    from iai_hf.backbones.linear_classifier import LinearClassifier

PIPELINES = {
    "classification": "text-classification",
    "generation": "text-generation",
    "regression": "tabular-regression",
    "multi-label": "text-classification",
}
LIMITS = (
    "A state is made of the examples that it has read, and something of them may be had from it (see "
    "scripts/results/membership.md for how much, by method): treat it as confidential where they are. Its answers are "
    "as good, and as biased, as these examples and the frozen backbone."
)


def state_card(
    header: StateHeader,
    nbytes: int,
    repo_id: str,
    tags: Sequence[str] = (),
    evaluation: Mapping[str, Any] | None = None,
    license: str | None = None,
) -> str:
    """Card of a task state: what it answers, what it was made from, a snippet that runs, and how good it is.

    Args:
        nbytes: of the state's tensors.
        evaluation: what `Curve.save` wrote beside the state.
        license: as the Hub names it.
    """
    task = header.task
    shown = ", ".join(task.labels[:20]) + (f" and {len(task.labels) - 20} more" if len(task.labels) > 20 else "")
    answers = {
        "classification": f"one of {len(task.labels)} labels ({shown})",
        "generation": "text",
        "regression": "a number",
        "multi-label": f"those of {len(task.labels)} labels that apply, if any ({shown})",
    }
    own = {"backbone": header.backbone, **{key: header.config.get(key) for key in WHENCE}}
    folders = "".join(f', {what}="{public(name)}"' for what, name in own.items() if name and is_folder(name))
    asked = "a text"
    query = '"a text to answer"'
    pipeline = PIPELINES[task.kind]
    if task.columns:
        asked = f"numbers ({', '.join(task.columns[:20])})"
        query = f"({', '.join('0.0' for _ in task.columns)},)"
        pipeline = pipeline.replace("text-", "tabular-")
    return _card(
        repo_id,
        header.method,
        header.backbone,
        pipeline,
        ["task-state", *tags],
        f"A task state: what `{header.method}` made of {header.examples:,} examples in {header.steps:,} chunks, in "
        f"{nbytes / 1000:,.0f} kB, on the frozen backbone `{public(header.backbone)}`. It answers {asked} with "
        f"{answers[task.kind]}.",
        f'from iai_hf import TaskState\n\nstate = TaskState.from_pretrained("{repo_id}")\n'
        f"print(state.predict([{query}]{folders}).outputs)",
        evaluation,
        {"license": license, "datasets": list(header.datasets) or None},
        _kept_texts(header.config) + LIMITS,
    )


def _kept_texts(config: Mapping[str, Any]) -> str:
    """What a state of such settings has of its examples as they are."""
    kept = []
    if config.get("depth"):
        kept.append(f"{config['retained_bytes']:,} bytes")
    if tokens := config.get("demonstration_tokens", config.get("demonstrations")):
        kept.append(f"{tokens:,} tokens")
    if not kept:
        return ""
    return f"**It holds up to {' and '.join(kept)} of its examples' texts as they are: who has it can read them.** "


def amortizer_card(described: Mapping[str, Any], repo_id: str, tags: Sequence[str] = ()) -> str:
    """Card of an amortizer, from what `AutoAmortizer.describe` says of it."""
    method, backbone, config = described["method"], described["backbone"], described["config"]
    settings = ", ".join(f"{key} {value}" for key, value in sorted(config.items()) if key not in WHENCE)
    rows = (
        '    [{"input": "a good film", "output": "positive"}, {"input": "a dull film", "output": "negative"}]\n)\n'
        'print(amortizer.predict(state, ["a fine film"]).outputs)'
    )
    if backbone.startswith(PREFIX):
        names = [f"x{i}" for i in range(config.get("inputs") or 2)]
        output = "i / 7" if config["kind"] == "regression" else "i % 2"
        filled = ", ".join(f'"{name}": float(i)' for name in names)
        rows = (
            f'    [{{{filled}, "output": str({output})}} for i in range(8)],\n    columns=Columns(numbers=()),\n)\n'
            f"print(amortizer.predict(state, [({', '.join('0.0' for _ in names)},)]).outputs)"
        )
    folder = f', backbone="{public(backbone)}"' if is_folder(backbone) else ""
    imports = "from iai_hf import AutoAmortizer\n"
    if backbone.startswith(PREFIX):
        imports += "from iai_hf.data import Columns\n"
    return _card(
        repo_id,
        method,
        backbone,
        None,
        ["amortizer", *tags],
        f"An amortizer: `{method}` on the frozen backbone `{public(backbone)}`, with {settings}. It adapts to a "
        "labelled dataset of any length, chunk by chunk.",
        f'{imports}\namortizer = AutoAmortizer.from_pretrained("{repo_id}"{folder})\nstate = amortizer.adapt(\n{rows}',
    )


def classifier_card(classifier: LinearClassifier, form: str, use: str, name: str) -> str:
    """Card of a state in another library's form.

    Args:
        form: the library's name on the Hub.
        use: a snippet that runs, and what else must be known.
    """
    from huggingface_hub import ModelCardData

    backbone, pipeline = classifier.backbone.name, classifier.backbone.pipeline
    data = ModelCardData(
        base_model=base_model(backbone),
        library_name=form,
        pipeline_tag=PIPELINES["classification"],
        tags=[form, "iai_hf"],
    )
    longest = classifier.max_seq_length
    cut = f"Of a text the first {classifier.max_tokens} tokens are read, as the state does."
    if classifier.reads_in_windows:
        cut = (
            f"A text is cut at {longest} tokens, special ones included. The state reads longer ones whole, in windows "
            "that it pools over, and may answer them otherwise; up to that length answers are the same, in float32."
        )
    lowercase = " Texts must be in lower case." if pipeline.lowercase and form == "onnx" else ""
    labels = "\n".join(f"{number}. {label}" for number, label in enumerate(classifier.labels))
    return "\n\n".join(
        [
            f"---\n{data.to_yaml()}\n---",
            f"# {name}",
            f"{classifier.origin[0].upper()}{classifier.origin[1:]}, on `{public(backbone)}`: a text to the logits of "
            f"{len(classifier.labels)} labels. {cut}{lowercase}",
            use,
            "## Labels",
            labels,
            "## Limits and risks",
            LIMITS,
            f"Written by iai_hf {__version__}.\n",
        ]
    )


def _card(
    repo_id: str,
    method: str,
    backbone: str,
    pipeline: str | None,
    tags: Sequence[str],
    what: str,
    snippet: str,
    evaluation: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
    limits: str = LIMITS,
) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    last: Mapping[str, Any] = evaluation["curve"][-1] if evaluation else {}
    results = [
        EvalResult(
            task_type=pipeline or "other",
            dataset_type=evaluation["test"],
            dataset_name=f"{evaluation['test']}, {evaluation['test_examples']:,} examples",
            metric_type=metric,
            metric_value=round(value, 4),
        )
        for metric, value in last.items()
        if evaluation and metric not in ("examples", "adapt_seconds")
    ]
    data = ModelCardData(
        base_model=None if backbone.startswith(PREFIX) else base_model(backbone),
        library_name="iai_hf",
        pipeline_tag=pipeline,
        tags=list(dict.fromkeys(["iai_hf", method, *tags])),
        model_name=repo_id.split("/")[-1] if results else None,
        eval_results=results or None,
        **(metadata or {}),
    )
    measured = []
    if evaluation:
        figures = ", ".join(f"{result.metric_type.replace('_', ' ')} {result.metric_value}" for result in results)
        measured = [
            "## Evaluation",
            f"On {evaluation['test_examples']:,} examples of {evaluation['test']}, after {last['examples']:,} examples "
            f"in {last['adapt_seconds']:.1f} seconds: {figures}.",
            f"![Adaptation curve]({CURVE_FILE})",
        ]
    return "\n\n".join(
        [
            f"---\n{data.to_yaml()}\n---",
            f"# {repo_id.split('/')[-1]}",
            what,
            f"```python\n{snippet}\n```",
            *measured,
            "## Limits and risks",
            limits,
            f"Written by iai_hf {__version__}.\n",
        ]
    )
