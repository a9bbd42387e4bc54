"""Write the figures of README.md and results/README.md from what was measured; `--check` says if they are current."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

from comparison import compare_sizes, lab
from comparison.compare_encoders import MARKS, OURS, named
from comparison.compare_report import COLUMNS, best_rival, table
from comparison.compare_words import by_task, means
from comparison.encoder_rivals import RIVALS as ENCODER_RIVALS
from comparison.lab import error, pick
from iai_hf.compare import markdown
from iai_hf.files import write_whole
from paper.cells import ONE_SHOT, OWN, SOLVER
from paper.duels import RIVALS, duels, unready
from paper.findings import findings
from paper.tables import families

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "scripts" / "results"
MARKED = "<!-- {}: written by scripts/update_readme.py from scripts/results -->\n"
ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
SHOWN = (
    "iterative, learned features, 2,000 unlabelled",
    "iterative, learned features, 2,000 unlabelled of another task",
    "iterative, learned features",
    "iterative, learned features, untrained",
    "iterative",
    "iterative, untrained",
    "iterative, 2,000 unlabelled",
    "iterative-explicit",
    "iterative-implicit",
    "self-training, 2,000 unlabelled",
    "label spreading, 2,000 unlabelled",
    "logistic regression",
    "ridge",
    "prototypes",
    "k-nearest neighbours",
    "label names",
)
BRIEF = {
    "iterative, learned features, 2,000 unlabelled": "`iterative`, and 2,000 texts without a label",
    "iterative, learned features": "`iterative`",
    "iterative": "`iterative`, frozen features",
    "iterative, untrained": "the same, its head untrained too",
    "logistic regression": "logistic regression, C by cross-validation",
    "k-nearest neighbours": "k-nearest neighbours",
    "label names": "label names alone",
}
RIVAL = "LoRA 10x"


def curves(records: list[dict[str, Any]]) -> str:
    """Accuracy and likelihood against examples seen, beside the rivals'."""
    mine = [record for record in records if record["backbone"] == ENCODER]
    accuracy, likelihood = table(mine, "accuracy"), table(mine, "negative_log_likelihood")
    rival = best_rival(mine)
    rows = [["accuracy, % (negative log-likelihood)", "seeds", *COLUMNS]]
    for row in SHOWN:
        cells = []
        for where in COLUMNS:
            found, nll = accuracy.get(row, {}).get(where), likelihood.get(row, {}).get(where)
            cells.append("" if not found else f"{100 * mean(found):.1f}" + (f" ({mean(nll):.2f})" if nll else ""))
        rows.append([row, str(max(map(len, accuracy[row].values()))), *cells])
    rows.append(["best rival, task by task", "", *(f"{100 * rival[w]:.1f}" if w in rival else "" for w in COLUMNS)])
    spread = max(error(accuracy["iterative"][where]) for where in COLUMNS)
    tasks = ", ".join(sorted({record["task"] for record in mine}))
    gaps = table(mine, "calibration_error")
    ours, theirs = (
        ", ".join(f"{100 * mean(gaps[row][where]):.1f}" for where in COLUMNS[1:])
        for row in ("iterative", "logistic regression")
    )
    return f"""
Test accuracy against examples seen, mean over {tasks}. Rows see the features of a frozen MiniLM-L6, or learned ones:
those of MiniLM-L6 with its feature adapter, which `iterative` reads by default. None of these tasks was trained on.
Standard errors over stream orders are at most {100 * spread:.1f} points for `iterative`;
[all figures](compare/results.md) have theirs:

{markdown(rows)}
Calibration error of `iterative` after {", ".join(COLUMNS[1:])} examples: {ours}%; of logistic regression with a
cross-validated C: {theirs}%.
"""


def brief(records: list[dict[str, Any]], inside: list[dict[str, Any]]) -> str:
    """The one table of README.md, what training brings, and what fine-tuning does."""
    mine = [record for record in records if record["backbone"] == ENCODER]
    accuracy = table(mine, "accuracy")
    means_of = {row: {where: 100 * mean(found) for where, found in accuracy[row].items()} for row in BRIEF}
    rows = [["accuracy, %, after so many examples", *COLUMNS]]
    for row, title in BRIEF.items():
        rows.append([title, *(f"{means_of[row][where]:.1f}" if where in means_of[row] else "" for where in COLUMNS)])
    learned, frozen, untrained = (
        means_of[row] for row in ("iterative, learned features", "iterative", "iterative, untrained")
    )
    gains = [f"{learned[where] - frozen[where]:+.1f}" for where in COLUMNS]
    of_head = [f"{frozen[where] - untrained[where]:+.1f}" for where in COLUMNS]
    tasks = ", ".join(sorted({record["task"] for record in mine}))
    tuned = {record["task"]: 100 * record["answers"]["accuracy"] for record in lab.pick(inside, row=RIVAL)}
    head = {record["task"]: 100 * record["answers"]["accuracy"] for record in lab.pick(inside, row="iterative")}
    shared = sorted(tuned.keys() & head.keys())
    ahead = mean(tuned[task] - head[task] for task in shared)
    return f"""
Mean over {tasks}, none of them trained on, with MiniLM-L6; rivals on its frozen features:

{markdown(rows)}
Learned features, one adapter for all tasks, change accuracy by {", ".join(gains)} points in these
columns, a trained head by {", ".join(of_head)}. Tasks of sentiment, emotion, news and intents
were among those of the adapter's training; nothing was related to trec6. On a frozen SmolLM2-135M with
{inside[0]["examples"]:,} examples, LoRA given ten times the time is {ahead:.1f} points ahead of `iterative` (mean over
{", ".join(shared)}; one order).
"""


