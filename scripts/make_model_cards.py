"""Write model_cards/ from the shipped weights' own records and from what was measured.

python scripts/make_model_cards.py
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from comparison import lab
from comparison.compare_report import COLUMNS, table
from comparison.compare_words import by_task
from comparison.lab import error, pick, shown
from iai_hf import shipped
from iai_hf.amortizer import Amortizer
from iai_hf.auto import amortizer_class
from iai_hf.backbones.adapter import ADAPTER
from iai_hf.compare import markdown
from iai_hf.features.frozen_features import FrozenFeatures
from iai_hf.files import CONFIG_FILE, write_whole
from iai_hf.plots import blank, png

RESULTS = Path("scripts/results/compare/results.json")
MEMBERSHIP = Path("scripts/results/membership.json")
WORDS = Path("scripts/results/compare_words/results.json")
CARDS = Path("model_cards")
ON_FEATURES = (
    "Trained on English texts of up to 128 tokens. Probabilities are honest where chunks mix the classes; a stream "
    "sorted by class should be shuffled. A state holds sums of features of its examples, or, in the implicit regime, "
    "the features themselves: treat it as confidential where they are."
)
IN_WORDS_ROWS = {"lm-state": "lm-state", "prompt-tuning": "prompt tuning 1x, learned start"}  # of the comparison
IN_WORDS = (
    "Trained on short English tasks with answers of a few words. A state holds what was fitted to its examples, that "
    "of `lm-state` its first ones as they are: what can be learned by heart may be asked of it, so treat it as "
    "confidential where they are."
)


def row_of(config: dict[str, Any]) -> str:
    """Name of the weights' row in the comparison."""
    if config["method"] == ADAPTER:
        return "iterative, learned features"
    signal = config["config"].get("signal", "both")
    return config["method"] if signal == "both" else f"{config['method']}, {signal}"


def curve(mine: list[dict[str, Any]], row: str, records: list[dict[str, Any]]) -> bytes:
    """Mean accuracy over tasks against examples seen, beside logistic regression's and that of the label names."""
    figure, axes = blank()
    base = mine[0]["backbone"]
    for name in (row, "logistic regression", "label names"):
        cells = table(pick(records, backbone=base), "accuracy").get(name, {})
        places = [place for place, column in enumerate(COLUMNS) if column in cells]
        values = [100 * mean(cells[COLUMNS[place]]) for place in places]
        spread = [100 * error(cells[COLUMNS[place]]) for place in places]
        axes.errorbar(places, values, spread, marker="o", markersize=5, label=name)
    axes.set_xticks(range(len(COLUMNS)), COLUMNS)
    axes.set_xlabel("examples seen")
    axes.set_ylabel("accuracy, %")
    axes.set_title(f"Mean over {len({record['task'] for record in mine})} tasks that were not trained on")
    axes.legend(frameon=False)
    return png(figure)


def leak(method: str, attacks: list[dict[str, Any]]) -> str:
    """What a membership-inference attack achieved."""
    found = []
    for size in sorted({attack["size"] for attack in attacks}):
        areas = [attack["area"] for attack in pick(attacks, method=method, size=size)]
        if len(areas) > 1:
            found.append(f"{shown(areas, digits=2)} after {size} examples")
    if not found:
        return ""
    return (
        " A small membership-inference test, which guesses by likelihood whether a state has read a text of 20 "
        f"Newsgroups, has an area under the ROC curve of {' and '.join(found)} (0.5: no leak)."
    )


