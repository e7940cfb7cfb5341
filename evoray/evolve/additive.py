"""What all measurements together say of each step of each gene, were the loss a sum over genes.

Holds: `AdditiveModel`, `Lessons`, `of_genes`.

It is not: the whole model is measured because such sums mislead. So it only proposes, and never decides.

Legend: N candidates, G genes, K levels, P steps (of gene g from level k-1 to k), S draws.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evoray.space import Genotype, Space

Lessons = Mapping[str, NDArray[Any]]
"""All that a model learned, by name: what another one over the same genes can begin with."""

_MISFIT = 0.15
"""Standard deviation of what interactions add, as a share of how far a candidate's loss is from the best beside it."""

_OWN_GENE, _OWN_STEP = 1.0, 0.5
"""Prior standard deviations of a gene's own factor and of a step's own deviation, as shares of the usual effect of the
step."""

_SHARED = 10.0
"""The same of the effects that all genes share: nearly free."""


def of_genes(lessons: Lessons, space: Space) -> bool:
    """Whether lessons are of genes with these names, levels and costs; limits may differ."""
    return "genes" in lessons and np.array_equal(lessons["genes"], _named(space))


def _named(space: Space) -> NDArray[np.str_]:
    return np.array([f"{gene.name} {' '.join(gene.levels)} {' '.join(map(str, gene.costs))}" for gene in space.genes])


