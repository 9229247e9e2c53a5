"""Models and accelerators of your own, read from a JSON file.

```
{"accelerators": [{"name": "L40S", "usd_per_hour": 0.9, "flops": 7.33e14, "bandwidth": 8.64e11,
                   "memory": 48e9, "network": 100e9}],
 "models": [{"name": "Mine", "d_model": 4096,
             "attention": [[32, {"kind": "gqa", "num_heads": 32, "num_kv_heads": 8,
                                 "head_dim": 128}]],
             "ffn": [{"num_layers": 32, "hidden": 14336}]}]}
```

Fields are those of `serving.cost.prices`; the kinds of attention are gqa, mla, mfa and lightning.
"""

import json
import pathlib
from typing import Any

from jaxlab.serving.cost import prices
from jaxlab.serving.cost.prices import Accelerator, ModelSpec

KINDS: dict[str, Any] = {
    "gqa": prices.GroupedQueryAttention,
    "mla": prices.LatentAttention,
    "mfa": prices.FactorizedAttention,
    "lightning": prices.LightningAttention,
}


def read(path: str) -> tuple[dict[str, ModelSpec], dict[str, Accelerator]]:
    """Returns models and accelerators of a file by name; none for an empty path.

    Raises:
        ValueError: if the file cannot be read or a record does not fit; it names the record.
    """
    if not path:
        return {}, {}
    try:
        data = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not readable JSON: {error}") from None
    if not isinstance(data, dict) or set(data) - {"models", "accelerators"}:
        raise ValueError(f"{path} must hold an object with models, accelerators or both")
    models = _all(path, "models", data, _model)
    return models, _all(path, "accelerators", data, lambda record: Accelerator(**record))


def _all(path: str, name: str, data: dict, make: Any) -> dict[str, Any]:
    found = {}
    for index, record in enumerate(data.get(name, ())):
        try:
            one = make(record)
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"{path}: {name}[{index}] does not fit: {error}") from None
        found[one.name] = one
    return found


def _model(record: dict) -> ModelSpec:
    attention = tuple((count, _attention(kind)) for count, kind in record["attention"])
    ffn = tuple(prices.Ffn(**group) for group in record["ffn"])
    return ModelSpec(**{**record, "attention": attention, "ffn": ffn})


def _attention(record: dict) -> Any:
    sizes = dict(record)
    kind = sizes.pop("kind", None)
    if kind not in KINDS:
        raise ValueError(f"kind of attention must be one of {', '.join(KINDS)}, got {kind!r}")
    return KINDS[kind](**sizes)
