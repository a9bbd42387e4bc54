"""Card of a state as a PEFT adapter, with lines that answer by transformers and PEFT alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from iai_hf import __version__
from iai_hf.card import LIMITS
from iai_hf.hub import base_model, public

if TYPE_CHECKING:
    from iai_hf.header import StateHeader

ANSWER = """```python
import json
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base, folder = "{base}", Path("{place}")
tokenizer = AutoTokenizer.from_pretrained(base)
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype="float32"), folder).eval()
first, text, last = (
    tokenizer(part, add_special_tokens=False, split_special_tokens=True)["input_ids"] for part in {parts!r}
)  # each by itself
ids, answer, ends = {before} + first + text{cut} + last, [], {ends}
with torch.no_grad():
    while len(answer) < {longest} and "\\n" not in tokenizer.decode(answer) and answer[-1:] not in ends:
        answer.append(int(model(input_ids=torch.tensor([ids + answer]), use_cache=False).logits[0, -1].argmax()))
print(tokenizer.decode(answer, skip_special_tokens=True).split("\\n")[0].strip())
```

Texts are read as the state reads them, without special tokens. Answers in words it writes out like this; of a
classification it compares its labels' likelihoods instead, so that it answers with a label whatever is written here."""
CLASSIFY = """```python
import json
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import {model}, AutoTokenizer

base, folder = "{base}", Path("{place}")
tokenizer = AutoTokenizer.from_pretrained(base)
model = PeftModel.from_pretrained({model}.from_pretrained(base, dtype="float32"), folder).eval()
head, labels = load_file(folder / "head.safetensors"), json.loads((folder / "head.json").read_text())["labels"]


def tokens(text):
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


prompt, text = tokens({prompt!r}), "a text to answer"
{read}
ids = {start} + read + {end}
with torch.no_grad():
    {hidden}
{lines}
logits = torch.nn.functional.normalize(feature, dim=1) @ head["weight"].T + head["bias"]
print(labels[int(logits.argmax())], logits.softmax(1)[0].tolist())
```

Texts that are longer than the model reads at once are read in windows by the state, and not by these lines."""
POOLED = {
    "mean": "hidden.mean(1)",
    "cls": "hidden[:, 0]",
    "max": "hidden.amax(1)",
    "lasttoken": "hidden[:, -1]",
    "mean_sqrt_len_tokens": "hidden.sum(1) / hidden.shape[1] ** 0.5",
}
STAGES = {
    "normalize": "feature = torch.nn.functional.normalize(feature, dim=1)",
    "standardize": 'feature = (feature - head["mean"]) / head["deviation"]',
}


def peft_card(
    header: StateHeader,
    files: Sequence[str],
    start: Sequence[int],
    ends: Sequence[int],
    name: str,
    told: Mapping[str, Any] | None = None,
) -> str:
    """Card of a state as a PEFT adapter, with a snippet that runs.

    Args:
        files: that lie beside the card.
        told: what `head.json` says, of a classifier on features.
        start: ids before a query, where `prompt_ids.json` does not say them.
        ends: ids, each of which ends an answer.
    """
    from huggingface_hub import ModelCardData

    words = "input_label" in header.config
    data = ModelCardData(
        base_model=base_model(header.backbone), library_name="peft", tags=["peft", "iai_hf", header.method]
    )
    known = {
        "head.json": "class of the model to load it on, pooling, and the labels in the order of the logits",
        "head.safetensors": "logits = features @ weight.T + bias, on pooled features of unit length",
        "prompt.txt": "text that belongs before every query",
        "prompt_ids.json": "its token ids with start-of-text; a tokenizer may split the joined text otherwise",
    }
    beside = [f"* `{file}`: {what}" for file, what in known.items() if file in files]
    asked = [header.config["input_label"], " a text to answer", f"\n{header.config['output_label']}"] if words else []
    use = None
    if words:
        use = ANSWER.format(
            base=public(header.backbone),
            place=name,
            before='json.loads((folder / "prompt_ids.json").read_text())'
            if "prompt_ids.json" in files
            else list(start),
            parts=tuple(asked),
            cut=f"[:{header.config['max_tokens']}]" if header.config.get("max_tokens") else "",
            ends=[[number] for number in ends],
            longest=header.config.get("max_new_tokens"),
        )
    elif told is not None:
        use = _classification(told["features"], public(header.backbone), name)
    return "\n\n".join(
        [
            f"---\n{data.to_yaml()}\n---",
            f"# {name}",
            f"A task state of `{header.method}` on `{public(header.backbone)}`, of {header.examples:,} examples, as a "
            "PEFT adapter: `PeftModel.from_pretrained(model, folder)` loads it, without iai_hf.",
            *(["\n".join(beside)] if beside else []),
            *([use] if use else []),
            "## Limits and risks",
            LIMITS,
            f"Written by iai_hf {__version__}.\n",
        ]
    )


def _classification(reads: Mapping[str, Any], base: str, name: str) -> str | None:
    """Lines that answer as `reads` says features are read; None where they would need more than lies in the folder."""
    if not set(reads["pooling"]) <= set(POOLED) or not set(reads["then"]) <= set(STAGES):
        return None
    middle, cut = reads["hidden_state"] == "middle", reads["max_tokens"]
    # A language model's question and its text are tokens each by itself, an encoder's are read as one.
    prompt, text = reads["prompt"], "text"
    if reads["lowercase"]:
        prompt, text = prompt.lower(), "text.lower()"
    read = [f"read = prompt + tokens({text})" if middle else f"read = tokens({prompt!r} + {text})"]
    if cut is not None:
        # Behind a prompt a text may begin with another token than alone.
        read += [
            "shared = next((i for i, both in enumerate(zip(prompt, read)) if both[0] != both[1]), len(prompt))",
            f"read = read[: shared + {cut}]",
        ]
    of_all = "model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states"
    hidden = (
        [f"states = {of_all}", "hidden = states[len(states) // 2]"]
        if middle
        else ["hidden = model(input_ids=torch.tensor([ids])).last_hidden_state"]
    )
    counts = reads["prompt_counts"] or not prompt
    lines = [] if counts else [f"hidden = hidden[:, {len(reads['before'])} + len(prompt) :]"]
    # A language model's mean is over all tokens, of which the question's count as zeros.
    pooled = ["hidden.sum(1) / len(ids)"] if middle else [POOLED[mode] for mode in reads["pooling"]]
    lines.append(f"feature = {pooled[0] if len(pooled) == 1 else f'torch.cat([{chr(44).join(pooled)}], 1)'}")
    lines += [STAGES[stage] for stage in reads["then"][:-1]]  # the last one scales to unit length
    return CLASSIFY.format(
        model=reads["model"],
        base=base,
        place=name,
        prompt=prompt,
        start=reads["before"],
        read="\n".join(read),
        end=reads["behind"],
        hidden="\n    ".join(hidden),
        lines="\n".join(lines),
    )
