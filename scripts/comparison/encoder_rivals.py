"""Rivals that change the encoder: SetFit, full fine-tuning and LoRA, each as its authors recommend.

All read the same encoder, from the same folder, as its mean-pooled hidden states. What each comes to answers queries
with log-probabilities, `[queries, classes]`.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from comparison.baselines import FLOOR, logistic_regression
from comparison.tasks import MAX_TOKENS, Rows, Task
from iai_hf.backbones import Backbone
from iai_hf.errors import DataError

BATCH, MOST_EPOCHS, PATIENCE = 16, 20, 4
Answer = Callable[[Sequence[str]], torch.Tensor]
HELD_OUT = 0.2  # of the training examples: the number of epochs is chosen on them
FINE_TUNING_RATE, LORA_RATE, LORA_RANK = 5e-5, 5e-4, 16
SETFIT_ROUNDS = 20  # pairs of either kind that each example begins


def setfit(task: Task, rows: Rows, seed: int) -> Answer:
    """SetFit (Tunstall et al. 2022, arXiv 2209.11055) by its own library: contrastive pairs, logistic regression."""
    try:
        from datasets import Dataset
        from setfit import SetFitModel, Trainer, TrainingArguments
    except ImportError as error:
        raise DataError(
            f"this row needs the package setfit ({error}): pip install setfit, or leave the row out"
        ) from error

    with TemporaryDirectory() as folder:
        model = SetFitModel.from_pretrained(str(as_sentence_transformer(task.backbone, Path(folder) / "encoder")))
        model.model_body.max_seq_length = MAX_TOKENS
        data = Dataset.from_dict(
            {"text": [row["input"] for row in rows], "label": [task.numbers[row["output"]] for row in rows]}
        )
        settings = TrainingArguments(
            output_dir=folder,
            batch_size=BATCH,
            num_epochs=1,
            num_iterations=SETFIT_ROUNDS,
            body_learning_rate=2e-5,
            seed=seed,
            report_to="none",
            save_strategy="no",
            use_amp=False,
        )
        Trainer(model=model, args=settings, train_dataset=data).train()

    def answer(queries: Sequence[str]) -> torch.Tensor:
        found = torch.full((len(queries), len(task.labels)), FLOOR)
        scores = torch.as_tensor(model.predict_proba(list(queries), show_progress_bar=False)).float().cpu()
        found[:, torch.as_tensor(model.model_head.classes_)] = scores.clamp(min=1e-6).log()
        return found

    return answer


def as_sentence_transformer(backbone: Backbone, folder: Path) -> Path:
    """The encoder as a folder of sentence-transformers: itself, mean pooling, unit length."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, Pooling, Transformer

    copy.deepcopy(backbone.model).float().save_pretrained(folder / "model")
    backbone.tokenizer.save_pretrained(folder / "model")
    transformer = Transformer(str(folder / "model"))
    pooling = Pooling(transformer.get_embedding_dimension(), "mean")
    SentenceTransformer(modules=[transformer, pooling, Normalize()], device="cpu").save(str(folder))
    return folder


class Classifier(nn.Module):
    """Mean-pooled hidden states of unit length under a linear head, which begins at logistic regression on them."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.model = copy.deepcopy(backbone.model).float().requires_grad_(True)
        self.tokenizer = backbone.tokenizer
        self.head: nn.Linear = nn.Linear(1, 1)

    def features(self, texts: Sequence[str]) -> torch.Tensor:
        """`[texts, hidden]`."""
        batch = self.tokenizer(list(texts), padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        batch = batch.to(self.model.device)
        hidden = self.model(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None].to(hidden)
        return nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)

    def begin(self, texts: Sequence[str], targets: torch.Tensor, classes: int) -> None:
        """Let the head be logistic regression on the features as they are."""
        x = self.predicted(texts, self.features)
        names = torch.zeros(classes, x.shape[1])
        answer = logistic_regression(x, targets, names)
        with torch.no_grad():  # a linear map is known from its values at zero and the unit vectors
            bias = answer(torch.zeros(1, x.shape[1]))[0]
            weight = (answer(torch.eye(x.shape[1])) - bias).T
            weight, bias = weight - weight.mean(0), bias - bias.mean()
        self.head = nn.Linear(x.shape[1], classes)
        self.head.weight.data, self.head.bias.data = weight.contiguous(), bias.contiguous()
        self.head.to(self.model.device)

    def forward(self, texts: Sequence[str]) -> torch.Tensor:
        """Logits `[texts, classes]`."""
        return self.head(self.features(texts))

    def predicted(self, texts: Sequence[str], what: Callable[[Sequence[str]], torch.Tensor]) -> torch.Tensor:
        """`what` of many texts, without gradient, in their order, on the CPU."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        with torch.no_grad():
            parts = [what([texts[i] for i in order[at : at + 64]]).cpu() for at in range(0, len(order), 64)]
        return torch.cat(parts)[torch.tensor(order).argsort()]


