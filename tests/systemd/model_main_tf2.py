"""A trainer for the machine: the flags of model_main_tf2, checkpoints without TensorFlow.

As the real one it trains on from its last checkpoint, and handles no signal.
"""

import argparse
import itertools
import time
from pathlib import Path

from fake_trainer import Manager, model_tensors

parser = argparse.ArgumentParser()
parser.add_argument("--model_dir", type=Path, required=True)
parser.add_argument("--pipeline_config_path", required=True)
parser.add_argument("--checkpoint_every_n", type=int, default=100)
parser.add_argument("--saves", type=int)
parser.add_argument("--seconds", type=float, default=0.5)
arguments = parser.parse_args()

manager = Manager(arguments.model_dir)
for number in itertools.count(manager.save_counter + 1):
    if arguments.saves is not None and number > arguments.saves:
        break
    time.sleep(arguments.seconds)
    manager.save(arguments.checkpoint_every_n * number, model_tensors(100_000, number))
    print(f"saved ckpt-{number}", flush=True)
