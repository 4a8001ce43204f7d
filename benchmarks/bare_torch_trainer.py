"""What a run on Ray is timed against: a `TorchTrainer` as Ray's documentation writes one.

A function for each worker, `prepare_model`, `prepare_data_loader`, and a report an epoch. Nothing
is saved or measured, and no setting of Ray is changed.

Usage: `python benchmarks/bare_torch_trainer.py drug200.csv WORKERS EPOCHS FOLDER`; the times at
which it came to what are written to FOLDER.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import ray
import ray.train
import torch
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, prepare_data_loader, prepare_model
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

MAX_ROWS = 141  # as many as the other run trains on


def train_func(config: dict[str, Any]) -> None:
    """Train one worker's part."""
    marks = {"joined": time.time()}
    torch.manual_seed(42)
    size = ray.train.get_context().get_world_size()
    features, target = torch.tensor(config["features"]), torch.tensor(config["target"])
    model = prepare_model(
        nn.Sequential(
            nn.Linear(features.shape[1], 128),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(128, 64),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(64, 5),
        )
    )
    dataset = TensorDataset(features, target)
    loader = prepare_data_loader(DataLoader(dataset, batch_size=32 // size, shuffle=True))
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    for epoch in range(config["epochs"]):
        if size > 1:
            loader.sampler.set_epoch(epoch)
        for features_BF, target_B in loader:
            loss = criterion(model(features_BF), target_B)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            marks.setdefault("first", time.time())
        marks["last"] = time.time()
        ray.train.report({"loss": loss.item(), "epoch": epoch})
    path = Path(config["folder"]) / f"rank-{ray.train.get_context().get_world_rank()}.json"
    path.write_text(json.dumps(marks), encoding="utf-8")


def main() -> None:
    """Read the table, start Ray, train."""
    csv, folder = Path(sys.argv[1]).resolve(), Path(sys.argv[4]).resolve()
    workers, epochs = int(sys.argv[2]), int(sys.argv[3])
    marks = {"prepare": time.time()}
    table = pd.read_csv(csv).head(MAX_ROWS)
    for column in ("Sex", "BP", "Cholesterol", "Drug"):
        table[column] = table[column].astype("category").cat.codes
    features = table.drop(columns="Drug").to_numpy(dtype="float32")
    features = (features - features.mean(axis=0)) / features.std(axis=0)
    marks["prepared"] = marks["ray asked"] = time.time()
    ray.init(log_to_driver=False)
    marks["ray started"] = marks["launch"] = time.time()
    trainer = TorchTrainer(
        train_func,
        train_loop_config={
            "features": features,
            "target": table["Drug"].to_numpy(dtype="int64"),
            "epochs": epochs,
            "folder": str(folder),
        },
        scaling_config=ScalingConfig(num_workers=workers),
        run_config=RunConfig(storage_path=str(folder / "ray")),
    )
    trainer.fit()
    marks["launched"] = marks["closing"] = time.time()
    (folder / "driver.json").write_text(json.dumps(marks), encoding="utf-8")


if __name__ == "__main__":
    main()
