"""The identity of a run: only the run that was begun is resumed.

That is what it learns from, what it validates on, how samples are changed, what the network's
modules are set to and what the network answers. Options and rows are compared elsewhere.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from pursuitify.data import Images, content
from pursuitify.data.forms import Rows, all_labels, as_samples
from pursuitify.data.image_folder import Folder
from pursuitify.data.samples import check_logits, dtypes_explained
from pursuitify.network.pursuit_network import PursuitNetwork
from pursuitify.robust.attacks.input_checks import evaluation_mode
from pursuitify.training.batches import makes_batches, sample
from pursuitify.utils import fingerprint, random_state

#: Samples of a data set that are read and compared, beside what it holds and names.
_SAMPLES = 64
#: The facts that ``module_facts`` returns.
OF_MODULES = frozenset({"attributes", "frozen parameters"})
#: In the names of facts that are compared only where both runs have them.
_ALL = ": all "
_PLAIN = (bool, int, float, str, type(None), torch.dtype)


def data_facts(rows: Rows, name: str, seed: int, augment: Any) -> dict[str, Any]:
    """Return what tells one data set from another, by what it is called in a message.

    Every entry of tensors is covered, and all that a data set holds in memory or names as files
    (:mod:`pursuitify.data.content`). Of a data set that is read sample by sample 64 samples are
    read, too, spread evenly; of batches there are their loader's settings, and the batches
    themselves as the run reads them (``Batches.digest``).
    """
    facts: dict[str, Any] = {}
    if not makes_batches(rows) and not isinstance(rows, IterableDataset):
        facts["kind"] = "samples"
        facts |= _samples(as_samples(rows), seed, augment, name)
    else:
        facts["kind"] = "batches"
        facts |= _loader(rows)
    return {f"{name}: {what}": value for what, value in facts.items()}


def _samples(data: Any, seed: int, augment: Any, name: str) -> dict[str, Any]:
    count = len(data)
    places = range(0, count, max(1, -(-count // _SAMPLES)))
    before = content.sizes(data)
    read = [sample(data, index, seed, augment, name) for index in places]
    after = content.sizes(data)
    facts = {
        "number of samples": count,
        "the inputs": fingerprint.of_tensors(*(torch.as_tensor(x) for x, _ in read)),
        "the labels": fingerprint.of_tensors(*(torch.as_tensor(y).double() for _, y in read)),
    }
    known = all_labels(data)
    if known is not None:
        facts["all labels"] = fingerprint.of_tensors(known.double())
    images = [x for x, _ in data] if isinstance(data, (list, tuple)) else []
    if isinstance(data, Images):
        facts["all inputs"] = fingerprint.of_tensors(data.x)
    elif isinstance(data, TensorDataset):
        facts["all inputs"] = fingerprint.of_tensors(data.tensors[0])
    elif images and all(isinstance(x, Tensor) for x in images) and _of_one_shape(images):
        facts["all inputs"] = fingerprint.of_stacked(images)
    else:
        # An attribute that reading a sample changes is a cache.
        facts |= _held(data, _changed_paths(before, after))
    if isinstance(data, Folder):
        facts["files"] = data.identity()
    return facts


def without_content(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return facts without those on all that a data set holds and names, which are not compared."""
    return {name: value for name, value in facts.items() if _ALL not in name}


def _of_one_shape(images: list[Any]) -> bool:
    return len({(x.shape, x.dtype) for x in images}) == 1


def _changed_paths(before: Mapping[str, Any], after: Mapping[str, Any]) -> set[str]:
    return {path for path in {*before, *after} if before.get(path) != after.get(path)}


#: By name of the data: what holds it, and cheap marks of its attributes when the run began.
Sources = Mapping[str, tuple[Any, Mapping[str, Any]]]


def sources(train: Rows, val: Rows) -> Sources:
    """Return what tells caches and counters of the data from what it is, once it has been read."""
    held = {"train": train, "val": val}
    inner = {n: rows.dataset if isinstance(rows, DataLoader) else rows for n, rows in held.items()}
    return {name: (data, content.sizes(data)) for name, data in inner.items()}