def encoders(records: list[dict[str, Any]]) -> str:
    """Methods that change the encoder, task by task."""
    marks = [mark for mark in MARKS if lab.pick(records, examples=mark)]
    tasks = sorted({record["task"] for record in records})
    rows = [["", *tasks, "seconds"]]
    for row in (*OURS, *ENCODER_RIVALS):
        mine = lab.pick(records, row=row)
        if not mine:
            continue

        def cells(key: str, scale: float, found: list[dict[str, Any]]) -> str:
            values = [[record[key] for record in lab.pick(found, examples=mark) if key in record] for mark in marks]
            return " / ".join(f"{scale * mean(value):.1f}" if value else "-" for value in values)

        shared = [record for record in mine if record["task"] in ("sst2", "trec6")]
        rows.append(
            [f"`{row}`" if row in OURS else row]
            + [cells("accuracy", 100, lab.pick(mine, task=task)) for task in tasks]
            + [cells("seconds", 1, shared)]
        )
    orders = {row: len({record["seed"] for record in lab.pick(records, row=row)}) for row in (*OURS, *ENCODER_RIVALS)}
    told = ", ".join(f"{row} {count}" for row, count in orders.items() if count)
    return f"""
Methods that change the encoder, the same MiniLM-L6: accuracy in % after {" / ".join(map(named, marks))}
examples, and seconds on one core (mean of sst2 and trec6):

{markdown(rows)}
Stream orders at most: {told}; [standard errors, calibration, costs](scripts/results/compare_encoders/results.md).
"""


def words(records: list[dict[str, Any]], cost: dict[str, Any], sizes_told: list[dict[str, Any]]) -> str:
    """Tasks that are answered in words; ways of adapting the model by the number of examples."""
    chunks = cost["chunks_by_words_a_text"]
    twice, once = (
        ", ".join(f"{chunk[key]:.2f}" for chunk in chunks.values()) for key in ("ratio", "ratio_of_one_pass")
    )
    harm = means(records, "unrelated_accuracy")["lm-state"]
    sizes, measured = means(records, "state_bytes")["lm-state"], means(records, "cache_bytes")
    caches = {row: values for row, values in measured.items() if row.startswith("in-context")}
    shown = max(caches, key=lambda row: mean(means(records, "exact_match")[row]))
    return f"""
Tasks that are answered in words, none of them trained on, with up to {records[0]["examples"]} examples on a frozen
SmolLM2-135M: exact match of generated answers, ± standard error over orders. What is called 10x had 10 times the
seconds of `lm-state` or more ([costs](compare_words/results.md)):

{markdown(by_task(records))}
The state of `lm-state` takes {mean(sizes) / 1000:,.0f} kB, {mean(caches[shown]) / mean(sizes):,.0f} times less than the
keys and values of "{shown}". Next-token accuracy on unrelated texts changes by
{100 * mean(harm):+.1f}% (relative) under it. A query costs {cost["query_ratio"]:.2f} times a zero-shot one. Steps are
taken on the answers alone, so the longer the texts, the less they add: a chunk of texts of {", ".join(chunks)} words
costs {twice} times the model's plain forward pass over it, with `passes=1` {once} times.

By the number of examples, with the number of orders in brackets ([each task, seconds](compare_sizes/results.md)):

{markdown(compare_sizes.table(sizes_told, "exact match, %", compare_sizes.WORDS))}
{markdown(compare_sizes.table(sizes_told, "accuracy, %, classification", compare_sizes.LABELLED))}
With a few examples in words `lm-state` is the one to take; where there are labels, `iterative` on the same model's
features is.
"""


