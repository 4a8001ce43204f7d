"""What `batchtrain plan --profile` shows besides: where a spec would run, how long, at what cost.

Nothing is asked of the cluster, and nothing is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from batchtrain.cli.plan import planned
from batchtrain.reporting.wording import duration
from batchtrain.spec.load import LoadedSpec, with_replaced
from batchtrain.spec.run import ResourcesSpec
from batchtrain.storage import FolderStorage, Storage, is_address, open_storage
from batchtrain.submission.fitting import amount_of, held_by_job, trains_in_job
from batchtrain.submission.preflight import check_request
from batchtrain.submission.profile import Profile
from batchtrain.submission.profiles import with_profile

__all__ = ["elsewhere_lines", "planned_elsewhere"]

ONE_WORKER = "an estimate for a machine such as this one, of training alone"
SEVERAL = (
    "an estimate for machines such as this one, of training alone, if {workers} workers share each "
    "batch without loss; with few rows for each they take longer than one"
)
UNSEEN = "what is published at {storage} was not looked at; it is reused there"


def planned_elsewhere(
    loaded: LoadedSpec, profile: Profile, allow_code: Sequence[str], environ: Mapping[str, str]
) -> dict[str, Any]:
    """What would run where a profile says, as `--json` prints it: a plan, with `elsewhere`.

    Args:
        loaded: The spec.
        profile: Where it would run.
        allow_code: Packages whose code may run.
        environ: The environment of whoever submits.
    """
    loaded = with_profile(loaded, profile)
    storage, is_seen = _storage_here(loaded, profile)
    asked = loaded.spec.resources
    wants_gpus = asked.gpus_per_worker == 1 and asked.device == "auto"
    there = {"resources.device": "cuda"} if wants_gpus else {}
    like_there = with_replaced(loaded, there, f"profile {profile.name}") if there else loaded
    document = planned(like_there, allow_code, storage=storage)
    document["workers"] = _workers(loaded, document["workers"])
    if not is_seen:
        document["notes"].append(UNSEEN.format(storage=loaded.spec.storage))
    findings = check_request(loaded, profile, environ=environ)
    time = _time(document, asked)
    entry = held_by_job(profile, "tune" if loaded.spec.search else "run", loaded.spec)
    document["elsewhere"] = {
        "profile": profile.name,
        "backend": profile.backend,
        "address": profile.address,
        "image": profile.image,
        "storage": loaded.spec.storage,
        "asks": {
            "entrypoint": asdict(entry),
            "workers": "in the job" if trains_in_job(loaded.spec) else asked.workers,
            "cpus_per_worker": asked.cpus_per_worker,
            "gpus_per_worker": asked.gpus_per_worker,
        },
        "time": time,
        "cost": _cost(time, profile.rate_per_hour),
        "findings": [asdict(each) for each in findings],
    }
    return document


def elsewhere_lines(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The same for people: a word, and beside it what there is to say."""
    at = found["address"] or found["image"] or ""
    where = f"{found['backend']}{f' at {at}' if at else ''}, storage {found['storage']}"
    yield "profile", f"{found['profile']}: {where}"
    asks = found["asks"]
    own = amount_of(**asks["entrypoint"])
    yield "asks for", f"{own} for the job itself"
    yield "asks for", _asked_workers(asks)
    time, cost = found["time"], found["cost"]
    if time["one_worker_seconds"] is not None:
        yield "takes", _at_best(time["seconds"], time["one_worker_seconds"], duration)
        yield "takes", time["source"]
    if cost is not None:
        amount = _at_best(cost["amount"], cost["one_worker_amount"], _money)
        rate = f"{cost['rate_per_hour']:g} an hour"
        yield "costs", f"{amount}, at {rate}, without what the cluster costs before and after"
    for finding in found["findings"]:
        yield finding["severity"], f"{finding['key']}: {finding['message']}"


def _asked_workers(asks: Mapping[str, Any]) -> str:
    if asks["workers"] == "in the job":
        return "no workers besides: the job itself trains"
    gpus = asks["gpus_per_worker"]
    each = amount_of(asks["cpus_per_worker"], 0 if gpus == "auto" else gpus)
    where_there = ", and a GPU where there is one for each" if gpus == "auto" else ""
    if asks["workers"] == "auto":
        return f"as many workers as suit, with {each} each{where_there}"
    count = asks["workers"]
    return f"{count} worker{'' if count == 1 else 's'} with {each} each{where_there}"


def _storage_here(loaded: LoadedSpec, profile: Profile) -> tuple[Storage, bool]:
    """The storage where it can be looked at without a network; else an empty one."""
    text, base = loaded.spec.storage, loaded.path.parent
    is_here = not is_address(text) and (base / Path(text).expanduser()).is_dir()
    if is_here or profile.backend == "local":
        return open_storage(text, base), True
    return FolderStorage(base / "_no_such_folder_"), False


def _workers(loaded: LoadedSpec, planned: Mapping[str, Any]) -> dict[str, Any]:
    asked = loaded.spec.resources
    if trains_in_job(loaded.spec):
        return {"count": 1, "why": "1 worker, in the process of the job"}
    if asked.workers == "auto":
        return {
            "count": planned["count"],
            "why": "as many workers as the cluster has room for and the batch feeds",
        }
    return {"count": asked.workers, "why": f"{asked.workers} workers, as asked"}


def _time(document: Mapping[str, Any], asked: ResourcesSpec) -> dict[str, Any]:
    """The training, from what one worker takes here."""
    seconds = document["time"]["seconds"]
    search = document["search"]
    if search is not None and search["seconds"] is not None:
        seconds = search["seconds"]
    workers = document["workers"]["count"] if asked.workers != "auto" else 1
    if seconds is None:
        return {"seconds": None, "one_worker_seconds": None, "source": document["time"]["source"]}
    source = SEVERAL.format(workers=workers) if workers > 1 else ONE_WORKER
    return {"seconds": seconds / workers, "one_worker_seconds": seconds, "source": source}


def _cost(time: Mapping[str, Any], rate: float | None) -> dict[str, float] | None:
    if rate is None or time["seconds"] is None:
        return None
    several, one = (time[name] / 3600 * rate for name in ("seconds", "one_worker_seconds"))
    return {"amount": several, "one_worker_amount": one, "rate_per_hour": rate}


def _at_best(several: float, one: float, shown: Callable[[float], str]) -> str:
    if several == one:
        return f"about {shown(one)}"
    return f"{shown(several)} at best, about {shown(one)} with one worker"


def _money(amount: float) -> str:
    """An amount in a currency that nobody knows here.

    Example:
        >>> _money(0.00012), _money(3.14159), _money(1234.5)
        ('0.00012', '3.14', '1,234.50')
    """
    return f"{amount:,.2f}" if amount >= 0.01 else f"{amount:.2g}"