class AdditiveModel:
    """Bayesian linear regression of losses on steps (Bishop, Pattern Recognition and Machine Learning, section 3.3).

    The loss of a candidate is a constant of its measurement plus the sum of the effects of all steps below its levels;
    silent genes count as if they were at their highest. The constant makes measurements on different blocks comparable:
    only differences within one say anything. A step's effect is a priori the sum of one that all genes share, in
    proportion to the step's cost, of the gene's own factor times that, and of its own; their scales come from the
    losses themselves.

    Args:
        space: genes and costs.
        lessons: that it begins with, of a model over the same genes and costs; limits may differ.

    Raises:
        ValueError: lessons of other genes.
    """

    def __init__(self, space: Space, lessons: Lessons | None = None) -> None:
        self.space = space
        costs_GK = space.costs_GK
        self._there_GJ = costs_GK[:, 1:] >= 0
        steps_GJ = np.where(self._there_GJ, costs_GK[:, 1:] - costs_GK[:, :-1], 0).astype(np.float64)
        largest_G = np.array([steps_GJ[space.budget_G == budget].max(initial=1.0) for budget in space.budget_G])
        # A step that costs nothing in its budget may still change the loss.
        self._scale_P = np.where(self._there_GJ, np.maximum(steps_GJ / largest_G[:, None], 1e-3), 0.0).ravel()
        self._shape = steps_GJ.shape
        count = steps_GJ.size
        self._precision_PP = np.zeros((count, count))
        self._evidence_P = np.zeros(count)
        self._shared_JJ = np.zeros((self._shape[1], self._shape[1]))
        self._shared_J = np.zeros(self._shape[1])
        self._between = [0.0, 0.0]
        self.candidates = 0
        self._posterior: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
        if lessons is not None:
            if not of_genes(lessons, space):
                raise ValueError(f"lessons of other genes than the {self._shape[0]} with {self._shape[1]} steps each")
            self._precision_PP = lessons["precision_PP"].copy()
            self._evidence_P = lessons["evidence_P"].copy()
            self._shared_JJ = lessons["shared_JJ"].copy()
            self._shared_J = lessons["shared_J"].copy()
            self._between = lessons["between"].tolist()
            self.candidates = int(lessons["candidates"])

    @property
    def lessons(self) -> Lessons:
        """What another model can begin with: sums over all that was learned."""
        return {
            "precision_PP": self._precision_PP.copy(),
            "evidence_P": self._evidence_P.copy(),
            "shared_JJ": self._shared_JJ.copy(),
            "shared_J": self._shared_J.copy(),
            "between": np.array(self._between),
            "candidates": np.array(float(self.candidates)),
            "genes": _named(self.space),
        }

    def learn(self, genotypes: Sequence[Genotype], losses_NB: NDArray[np.float64], tokens_B: NDArray[np.int64]) -> None:
        """Takes a measurement; candidates without a finite loss say nothing.

        Args:
            genotypes: N of them.
            losses_NB: float64 [N, B], sums per block in nats, all on the same blocks.
            tokens_B: int64 [B].
        """
        finite_N: NDArray[np.bool_] = np.asarray(np.isfinite(losses_NB).all(axis=1))
        total = int(tokens_B.sum())
        if finite_N.sum() < 2 or not total:
            return
        losses_NB = losses_NB[finite_N]
        loss_N = losses_NB.sum(axis=1) / total
        above_N = loss_N - loss_N.min()
        best_B = losses_NB[np.argmin(loss_N)]
        rest_NB = losses_NB - best_B - above_N[:, None] * tokens_B
        blocks = losses_NB.shape[1]
        # A few blocks tell little of each candidate's spread, so its usual size is taken for all.
        variance_N = (rest_NB**2).sum(axis=1) * blocks / max(1, blocks - 1) / total**2
        usual = float(np.median(variance_N)) if blocks > 1 else float(np.median(above_N) ** 2) / 16
        # Losses are known to no more digits than sums of floats have.
        least = (1e-6 * float(np.abs(loss_N).max())) ** 2 + 1e-30
        weight_N = 1 / (usual + (_MISFIT * above_N) ** 2 + least)
        steps_NP = self._steps(np.array([g for g, known in zip(genotypes, finite_N, strict=True) if known]))
        steps_NP = steps_NP - np.average(steps_NP, axis=0, weights=weight_N)
        loss_N = loss_N - np.average(loss_N, weights=weight_N)
        weighted_NP = steps_NP * weight_N[:, None]
        self._precision_PP += weighted_NP.T @ steps_NP
        self._evidence_P += weighted_NP.T @ loss_N
        shared_NJ = (steps_NP * self._scale_P).reshape(len(loss_N), *self._shape).sum(axis=1)
        self._shared_JJ += (shared_NJ * weight_N[:, None]).T @ shared_NJ
        self._shared_J += (shared_NJ * weight_N[:, None]).T @ loss_N
        self._between[0] += float((weight_N * loss_N**2).sum())
        self._between[1] += float((weighted_NP * steps_NP * self._scale_P**2).sum())
        self.candidates += len(loss_N)
        self._posterior = None

    def losses(self, effects_SP: NDArray[np.float64]) -> NDArray[np.float64]:
        """Effects of steps as a loss per level, the lowest level's 0.

        Args:
            effects_SP: float64 [S, P].

        Returns:
            float64 [S, G, K].
        """
        effects_SGJ = np.where(self._there_GJ, effects_SP.reshape(-1, *self._shape), 0.0)
        zeros_SG1 = np.zeros((*effects_SGJ.shape[:2], 1))
        return np.concatenate([zeros_SG1, np.cumsum(effects_SGJ, axis=2)], axis=2)

    def sums(self, losses_GK: NDArray[np.float64], genotypes: Sequence[Genotype]) -> NDArray[np.float64]:
        """What a table of `losses` adds up to for each genotype, float64 [N]."""
        levels_NG = self._counted(np.array(genotypes, dtype=np.int64))
        sums_N: NDArray[np.float64] = losses_GK[np.arange(levels_NG.shape[1]), levels_NG].sum(axis=1)
        return sums_N

    def mean(self) -> NDArray[np.float64]:
        """The expected effects of all steps, float64 [1, P], in nats per token."""
        return self._fit()[0][None]

    def draws(self, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Effects drawn from the posterior, float64 [S, P]: Thompson sampling proposes the best choice of each."""
        mean_P, root_PP = self._fit()
        return mean_P + rng.standard_normal((count, len(mean_P))) @ root_PP

    def _counted(self, genotypes_NG: NDArray[np.int64]) -> NDArray[np.int64]:
        """The levels that count: of silent genes the highest."""
        owner_G = self.space.owner_G
        silent_NG = (owner_G >= 0) & (genotypes_NG[:, owner_G] == 0)
        return np.where(silent_NG, np.array(self.space.highest()), genotypes_NG)

    def _steps(self, genotypes_NG: NDArray[np.int64]) -> NDArray[np.float64]:
        """float64 [N, P]: 1 for each step below a level."""
        below_NGJ = self._counted(genotypes_NG)[:, :, None] > np.arange(self._shape[1])
        return (below_NGJ & self._there_GJ).reshape(len(genotypes_NG), -1).astype(np.float64)

    def _fit(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and a root R of the covariance, R.T @ R."""
        if self._posterior is None:
            usual_J = self._usual()
            scale_GJ = self._scale_P.reshape(self._shape)
            usual_P = (scale_GJ * usual_J).ravel()
            gene_P = np.repeat(np.arange(self._shape[0]), self._shape[1])
            step_P = np.tile(np.arange(self._shape[1]), self._shape[0])
            unit = _SHARED * float(usual_P.max())
            # Prior covariance: shared by step, by gene, and of its own.
            prior_PP = (_SHARED**2 * (step_P[:, None] == step_P) + _OWN_GENE**2 * (gene_P[:, None] == gene_P)) * (
                usual_P[:, None] * usual_P
            )
            prior_PP[np.diag_indices(len(usual_P))] += (_OWN_STEP * usual_P) ** 2 + (1e-3 * usual_P.max()) ** 2
            # In units of the largest prior deviation, so that nothing underflows.
            root_PP = unit * np.linalg.cholesky(prior_PP / unit**2)
            inner_PP = np.eye(len(usual_P)) + root_PP.T @ self._precision_PP @ root_PP
            # What many precise measurements say of one direction leaves rounding errors in the others.
            inner_PP[np.diag_indices(len(usual_P))] += 1e-10 * inner_PP.diagonal().max()
            inner_root_PP = np.linalg.cholesky(inner_PP)
            half_PP = np.linalg.solve(inner_root_PP, root_PP.T)
            self._posterior = half_PP.T @ (half_PP @ self._evidence_P), half_PP
        return self._posterior

    def _usual(self) -> NDArray[np.float64]:
        """Of each step the usual size of its effect, per unit of scale: float64 [J]."""
        if not self.candidates:
            return np.ones(self._shape[1])
        size = np.trace(self._shared_JJ) / self._shape[1]
        shared_J = np.linalg.solve(self._shared_JJ + np.eye(self._shape[1]) * (1e-9 * size + 1e-300), self._shared_J)
        ones_J = np.ones(self._shape[1])
        if ones_J @ self._shared_JJ @ ones_J < 0.01 * self._shape[1] ** 2 * size:
            # Totals are (nearly) the same for all, so a price on cost itself can't be seen. Of all that explain the
            # losses alike, take the one where the least useful step is useless.
            shared_J = shared_J - shared_J.max()
        # Where genes share nothing that can be seen (a count of dropped ones is always the same), the spread of the
        # losses says how large effects are.
        spread = (self._between[0] / self._between[1]) ** 0.5 if self._between[1] else 0.0
        largest = float(np.abs(shared_J).max(initial=0.0))
        floor = 0.1 * largest if largest > spread else spread
        return np.abs(shared_J) + max(floor, 1e-12)