def card(
    name: str, records: list[dict[str, Any]], answered: list[dict[str, Any]], attacks: list[dict[str, Any]]
) -> str:
    """A model card, metadata first."""
    config = json.loads((shipped.FOLDER / name / CONFIG_FILE).read_text())
    training = json.loads((shipped.FOLDER / name / "training.json").read_text())
    adapts = config["method"] == ADAPTER
    method: type[Amortizer] = amortizer_class(training["config"]["method"])
    base, row = config["base_model_name_or_path"], row_of(config)
    mine = pick(records, backbone=base, row=row)
    results = []
    for record in mine:
        if record["seed"] == 0:
            last = record["curve"][-1]
            for metric in ("accuracy", "macro_f1", "negative_log_likelihood", "calibration_error"):
                results.append(
                    EvalResult(
                        task_type="text-classification",
                        dataset_type=record["task"],
                        dataset_name=f"{record['task']}, {last['examples']:,} examples",
                        metric_type=metric,
                        metric_value=round(last[metric], 4),
                    )
                )
    its_row = IN_WORDS_ROWS.get(method.method)
    if its_row:
        for task in dict.fromkeys(record["task"] for record in answered):
            scores = [record["answers"]["exact_match"] for record in pick(answered, row=its_row, task=task)]
            results.append(
                EvalResult(
                    task_type="text-generation",
                    dataset_type=task,
                    dataset_name=f"{task}, up to {answered[0]['examples']} examples",
                    metric_type="exact_match",
                    metric_value=round(mean(scores), 4),
                )
            )
    data = ModelCardData(
        base_model=base,
        library_name="iai_hf",
        license="apache-2.0",
        pipeline_tag="text-classification" if issubclass(method, FrozenFeatures) else "text-generation",
        tags=["iai_hf", config["method"], method.regime],
        model_name=name,
        eval_results=results or None,
    )
    history = training["history"]
    place, unit, limits = "inside", "nats a token", IN_WORDS
    if issubclass(method, FrozenFeatures):
        place, unit, limits = "on frozen features of", "log C", ON_FEATURES
    what = f"Learned weights of `{config['method']}` ({method.regime} regime) {place} `{base}`."
    if adapts:
        what = f"Low-rank weights of `{base}` for the features of every method on it, merged into it at load."
    text = [
        f"---\n{data.to_yaml()}\n---",
        f"# {name}",
        f"{what} They adapt to a labelled dataset of any length, chunk by chunk.",
        "```python\nfrom iai_hf import AutoAmortizer\n\n"
        f'amortizer = AutoAmortizer.from_pretrained("{method.method}", backbone="{base}")\n'
        "state = amortizer.adapt(\n"
        '    [{"input": "a good film", "output": "positive"}, {"input": "a dull film", "output": "negative"}]\n'
        ")\n"
        'print(amortizer.predict(state, ["a fine film"]).outputs)\n```',
        "## Training",
        f"Greedy meta-training, {training['best_step']} of {training['step']} steps of "
        f"{training['config']['episodes_per_step']} episodes kept by the loss on tasks held out from training "
        f"({', '.join(training['config']['validation'])}): {history[0]['loss']:.4f} untrained, {training['best']:.4f} "
        f"kept (in units of {unit}). {history[-1]['seconds']:.0f} seconds on "
        f"{training.get('machine', 'the CPU')}. Tasks: "
        f"{', '.join(training['config']['tasks'])}."
        + (f" Made by {training['made_by']}." if "made_by" in training else ""),
    ]
    if mine:
        values = {metric: table(mine, metric).get(row, {}) for metric in ("accuracy", "negative_log_likelihood")}
        lines = ["| examples | accuracy | negative log-likelihood |", "| --- | ---: | ---: |"]
        for where, cells in values["accuracy"].items():
            lines.append(f"| {where} | {shown(cells)} | {shown(values['negative_log_likelihood'][where])} |")
        tasks = ", ".join(sorted({record["task"] for record in mine}))
        text += [
            "## Evaluation",
            f"Mean over {tasks}, none of them trained on; ± standard error over orders.",
            *["\n".join(lines)],
            f"![Accuracy against examples seen]({name}.png)",
        ]
    if its_row:
        text += [
            "## Evaluation",
            "Exact match of generated answers on tasks that were not trained on, ± standard error over orders; the row "
            f"of these weights is *{its_row}*.",
            markdown(by_task(answered)).strip(),
        ]
    text += [
        "## Limits",
        limits + leak(config["method"], attacks),
    ]
    return "\n\n".join(text) + "\n"


def main() -> None:
    records = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
    answered = json.loads(WORDS.read_text()) if WORDS.is_file() else []
    attacks = json.loads(MEMBERSHIP.read_text()) if MEMBERSHIP.is_file() else []
    CARDS.mkdir(exist_ok=True)
    for name in shipped.names():
        write_whole(CARDS / f"{name}.md", card(name, records, answered, attacks).encode())
        config = json.loads((shipped.FOLDER / name / CONFIG_FILE).read_text())
        row = row_of(config)
        mine = pick(records, backbone=config["base_model_name_or_path"], row=row)
        if mine:
            write_whole(CARDS / f"{name}.png", curve(mine, row, records))
        print(CARDS / f"{name}.md")


if __name__ == "__main__":
    lab.run(main)