def paper(done: dict[str, Any]) -> str:
    """What the reproduction found."""
    cells = done["cells"]
    own, solver = ([cell for cell in cells if (cell["group"] == SOLVER) == on] for on in (False, True))
    seeds = len({cell["seed"] for cell in own})
    rivals = [cell for cell in own if cell["group"] in ("one-shot", "optimizer")]
    mine = [cell for cell in own if cell not in rivals]
    told = [f"{sum(cell['flat'] for cell in part)} of {len(part)}" for part in (mine, rivals)]
    flat = "; ".join(families(pick(mine, flat=True))) or "none"
    lines = "\n".join(findings(cells))
    waiting = "; ".join(unready(cells))

    def scores(group: str) -> str:
        won = {
            rival: [duel.ratio < 1 for duel in duels(cells, group) if duel.rival == rival and duel.steps == "10"]
            for rival in RIVALS
            if rival not in ONE_SHOT
        }
        return ", ".join(f"{rival} {sum(part)} of {len(part)}" for rival, part in won.items() if part)

    return f"""
**The paper's form**, a learned update or predictor without a solver: {told[0]} models were trained until they no longer
improved, of its rivals {told[1]}, the others until their time was over ({seeds} seeds, {len(families(own))} families of
tasks; [all tables](paper/results.md)). Its findings, on the models that no longer improved, which are of these
families: {flat}.

{lines}

Cells of regime by signal that do better than a rival after 10 chunks, where the rival was trained until it no longer
improved: {scores(OWN)}.{f" Rivals that were not: {waiting}." if waiting else ""}

**What a solver adds** ({len(solver)} models), our form: {scores(SOLVER)}.

![Loss against chunks read, by family of tasks](paper/curves.png)
"""


def results(
    figures: dict[str, Any],
    records: list[dict[str, Any]],
    harm: dict[str, Any],
    answered: list[dict[str, Any]],
    sizes: list[dict[str, Any]],
) -> str:
    """The section, in Markdown."""
    rows = [["task", "labels", "examples", "`iterative`, untrained", "logistic regression", "state kB"]]
    for name, task in sorted(figures["accuracy"].items()):
        scores = (task["iterative"], task["logistic_regression"])
        counts = (str(task["labels"]), f"{task['examples']:,}")
        rows.append([name, *counts, *(f"{score:.3f}" for score in scores), f"{task['state_bytes'] / 1000:.0f}"])
    cost, query, memory = figures["throughput"], figures["query"], figures["memory"]
    safe, learned = harm["rows"]["iterative"], figures["features"]
    return f"""{curves(records)}
Read on to 8 times the longest stream of its training, epoch after epoch, `iterative` goes from
{100 * safe["accuracy_at_horizon"]:.1f}% to {100 * safe["accuracy_at_8_horizons"]:.1f}% in the mean and changes by
{100 * safe["worst_task_change"]:+.1f} points on the task that repetition hurts most;
{100 * safe["harmful_updates"]:.1f}% of its updates lower the likelihood of held-out queries by more than 1%, and its
last accuracy varies by {100 * safe["deviation_over_orders"]:.2f} points (standard deviation) over stream orders.

After one pass over all training examples, in one order, beside scikit-learn's logistic regression as it comes (C = 1)
on the same features held in memory. The tasks other than 20 Newsgroups were looked at while the form of the head was
being chosen, so its column is somewhat optimistic; logistic regression's is not:

{markdown(rows)}
On the machine of the benchmark, adapting runs at {cost["ratio"]:.2f} of the bare backbone's forward throughput
({cost["adapt_tokens_per_second"]:,.0f} tokens a second); 100,000 examples take {memory["ratio"]:.2f} times the peak
memory of 2,000 and the same {memory["state_bytes_100000"]:,} bytes of state; a query of twenty words costs
{query["iterative_ratio"]:.2f} times the backbone's bare forward pass. With the feature adapter a chunk costs
{learned["adapter_ratio_of_a_chunk"]:.3f} times what it does without, a query
{learned["adapter_ratio_of_a_query"]:.3f} times, and a chunk of unlabelled rows
{learned["unlabelled_ratio_of_a_chunk"]:.2f} times a labelled one. With {query["in_context_demonstrations"]}
demonstrations, `in-context` answers {query["in_context_speedup"]:.0f} times faster than by reading the prompt again for
each query.
{words(answered, figures["language_model"], sizes)}"""


def put(text: str, name: str, content: str) -> str:
    """`text` with `content` in the part of that name."""
    start, end = MARKED.format(name), f"<!-- end of {name} -->"
    before, rest = text.split(start)
    return before + start + content + end + rest.split(end)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check: bool = parser.parse_args().check

    def measured(name: str) -> Any:
        return json.loads((RESULTS / name).read_text())

    curve = measured("compare/results.json")
    answered, sizes = measured("compare_words/results.json"), measured("compare_sizes/results.json")
    whole = results(measured("benchmark.json"), curve, measured("harm.json"), answered, sizes)
    parts = {
        ROOT / "README.md": {
            "results": brief(curve, measured("compare_lm/results.json"))
            + encoders(measured("compare_encoders/results.json"))
        },
        RESULTS / "README.md": {"results": whole, "paper": paper(measured("paper/results.json"))},
    }
    for path, sections in parts.items():
        text = updated = path.read_text(encoding="utf-8")
        for name, content in sections.items():
            updated = put(updated, name, content)
        if check and updated != text:
            raise SystemExit(f"{path.relative_to(ROOT)} is not what scripts/update_readme.py writes; run it")
        write_whole(path, updated.encode())


if __name__ == "__main__":
    lab.run(main)
