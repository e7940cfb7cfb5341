"""Hessians and weights of the kind that models have: `correlated_hessian`, `random_weight`."""

import numpy as np
import torch


def correlated_hessian(columns: int, seed: int = 0, tokens: int = 2048) -> torch.Tensor:
    """Of inputs whose features are correlated and of unequal size, as in a model: float32 [I, I]."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(columns, columns)) / columns**0.5 + np.eye(columns)
    inputs = rng.normal(size=(tokens, columns)) @ mixing * np.exp(0.7 * rng.normal(size=columns))
    return torch.from_numpy((inputs.T @ inputs / tokens).astype(np.float32))


def random_weight(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng([seed, 9]).standard_t(5, (rows, columns)).astype(np.float32)) * 0.02
