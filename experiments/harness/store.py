"""The file of one result: any nesting of records, arrays and plain values, and whether it is whole.

A result is any nesting of records (NamedTuples, dataclasses), tuples, lists, dictionaries, arrays,
numbers, strings and None. Its file, *.npz, holds the arrays, and a text that says how they belong
together; a notebook may open it with `np.load`. A digest in the file finds damage; nothing is ever
unpickled.
"""

import dataclasses
import hashlib
import io
import json
import pathlib
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import result

_LENGTH = (64).to_bytes(2, "little")
"""The digest is the comment of the zip archive; this is its length, the last field before it."""


class Damaged(Exception):
    """A file is not what was written."""


def save(path: pathlib.Path, value: Any, kind: Any = object, settings: Any = None) -> None:
    """Writes a result in one step, so that a reader finds the whole file or none.

    Args:
        path: File to write, *.npz.
        value: The result, see the head of this module.
        kind: Its type, which names the records in it.
        settings: What it depends on, plain JSON data.

    Raises:
        ValueError: if something in it cannot be kept; the message says where it is.
    """
    arrays: dict[str, np.ndarray] = {}
    about = {
        "value": _encode(value, _records(kind), arrays, path.stem),
        "settings": settings,
        "commit": result.commit(),
        "versions": result.versions(),
    }
    buffer = io.BytesIO()
    text = np.frombuffer(json.dumps(about).encode(), np.uint8)
    np.savez_compressed(buffer, allow_pickle=False, about=text, **arrays)
    content = buffer.getvalue().removesuffix(b"\0\0") + _LENGTH  # a comment follows
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    try:
        partial.write_bytes(content + hashlib.sha256(content).hexdigest().encode())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)  # of a full disk


def load(path: pathlib.Path, kind: Any = object) -> tuple[Any, Any]:
    """Reads `(result, settings)` back, the result with the types that it had, arrays as NumPy's.

    Raises:
        FileNotFoundError: if there is no such file.
        Damaged: if it is not what was written.
        ValueError: if jaxlab 0.4 or another program wrote it, or a record of it is not in `kind`,
            or has other fields there.
    """
    raw = path.read_bytes()
    content, digest = raw[:-64], raw[-64:]
    if raw[-22:-18] == b"PK\5\6" and raw.endswith(b"\0\0"):  # a whole archive without a comment
        raise ValueError(f"{path} was kept by jaxlab 0.4 or before; start a new run")
    if not content.endswith(_LENGTH) or hashlib.sha256(content).hexdigest().encode() != digest:
        raise Damaged(f"{path} is damaged")
    with np.load(io.BytesIO(raw), allow_pickle=False) as arrays:
        about = json.loads(arrays["about"].tobytes())
        return _decode(about["value"], _records(kind), arrays, path), about["settings"]


def _records(kind: Any) -> dict[str, type]:
    """The record types that `kind` names, by name: its own, those of its fields and arguments."""
    found: dict[str, type] = {}

    def visit(hint: Any) -> None:
        for arm in typing.get_args(hint):
            visit(arm)
        named = isinstance(hint, type) and issubclass(hint, tuple) and hasattr(hint, "_fields")
        if not (named or (isinstance(hint, type) and dataclasses.is_dataclass(hint))):
            return
        if found.setdefault(hint.__qualname__, hint) is not hint:
            raise ValueError(f"kind names two different records {hint.__qualname__}")
        for field in typing.get_type_hints(hint).values():
            visit(field)

    visit(kind)
    return found


def _fields(kind: Any) -> tuple[str, ...]:
    if dataclasses.is_dataclass(kind):
        return tuple(field.name for field in dataclasses.fields(kind) if field.init)
    return kind._fields


def _encode(x: Any, records: Mapping[str, type], arrays: dict[str, np.ndarray], where: str) -> Any:
    """Returns `x` as JSON data; its arrays go to `arrays`, by the number that stands for them."""

    def all_of(items: Mapping[Any, Any]) -> dict[Any, Any]:
        return {k: _encode(v, records, arrays, f"{where}.{k}") for k, v in items.items()}

    if x is None or type(x) in (bool, int, float, str):
        return x
    if isinstance(x, (np.ndarray, np.generic, jax.Array)):
        return _encode_array(x, arrays, where)
    kind: Any = type(x)
    name = kind.__qualname__
    is_record = hasattr(kind, "_fields") or dataclasses.is_dataclass(kind)
    if is_record and records.get(name) is kind:
        return {"record": name, "fields": all_of({k: getattr(x, k) for k in _fields(kind)})}
    if is_record:
        raise ValueError(f"{where} is the record {name}, which the unit's kind does not name")
    if kind in (tuple, list):
        return {name: list(all_of(dict(enumerate(x))).values())}
    if kind is dict:
        keys = [_encode(key, records, arrays, f"{where} (key)") for key in x]
        return {"dict": [keys, list(all_of(x).values())]}
    raise ValueError(
        f"{where} is a {name}; a unit's result holds records, tuples, lists, dictionaries, arrays, "
        "numbers, strings and None"
    )


def _encode_array(x: Any, arrays: dict[str, np.ndarray], where: str) -> dict[str, Any]:
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        raise ValueError(f"{where} is a PRNG key; keep jax.random.key_data of it")
    array = np.asarray(x)
    if array.dtype.hasobject:
        raise ValueError(f"{where} is an array of Python objects; keep numbers")
    number = str(len(arrays))
    about = {"array": number, "scalar": isinstance(x, np.generic)}
    if array.dtype.kind == "V" and array.dtype.names is None:  # bfloat16 and its like
        about |= {"dtype": array.dtype.name, "shape": array.shape}
        array = np.frombuffer(array.tobytes(), np.uint8)
    arrays[number] = array
    return about


def _decode(
    x: Any, records: Mapping[str, type], arrays: Mapping[str, np.ndarray], path: pathlib.Path
) -> Any:
    if not isinstance(x, dict):
        return x

    def all_of(items: Sequence[Any]) -> list[Any]:
        return [_decode(item, records, arrays, path) for item in items]

    match x:
        case {"array": number, "scalar": scalar}:
            array = arrays[number]
            if "dtype" in x:
                array = np.frombuffer(array.tobytes(), np.dtype(x["dtype"]))
                array = array.reshape(x["shape"]).copy()
            return array[()] if scalar else array
        case {"record": name, "fields": fields}:
            kind = records.get(name)
            known = () if kind is None else _fields(kind)
            if kind is None or set(known) != set(fields):
                raise ValueError(
                    f"{path} holds a record {name} with {', '.join(fields)}, this version has "
                    f"{', '.join(known) or 'none'}; start a new run"
                )
            return kind(**dict(zip(fields, all_of(list(fields.values())), strict=True)))
        case {"tuple": items}:
            return tuple(all_of(items))
        case {"list": items}:
            return all_of(items)
        case {"dict": (keys, values)}:
            return dict(zip(all_of(keys), all_of(values), strict=True))
    raise ValueError(f"{path} holds {', '.join(x)}, which this version does not read")
