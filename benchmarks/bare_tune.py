"""What a search is timed against: a `Tuner` as Ray's documentation writes one.

A function that trains a plain PyTorch network and reports each epoch, its data put into Ray's
object store once by `with_parameters`, samples of `tune.loguniform`, a core for each trial. No
setting of Ray is changed. It neither stores a model nor measures more than the validation loss.

Usage: `python benchmarks/bare_tune.py drug200.csv TRIALS EPOCHS FOLDER`
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from ray import tune
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

__all__ = ["Rows", "read_rows", "search", "train_function"]

CLASSES = 5
Rows = Mapping[str, np.ndarray]


def read_rows(csv: Path) -> Rows:
    """Split the table as the other searches have it: 70 % to train on, 10 % to validate."""
    table = pd.read_csv(csv).sample(frac=1.0, random_state=42)
    for column in ("Sex", "BP", "Cholesterol", "Drug"):
        table[column] = table[column].astype("category").cat.codes
    features = table.drop(columns="Drug").to_numpy(dtype="float32")
    num_train, num_valid = int(0.7 * len(table)), int(0.1 * len(table))
    features -= features[:num_train].mean(axis=0)
    features /= features[:num_train].std(axis=0)
    target = table["Drug"].to_numpy(dtype="int64")
    valid = slice(num_train, num_train + num_valid)
    return {
        "train_features": features[:num_train],
        "train_target": target[:num_train],
        "valid_features": features[valid],
        "valid_target": target[valid],
    }


def train_function(config: dict[str, Any], rows: Rows, epochs: int) -> None:
    """Train one trial."""
    torch.manual_seed(42)
    model = nn.Sequential(
        nn.Linear(rows["train_features"].shape[1], 128),
        nn.ReLU(),
        nn.Dropout(config["dropout"]),
        nn.Linear(128, 64),
        nn.ReLU(),
        nn.Dropout(config["dropout"]),
        nn.Linear(64, CLASSES),
    )
    dataset = TensorDataset(
        torch.tensor(rows["train_features"]), torch.tensor(rows["train_target"])
    )
    loader = DataLoader(dataset, batch_size=32, shuffle=True)
    valid_features = torch.tensor(rows["valid_features"])
    valid_target = torch.tensor(rows["valid_target"])
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(
        model.parameters(), lr=config["lr"], weight_decay=config["weight_decay"]
    )
    for _ in range(epochs):
        model.train()
        for features_BF, target_B in loader:
            optimizer.zero_grad()
            loss = criterion(model(features_BF), target_B)
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            valid_loss = criterion(model(valid_features), valid_target).item()
        tune.report({"loss": valid_loss})


def search(rows: Rows, trials: int, epochs: int, folder: Path) -> float:
    """Search, and give the best loss; Ray is started where it is not."""
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(train_function, rows=rows, epochs=epochs), {"cpu": 1}
        ),
        param_space={
            "lr": tune.loguniform(1e-4, 1e-1),
            "weight_decay": tune.loguniform(1e-6, 1e-2),
            "dropout": tune.uniform(0.0, 0.5),
        },
        tune_config=tune.TuneConfig(metric="loss", mode="min", num_samples=trials),
        run_config=tune.RunConfig(name=f"bare-{time.time_ns()}", storage_path=str(folder)),
    )
    best = tuner.fit().get_best_result()
    print(f"best: {best.config}")
    return float((best.metrics or {})["loss"])


def main() -> None:
    """Read the table and search."""
    csv, trials, epochs = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    print(search(read_rows(csv), trials, epochs, Path(sys.argv[4]).resolve()))


if __name__ == "__main__":
    main()
