"""Meta-train what an amortizer has to learn, with accelerate: a head on frozen features, a start inside the LM, or
a network on numbers; or, with "learns": "adapter", low-rank weights of an encoder for better features.

    python scripts/prepare_data.py --output demo/data
    accelerate launch scripts/train_amortizer.py --config scripts/configs/minilm-l6-iterative.json \
        --data_dir TASKS --output_dir runs/minilm-l6-iterative

TASKS is what `{data}` in the configuration stands for: a folder of tasks, each a folder with train.jsonl of
{"input", "output"}. Features, where the method has them, are computed once and kept in --cache_dir. One process, a
GPU, or several run the same command; on CPUs accelerate starts one process only, and `torchrun --nproc-per-node N` in
its place starts several. A run that was cut off goes on with --resume_from_checkpoint. The output folder is then an
amortizer: `iai adapt runs/minilm-l6-iterative --data ...`. The heads compute in float32 whatever --mixed_precision
says, as their closed forms need it; the backbone computes in bfloat16 where the processor has it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator

from comparison import lab
from iai_hf import AutoAmortizer, hub, shipped
from iai_hf.amortizer import Amortizer
from iai_hf.auto import amortizer_class
from iai_hf.card import amortizer_card
from iai_hf.errors import ConfigError
from iai_hf.files import check_writable, write_whole
from iai_hf.learned import Learned
from iai_hf.terminated import ending, terminable
from iai_hf.training import train
from iai_hf.training.checkpoint import CHECKPOINT_FILE, read_progress
from iai_hf.training.config import TrainingConfig, read_training_config
from iai_hf.training.curriculum import Curriculum, Sources
from paper.tasks import family


def arguments() -> argparse.Namespace:
    parser = lab.parser(__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--data_dir", type=Path, default=Path("."))
    parser.add_argument("--cache_dir", type=Path, default=Path("runs/features"))
    parser.add_argument("--max_train_steps", type=int, help="instead of the configuration's")
    parser.add_argument("--max_train_seconds", type=float, help="end behind so many; the learning rate goes by them")
    parser.add_argument("--seed", type=int, help="instead of the configuration's")
    parser.add_argument("--resume_from_checkpoint", action="store_true")
    parser.add_argument("--with_tracking", action="store_true", help="TensorBoard logs in OUTPUT_DIR/logs")
    parser.add_argument("--mixed_precision", choices=("no", "bf16", "fp16"), default="no")
    parser.add_argument("--push_to_hub", action="store_true", help="upload OUTPUT_DIR's amortizer when it is trained")
    parser.add_argument("--hub_model_id", help="repository for --push_to_hub, user/name")
    parser.add_argument("--quiet", action="store_true")
    args = parser.parse_args()
    if args.push_to_hub and not args.hub_model_id:
        parser.error("--push_to_hub wants --hub_model_id")
    return args


def prepare(config: TrainingConfig, sources: Sources) -> tuple[Learned, Curriculum]:
    """The untrained amortizer, and what it is to learn from."""
    kind = amortizer_class(config.method)
    if not issubclass(kind, Learned):
        raise ConfigError(f"method {config.method!r} has nothing to learn; expected e.g. iterative or lm-state")
    return kind.curriculum(config, sources)


def _written(folder: Path) -> int | None:
    """When the checkpoint in a folder was written, None where there is none."""
    path = folder / CHECKPOINT_FILE
    return path.stat().st_mtime_ns if path.is_file() else None


def main() -> None:
    args = arguments()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("iai_hf").setLevel(logging.WARNING if args.quiet else logging.INFO)
    config = read_training_config(args.config)
    changed = {"train_steps": args.max_train_steps, "seed": args.seed}
    config = dataclasses.replace(config, **{key: value for key, value in changed.items() if value is not None})
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),  # several processes meet over gloo
        log_with="tensorboard" if args.with_tracking else None,
        project_dir=args.output_dir,
        mixed_precision=args.mixed_precision,
    )
    if not accelerator.is_main_process:
        logging.getLogger("iai_hf").setLevel(logging.WARNING)
    check_writable(args.output_dir)
    Amortizer.check_folder(args.output_dir)
    with accelerator.main_process_first():
        families = partial(family, cache=args.cache_dir)
        amortizer, curriculum = prepare(config, Sources(args.data_dir, args.cache_dir, accelerator.device, families))
    if args.with_tracking:
        accelerator.init_trackers("iai_hf")
    standing = _written(args.output_dir) if not args.resume_from_checkpoint else None
    try:
        with terminable():
            progress = train(
                amortizer,
                curriculum,
                config,
                accelerator,
                args.output_dir,
                resume=args.resume_from_checkpoint,
                progress_bar=not args.quiet,
                seconds=args.max_train_seconds,
            )
    except KeyboardInterrupt as error:
        word, status = ending(error)
        if accelerator.is_main_process:
            kept = _written(args.output_dir) != standing  # else what stands there is of a run before
            told = (
                f"the checkpoint of step {read_progress(args.output_dir).step}, --resume_from_checkpoint goes on there"
            )
            print(f"{word}; {args.output_dir} holds {told if kept else 'no checkpoint of this run'}", file=sys.stderr)
        raise SystemExit(status) from None
    if accelerator.is_main_process:
        curriculum.save(amortizer, args.output_dir)
        record = {
            "config": dataclasses.asdict(config),
            "processes": accelerator.num_processes,
            **dataclasses.asdict(progress),
        }
        write_whole(args.output_dir / "training.json", json.dumps(record, indent=2).encode())
        if args.push_to_hub:
            described = {**AutoAmortizer.describe(args.output_dir), "backbone": config.backbone}
            card = amortizer_card(described, args.hub_model_id)
            contents = shipped.published({path.name: path.read_bytes() for path in args.output_dir.glob("*.json")})
            print(hub.push(args.output_dir, args.hub_model_id, only=hub.AMORTIZER_FILES, contents=contents, card=card))
        print(f"{args.output_dir}: weights of step {progress.best_step}, validation loss {progress.best:.4f}")
    accelerator.end_training()


if __name__ == "__main__":
    lab.run(main)