def without_caches(facts: Mapping[str, Any], given: Sources) -> dict[str, Any]:
    """Return facts without those on attributes that have changed since the run began.

    Reading changed them, so they say nothing about the data; with the same objects, as in a
    notebook, they would be others when the run is resumed.
    """
    gone = tuple(
        f"{name}: {_attribute(path)}"
        for name, (data, before) in given.items()
        for path in _changed_paths(before, content.sizes(data))
    )
    return {name: value for name, value in facts.items() if not name.startswith(gone)}


def _attribute(path: str) -> str:
    return f"all of its attribute {path!r}"


def _held(data: object, but: Collection[str] = ()) -> dict[str, Any]:
    """Return what stands for a list of samples, or the attributes of a data set except for some."""
    if isinstance(data, (list, tuple)):
        return _in_words("all samples", content.of_value(data))
    facts: dict[str, Any] = {}
    for path, found in content.of_attributes(data).items():
        if path not in but:
            facts |= _in_words(_attribute(path), found)
    return facts


def _in_words(what: str, found: content.Content | None) -> dict[str, Any]:
    if found is None:
        return {}
    times = {} if found.written is None else {f"{what}: all times of its files": found.written}
    return {what: found.held, **times}


def _loader(rows: Rows) -> dict[str, Any]:
    if isinstance(rows, (list, tuple)):
        held = [part for pair in rows for part in pair if isinstance(part, Tensor)]
        return {"number of batches": len(rows), "the batches": fingerprint.of_tensors(*held)}
    facts: dict[str, Any] = {"number of batches": _length(rows)}
    if not isinstance(rows, DataLoader):
        facts |= _held(rows)
    else:
        facts |= {what: getattr(rows, what) for what in ("batch_size", "drop_last")}
        facts["number of workers"] = rows.num_workers
        functions = (rows.collate_fn, rows.worker_init_fn)
        facts["collate_fn or worker_init_fn"] = fingerprint.of_values(*functions)
        facts["samplers"] = fingerprint.of_values(_settings(rows.sampler), type(rows.batch_sampler))
        inner = rows.dataset
        if isinstance(inner, Dataset) and not isinstance(inner, IterableDataset):
            facts["number of samples"] = _length(inner)
        if isinstance(inner, TensorDataset):
            facts["the samples"] = fingerprint.of_tensors(*inner.tensors)
        elif isinstance(inner, Images):
            facts["the samples"] = fingerprint.of_tensors(inner.x, inner.y)
        else:
            facts |= _held(inner)
        if isinstance(inner, Folder):
            facts["files"] = inner.identity()
    return facts


def _length(rows: Any) -> int | None:
    try:
        return len(rows)
    except TypeError:  # for instance a loader over an IterableDataset without a length
        return None


def _settings(sampler: Any) -> list[Any]:
    """Return a sampler's kind and plain settings, among them weights; not the data it orders."""
    kept = (*_PLAIN, Tensor, list, tuple, range)
    if isinstance(sampler, kept):
        return [sampler]
    own = {k: v for k, v in getattr(sampler, "__dict__", {}).items() if isinstance(v, kept)}
    return [type(sampler), own]


def callable_facts(augment: Any) -> dict[str, Any]:
    """Return what tells one augmentation from another."""
    return {"augment": None if augment is None else fingerprint.of_values(augment)}


def module_facts(net: nn.Module) -> dict[str, Any]:
    """Return the plain attributes of all modules, and which parameters are not trained.

    Among them are those that training alone reads: dropout's p, BatchNorm's momentum.
    """
    facts = {f"{path}.{name}".lstrip("."): value for path, name, value in _attributes(net)}
    frozen = sorted(name for name, p in net.named_parameters() if not p.requires_grad)
    return {"attributes": facts, "frozen parameters": frozen}


