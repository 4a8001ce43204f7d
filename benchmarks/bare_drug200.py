"""What `batchtrain run` is timed against: the drug200 notebook as one script, no more.

Usage: `python benchmarks/bare_drug200.py drug200.csv OUTPUT_FOLDER`
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
import torch
from safetensors.torch import save_file
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import LabelEncoder, StandardScaler
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

csv, folder = Path(sys.argv[1]), Path(sys.argv[2])
folder.mkdir(parents=True, exist_ok=True)
torch.manual_seed(42)

table = pd.read_csv(csv).dropna()
for column in ("Sex", "BP", "Cholesterol"):
    table[column] = LabelEncoder().fit_transform(table[column])
target_encoder = LabelEncoder()
y = target_encoder.fit_transform(table["Drug"])
x = table.drop(columns="Drug").to_numpy(dtype="float32")
x_rest, x_test, y_rest, y_test = train_test_split(x, y, test_size=0.2, random_state=42, stratify=y)
x_train, x_valid, y_train, y_valid = train_test_split(
    x_rest, y_rest, test_size=0.125, random_state=42
)
scaler = StandardScaler().fit(x_train)


def loader(features: Any, target: Any, *, shuffle: bool) -> DataLoader[Any]:
    """Batches of 32 scaled rows."""
    features = torch.tensor(scaler.transform(features), dtype=torch.float32)
    dataset = TensorDataset(features, torch.tensor(target, dtype=torch.long))
    return DataLoader(dataset, batch_size=32, shuffle=shuffle)


train_loader = loader(x_train, y_train, shuffle=True)
valid_loader = loader(x_valid, y_valid, shuffle=False)
test_loader = loader(x_test, y_test, shuffle=False)

model = nn.Sequential(
    nn.Linear(x.shape[1], 128),
    nn.ReLU(),
    nn.Dropout(0.3),
    nn.Linear(128, 64),
    nn.ReLU(),
    nn.Dropout(0.3),
    nn.Linear(64, len(target_encoder.classes_)),
)
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=5)

history: dict[str, list[float]] = {"train": [], "valid": []}
for epoch in range(100):
    model.train()
    loss_sum = 0.0
    for features, target in train_loader:
        optimizer.zero_grad()
        loss = criterion(model(features), target)
        loss.backward()
        optimizer.step()
        loss_sum += loss.item() * len(target)
    history["train"].append(loss_sum / len(x_train))
    model.eval()
    loss_sum = 0.0
    with torch.no_grad():
        for features, target in valid_loader:
            loss_sum += criterion(model(features), target).item() * len(target)
    history["valid"].append(loss_sum / len(x_valid))
    scheduler.step(history["valid"][-1])
    print(f"Epoch [{epoch + 1}/100], Loss: {history['train'][-1]:.4f}")

model.eval()
predicted = []
with torch.no_grad():
    for features, _ in test_loader:
        predicted += model(features).argmax(dim=1).tolist()

print(
    f"Accuracy: {accuracy_score(y_test, predicted):.4f}, "
    f"F1: {f1_score(y_test, predicted, average='macro'):.4f}"
)

plt.figure()
plt.plot(history["train"], label="train")
plt.plot(history["valid"], label="valid")
plt.xlabel("Epoch")
plt.ylabel("Loss")
plt.legend()
plt.savefig(folder / "loss.png")

counts = confusion_matrix(y_test, predicted)
plt.figure()
plt.imshow(counts, cmap="Blues")
for truth in range(len(counts)):
    for guess in range(len(counts)):
        plt.text(guess, truth, counts[truth, guess], ha="center", va="center")
plt.xlabel("Predicted")
plt.ylabel("True")
plt.savefig(folder / "confusion.png")

save_file(model.state_dict(), folder / "model.safetensors")