def fine_tuning(task: Task, rows: Rows, seed: int) -> Answer:
    """All weights trained by AdamW; the number of epochs is chosen on a fifth of the examples, then all are used."""
    return _trained(task, rows, seed, lambda model: None, FINE_TUNING_RATE)


def lora(task: Task, rows: Rows, seed: int) -> Answer:
    """The same with low-rank weights beside all linear layers alone, by PEFT (arXiv 2106.09685)."""
    from peft import LoraConfig, get_peft_model

    def low_rank(model: Classifier) -> None:
        settings = LoraConfig(r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules="all-linear")
        model.model = get_peft_model(model.model, settings)

    return _trained(task, rows, seed, low_rank, LORA_RATE)


def _trained(task: Task, rows: Rows, seed: int, prepare: Callable[[Classifier], None], rate: float) -> Answer:
    texts = [row["input"] for row in rows]
    targets = torch.tensor([task.numbers[row["output"]] for row in rows])
    order = random.Random(seed).sample(range(len(rows)), len(rows))
    held_out, kept = order[: round(HELD_OUT * len(rows))], order[round(HELD_OUT * len(rows)) :]
    best, chosen = -1.0, 1
    model = _begun(task, texts, targets, kept, seed, prepare)
    for epoch, _ in enumerate(_epochs(model, texts, targets, kept, seed, rate, MOST_EPOCHS), start=1):
        logits = model.predicted([texts[i] for i in held_out], model)
        accuracy = float((logits.argmax(1) == targets[held_out]).float().mean())
        if accuracy > best:
            best, chosen = accuracy, epoch
        elif epoch >= chosen + PATIENCE:
            break
    model = _begun(task, texts, targets, order, seed, prepare)
    for _ in _epochs(model, texts, targets, order, seed, rate, chosen):
        pass
    return lambda queries: model.predicted(queries, model).log_softmax(1)


def _begun(
    task: Task,
    texts: Sequence[str],
    targets: torch.Tensor,
    places: Sequence[int],
    seed: int,
    prepare: Callable[[Classifier], None],
) -> Classifier:
    torch.manual_seed(seed)
    model = Classifier(task.backbone)
    model.begin([texts[i] for i in places], targets[places], len(task.labels))
    prepare(model)
    return model


def _epochs(
    model: Classifier,
    texts: Sequence[str],
    targets: torch.Tensor,
    places: Sequence[int],
    seed: int,
    rate: float,
    epochs: int,
) -> Iterator[None]:
    """Train for some epochs; after each, control comes back."""
    from transformers import get_linear_schedule_with_warmup

    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.01)
    steps = epochs * -(-len(places) // BATCH)
    schedule = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
    chance = random.Random(seed)
    for _ in range(epochs):
        order = chance.sample(list(places), len(places))
        for at in range(0, len(order), BATCH):
            batch = order[at : at + BATCH]
            logits = model([texts[i] for i in batch])
            loss = nn.functional.cross_entropy(logits, targets[batch].to(logits.device))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
        yield


RIVALS: dict[str, Callable[[Task, Rows, int], Answer]] = {
    "SetFit": setfit,
    "fine-tuning": fine_tuning,
    "LoRA": lora,
}
