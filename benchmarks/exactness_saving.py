"""What a checkpoint costs the loop, and how much later the first step of a resume comes.

The files go to a folder of the system's temporary directory, with every flush to disk that a run
asks for.
"""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import yaml
from pyarrow import parquet as pq
import pyarrow as pa

from batchtrain.artifacts import RunLayout
from batchtrain.artifacts.ownership import Ownership, claim_run
from batchtrain.artifacts.prepared import PreparedData
from batchtrain.errors import InterruptedRunError
from batchtrain.points import listen
from batchtrain.preparation.stage import prepare
from batchtrain.progress import Progress
from batchtrain.spec.load import LoadedSpec, load_spec
from batchtrain.spec.run import ResourcesSpec
from batchtrain.spec.training import CheckpointSpec
from batchtrain.storage import FolderStorage
from batchtrain.training.keeping import StateKeeper
from batchtrain.training.lineage import published_checkpoints
from batchtrain.training.loop import StepLosses
from batchtrain.training.machine import choose_machine
from batchtrain.training.ranks import OneRank
from batchtrain.training.saving import CheckpointWriter
from batchtrain.training.stage import train
from batchtrain.training.state import Snapshot, TrainState
from benchmarks.exactness_loops import LARGE, SMALL, Effort, Network, OurTraining, Part, made_plan
from benchmarks.paired import Spread, Taken, compare, run_in_turns, show, timed
from benchmarks.training_loops import NUM_FEATURES, made_rows

__all__ = ["measure_checkpoints", "measure_resume"]

NONE, FRESH, RESUMED = "no checkpoint", "fresh start", "resume"
NEVER = CheckpointSpec(every_steps=None, every_seconds=1e9)
EVERY_SECONDS = 10.0
GOAL_OF_10_S = "3 %"
SAVES = 9
