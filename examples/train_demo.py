"""Train a small dense or MoE GPT for a minute on whatever accelerator is there, measured by effprof.

python examples/train_demo.py --model moe --seconds 60 --run-dir runs/demo-moe
effprof analyze runs/demo-moe
"""

from __future__ import annotations

import argparse
import warnings
from dataclasses import replace

import pytorch_lightning as pl
import torch
from gpt import GPTConfig, LitGPT, Windows, read_standard_library
from torch.utils.data import DataLoader

from effprof.callbacks import EfficiencyCallback

# Sized so that two CPU cores do several steps a second, and so that a data-centre GPU has something to do.
ON_CPU = GPTConfig(width=128, layers=4, heads=4, context=256)
ON_GPU = GPTConfig(width=1024, layers=12, heads=16, context=1024)
EXPERTS = {"dense": 0, "moe": 8}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=EXPERTS, default="dense")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to train (default %(default)s)")
    parser.add_argument("--steps", type=int, default=-1, help="stop after so many steps if that is sooner")
    parser.add_argument("--run-dir", help="where effprof records (default: effprof_runs/<id>)")
    parser.add_argument("--batch", type=int, help="windows per step (default: 8 on CPU, 16 on GPU)")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    has_gpu = torch.cuda.is_available()
    config = replace(ON_GPU if has_gpu else ON_CPU, experts=EXPERTS[arguments.model])
    batch = arguments.batch or (16 if has_gpu else 8)

    pl.seed_everything(1)
    text = read_standard_library()
    held_out = len(text) // 10
    train = DataLoader(Windows(text[:-held_out], config.context, seed=1), batch_size=batch)
    validation = DataLoader(Windows(text[-held_out:], config.context, seed=2, count=8 * batch), batch_size=batch)

    model = LitGPT(config)
    total, active = model.model.count_parameters()
    print(f"{arguments.model} GPT: {total:,} parameters, {active:,} active per token", flush=True)

    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    trainer = pl.Trainer(
        max_time={"seconds": arguments.seconds},
        max_steps=arguments.steps,
        devices=1,
        precision="bf16-mixed" if has_gpu else "32-true",
        callbacks=[EfficiencyCallback(run_dir=arguments.run_dir)],
        val_check_interval=100,
        num_sanity_val_steps=0,
        log_every_n_steps=10,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(model, train, validation)
    figures = {name: f"{float(value):.3f}" for name, value in trainer.callback_metrics.items()}
    print("at the end:", ", ".join(f"{name} {value}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
