"""Meta-train the head of an amortizer on frozen features, with accelerate.

    python scripts/prepare_data.py --output demo/data
    accelerate launch scripts/train_amortizer.py --config scripts/configs/minilm-l6-iterative.json \
        --data_dir TASKS --output_dir runs/minilm-l6-iterative

TASKS is what `{data}` in the configuration stands for: a folder of tasks, each a folder with train.jsonl of
{"input", "output"}. Features are computed once and kept in --cache_dir. One process, several, or a GPU run the same
command; a run that was cut off goes on with --resume_from_checkpoint. The output folder is then an amortizer:
`iai adapt runs/minilm-l6-iterative --data ...`. The heads compute in float32 whatever --mixed_precision says, as their
closed forms need it; the backbone's features are computed in bfloat16 where the processor has it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
from pathlib import Path

from accelerate import Accelerator

from iai_hf import AutoAmortizer, load_backbone
from iai_hf.amortizers.frozen_features import FrozenFeatures
from iai_hf.auto import amortizer_class
from iai_hf.backbones.cached import CachedBackbone
from iai_hf.errors import ConfigError, IAIError
from iai_hf.state import check_writable, write_whole
from iai_hf.training import train
from iai_hf.training.config import read_training_config
from iai_hf.training.tasks import load_tasks, task_files


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--data_dir", type=Path, default=Path("."))
    parser.add_argument("--cache_dir", type=Path, default=Path("runs/features"))
    parser.add_argument("--max_train_steps", type=int, help="instead of the configuration's")
    parser.add_argument("--seed", type=int, help="instead of the configuration's")
    parser.add_argument("--resume_from_checkpoint", action="store_true")
    parser.add_argument("--with_tracking", action="store_true", help="TensorBoard logs in OUTPUT_DIR/logs")
    parser.add_argument("--mixed_precision", choices=("no", "bf16", "fp16"), default="no")
    parser.add_argument("--quiet", action="store_true")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("iai_hf").setLevel(logging.WARNING if args.quiet else logging.INFO)
    config = read_training_config(args.config)
    changed = {"train_steps": args.max_train_steps, "seed": args.seed}
    config = dataclasses.replace(config, **{key: value for key, value in changed.items() if value is not None})
    accelerator = Accelerator(
        log_with="tensorboard" if args.with_tracking else None,
        project_dir=args.output_dir,
        mixed_precision=args.mixed_precision,
    )
    if not accelerator.is_main_process:
        logging.getLogger("iai_hf").setLevel(logging.WARNING)
    if not issubclass(amortizer_class(config.method), FrozenFeatures):
        raise ConfigError(f"method {config.method!r} has no head to train; expected iterative or one of its regimes")
    check_writable(args.output_dir)
    files = task_files(config.tasks, args.data_dir)
    backbone = CachedBackbone(load_backbone(config.backbone), args.cache_dir)
    amortizer = AutoAmortizer.from_pretrained(
        config.method, backbone=backbone, config={**config.settings, "weights": None}
    )
    assert isinstance(amortizer, FrozenFeatures)
    with accelerator.main_process_first():
        tasks = load_tasks(files, amortizer, config.max_task_examples)
    if args.with_tracking:
        accelerator.init_trackers("iai_hf")
    progress = train(
        amortizer,
        tasks,
        config,
        accelerator,
        args.output_dir,
        resume=args.resume_from_checkpoint,
        progress_bar=not args.quiet,
    )
    if accelerator.is_main_process:
        amortizer.save_pretrained(args.output_dir)
        record = {"config": dataclasses.asdict(config), **dataclasses.asdict(progress)}
        write_whole(args.output_dir / "training.json", json.dumps(record, indent=2).encode())
        print(f"{args.output_dir}: weights of step {progress.best_step}, validation loss {progress.best:.4f}")
    accelerator.end_training()


if __name__ == "__main__":
    try:
        main()
    except IAIError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
