"""What an attention with a small cache costs in quality: six layers at equal parameters."""

import dataclasses

SUMMARY = "Attention quality: MHA, GQA, MQA, MLA, MFA, MFA-KR at equal parameters, recall and bytes"


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the comparison, on arXiv:2412.19255 and arXiv:2507.19427."""

    seed: int = 0
    """Seed of every random draw."""
    num_seeds: int = 5
    """Runs a figure rests on, per task and attention, vmapped."""
    learning_rates: tuple[float, ...] = (4e-3, 8e-3, 1.6e-2)
    """Tried for each task and attention on a seed of their own; the best is used."""
    tasks: tuple[str, ...] = ("recall", "bytes")
    """Associative recall, and the sources of Python's standard library as bytes."""
    variants: tuple[str, ...] = ()
    """Attention layers to compare; all when empty."""
    d_model: int = 64
    """Width; a multiple of 64."""
    num_layers: int = 2
    """Blocks."""
    length: int = 64
    """Bytes of a sequence."""
    recall_length: int = 32
    """Tokens of a sequence of the recall task."""
    pairs: tuple[int, int] = (2, 8)
    """Fewest and most key-value pairs that such a sequence holds."""
    tokens: int = 2048
    """Tokens of a step, per seed."""
    num_steps: int = 2000
    """Training steps."""
    eval_batches: int = 32
    """Batches that the final loss is averaged over."""

    def __post_init__(self):
        least = {
            "num_seeds": 2,
            "d_model": 64,
            "num_layers": 1,
            "length": 4,
            "recall_length": 8,
            "tokens": max(self.length, self.recall_length),
            "num_steps": 10,
            "eval_batches": 1,
        }
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name} must be at least {bound}, got {getattr(self, name)}")
        if self.d_model % 64:
            raise ValueError(f"d_model must be a multiple of 64, got {self.d_model}")
        low, high = self.pairs
        most = min(self.recall_length // 2 - 1, 128)
        if not 1 <= low <= high <= most:
            raise ValueError(
                f"pairs must be (fewest, most) from 1 to {most}, so that the recall_length of "
                f"{self.recall_length} leaves room to ask (and 128 keys suffice), got {self.pairs}"
            )
        if not self.learning_rates or min(self.learning_rates) <= 0.0:
            raise ValueError(f"learning_rates must be positive, got {self.learning_rates}")


PRESETS = {
    "smoke": Config(
        num_seeds=2,
        learning_rates=(8e-3,),
        variants=("MHA", "MQA", "MFA"),
        num_layers=1,
        tokens=512,
        num_steps=60,
        eval_batches=4,
    ),
    "cpu": Config(),
    "gpu": Config(
        d_model=256,
        num_layers=4,
        length=256,
        recall_length=256,
        pairs=(16, 64),
        tokens=16_384,
        learning_rates=(2e-3, 4e-3),
    ),
}