def _attributes(net: nn.Module) -> Iterator[tuple[str, str, str]]:
    for path, module in net.named_modules():
        if path:
            yield path, "class", type(module).__qualname__
        if isinstance(module, PursuitNetwork):
            continue  # its settings and rows are compared as such
        for name, value in vars(module).items():
            if not name.startswith("_") and name != "training" and _is_plain(value):
                yield path, name, repr(value)


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN)


@torch.no_grad()
def answers(net: nn.Module, x: Tensor) -> Tensor:
    """Return a network's logits on a batch in evaluation mode, a pursuit network's at T = 0.

    Its source's answer needs no step size, so nothing is estimated or changed by asking.
    """
    place = next((p.device for p in net.parameters()), x.device)
    with random_state.kept(), evaluation_mode(net):
        random_state.seed_all(0)
        before = net.iterations if isinstance(net, PursuitNetwork) else None
        try:
            if isinstance(net, PursuitNetwork):
                net.iterations = 0
            with dtypes_explained(net, x):
                return check_logits(net(x.to(place)), len(x))
        finally:
            if before is not None:
                net.iterations = before  # type: ignore[assignment]


def probe(x: Tensor) -> Tensor:
    """Return a batch that depends on the shape and type of one like it alone, not on its values."""
    shape = tuple(x.shape)
    if not x.is_floating_point():
        return torch.zeros(shape, dtype=x.dtype)
    generator = torch.Generator().manual_seed(0)
    one = torch.rand(shape[1:], generator=generator, dtype=torch.float64)
    return one.to(x.dtype).expand(shape).clone()


def answer_facts(logits: Tensor) -> dict[str, Any]:
    """Return a network's answer to one sample as plain numbers, and how it was computed."""
    precision = torch.finfo(logits.dtype).eps
    numbers = logits[0].double().tolist()
    return {"logits": numbers, "precision": precision, "device": logits.device.type}


def same_answers(saved: Any, own: Mapping[str, Any]) -> bool:
    """Whether two answers agree to rounding; another device rounds in other places."""
    if not isinstance(saved, dict) or not isinstance(saved.get("logits"), list):
        return False
    theirs, mine = saved["logits"], own["logits"]
    if len(theirs) != len(mine) or not all(isinstance(n, float) for n in theirs):
        return False
    alike = saved.get("device") == own["device"]
    bound = max(1e-5 if alike else 1e-2, 64 * own["precision"])
    size = max(map(abs, mine))
    return all(abs(a - b) <= bound * size for a, b in zip(theirs, mine, strict=True))


def differences(saved: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """Return what differs between two runs, in words.

    Facts that the saved run's version did not record are passed over.
    """
    found = []
    for name in sorted({*saved, *own}):
        was, now = saved.get(name), own.get(name)
        if was == now or (name not in saved and not _was_recorded(name, saved)):
            continue
        if _ALL in name and (was is None or now is None):
            continue  # the same samples may lie in memory now, or no longer
        if name == "attributes" and isinstance(was, dict) and isinstance(now, dict):
            parts = sorted({*was, *now})
            found += [
                f"{part} was {was.get(part)} and is {now.get(part)}"
                for part in parts
                if was.get(part) != now.get(part)
            ]
        elif _is_mark(was) or _is_mark(now):
            if fingerprint.comparable(was, now):
                found.append(f"{name} {_changed(was, now)}")
        else:
            found.append(f"{name} was {was!r} and is {now!r}")
    return found


def _was_recorded(name: str, saved: Mapping[str, Any]) -> bool:
    """Whether the version that saved a run recorded a fact, if the run had it."""
    if name.startswith(("train: ", "val: ")):
        return "train: kind" in saved
    return name not in {*OF_MODULES, "augment", "mixed precision"}


def _is_mark(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(fingerprint.MARK)


def _changed(was: Any, now: Any) -> str:
    if was is None:
        return "was not there and is now"
    return "was there and is not now" if now is None else "changed"
