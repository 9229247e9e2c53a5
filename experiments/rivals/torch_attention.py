"""Times PyTorch's attention at the shapes of the decode and prefill benchmarks, in its own process.

PyTorch and JAX each claim the memory of a GPU, so that this is a script of its own:

    python experiments/rivals/torch_attention.py --out torch.json

It needs torch and a CUDA GPU, nothing of JAX; the JSON has seconds per call by name and shape.
Calls reuse one cache: below some 50 MB it may stay in the GPU's own, where ours is always cold.
"""

import argparse
import json
import pathlib
import statistics
from collections.abc import Callable
from typing import Any

DECODE = (
    (1, 32_768),
    (1, 131_072),
    (16, 8192),
    (16, 32_768),
    (64, 8192),
    (128, 4096),
    (128, 8192),
    (256, 8192),
)
"""Requests and tokens of each."""
PREFILL = ((32, 512), (16, 1024), (8, 2048), (4, 4096), (2, 8192), (1, 16_384))
HEADS, HEAD_DIM = 64, 256


def main() -> None:
    """Times every shape that runs and writes what was measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, help="JSON to write")
    out = parser.parse_args().out
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise SystemExit("this script needs PyTorch: pip install torch") from None
    if not torch.cuda.is_available():
        raise SystemExit("torch sees no CUDA GPU here")
    found = []
    for B, S in DECODE:
        found += time_decode(torch, B, S)
    for B, T in PREFILL:
        found += time_prefill(torch, B, T)
    device = torch.cuda.get_device_name()
    out.write_text(
        json.dumps({"device": device, "torch": torch.__version__, "rows": found}, indent=1)
    )
    print(f"{len(found)} timings on {device}: {out}")


def time_decode(torch: Any, B: int, S: int) -> list[dict]:
    """One query a request over a dense cache with one key head: SDPA, and flex_attention."""
    q = torch.randn(B, HEADS, 1, HEAD_DIM, device="cuda", dtype=torch.bfloat16)
    k, v = (torch.randn(B, 1, S, HEAD_DIM, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    sdpa = torch.nn.functional.scaled_dot_product_attention
    rows = [row(torch, "SDPA", f"decode, B = {B}, S = {S}", lambda: sdpa(q, k, v, enable_gqa=True))]
    try:
        from torch.nn.attention.flex_attention import flex_attention  # pyright: ignore

        flex = torch.compile(flex_attention)
        call = lambda: flex(q, k, v, enable_gqa=True)  # noqa: E731
        rows.append(row(torch, "flex_attention", f"decode, B = {B}, S = {S}", call))
    except Exception as error:  # its compiler has limits of many kinds
        print(f"flex_attention, B = {B}, S = {S}: {str(error).splitlines()[0][:150]}")
    return rows


def time_prefill(torch: Any, B: int, T: int) -> list[dict]:
    """Whole causal prompts."""
    q = torch.randn(B, HEADS, T, HEAD_DIM, device="cuda", dtype=torch.bfloat16)
    k, v = (torch.randn(B, 1, T, HEAD_DIM, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    sdpa = torch.nn.functional.scaled_dot_product_attention
    call = lambda: sdpa(q, k, v, is_causal=True, enable_gqa=True)  # noqa: E731
    return [row(torch, "SDPA", f"prefill, B = {B}, T = {T}", call)]


def row(torch: Any, name: str, shape: str, call: Callable[[], Any], repeats: int = 20) -> dict:
    """Median and quartiles of a call by CUDA events, ten calls between two of them."""
    for _ in range(3):
        call()
    seconds = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(10):
            call()
        end.record()
        torch.cuda.synchronize()
        seconds.append(begin.elapsed_time(end) / 1e4)
    low, median, high = statistics.quantiles(seconds, n=4)
    print(f"{name:15} {shape:30} {1e6 * median:10.1f} us")
    return {"name": name, "shape": shape, "median_s": median, "iqr_s": high - low, "n": repeats}


if __name__ == "__main__":
    main()
