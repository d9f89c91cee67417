"""Classify by frozen features: votes of the nearest training samples, or logistic regression."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.nn import functional

from sgdata.errors import SettingError

CHUNK = 1024
ABSENT = -1e6
"""Logit of a class without a training sample."""


def cosine_votes(features: Tensor, bank: Tensor, targets: Tensor, neighbours: int) -> Tensor:
    """Return the score (N, K) of each class: its share of the votes of the most similar training samples.

    Votes are weighted by exp(cosine similarity / 0.07), as for DINO (Caron et al., ICCV 2021).

    Args:
        features: Features (N, D) to classify.
        bank: Features (M, D) of the training samples.
        targets: Targets (M, K) of the training samples.
        neighbours: Number of training samples that vote.
    """
    bank, result = functional.normalize(bank, dim=1), []
    for chunk in torch.split(functional.normalize(features, dim=1), CHUNK):
        near, which = (chunk @ bank.T).topk(min(neighbours, len(bank)), dim=1)
        weight = (near / 0.07).softmax(dim=1)
        result.append((weight[:, :, None] * targets[which]).sum(dim=1))
    return torch.cat(result)


def equal_votes(features: Tensor, bank: Tensor, targets: Tensor, neighbours: int) -> Tensor:
    """Return the score (N, K) of each class: its share of the nearest training samples, each with one vote.

    Features are standardised by the training samples and compared by Euclidean distance (Cover and Hart, 1967).

    Args:
        features: Features (N, D) to classify.
        bank: Features (M, D) of the training samples.
        targets: Targets (M, K) of the training samples.
        neighbours: Number of training samples that vote.
    """
    features, bank = standardised(features, bank)
    squares, result = bank.square().sum(dim=1), []
    for chunk in torch.split(features, CHUNK):
        which = (squares - 2 * chunk @ bank.T).topk(min(neighbours, len(bank)), dim=1, largest=False).indices
        result.append(targets[which].mean(dim=1))
    return torch.cat(result)


def logistic(features: Tensor, bank: Tensor, targets: Tensor, *, single: bool, strength: float) -> Tensor:
    """Return the logits (N, K) of logistic regression on standardised features, by scikit-learn.

    Args:
        features: Features (N, D) to classify.
        bank: Features (M, D) of the training samples.
        targets: Targets (M, K) of the training samples.
        single: Whether a sample has exactly one class; else each class has a regression of its own.
        strength: Strength of the L2 penalty, the reciprocal of scikit-learn's C.

    Raises:
        SettingError: Scikit-learn is not installed, or the training samples are of one class.
    """
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        raise SettingError("mode is 'logistic', which needs scikit-learn: pip install 'sgdata[ledger]'") from None
    features, bank = standardised(features, bank)
    x, ours = bank.double().numpy(), features.double().numpy()
    logits = torch.full((len(features), targets.shape[1]), ABSENT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # after so many steps the classes no longer change
        if single:
            labels = targets.argmax(dim=1).numpy()
            if len(set(labels.tolist())) < 2:
                raise SettingError("mode is 'logistic': the training samples are of one class, expected two or more")
            model = LogisticRegression(C=1 / strength, max_iter=2000).fit(x, labels)
            scores = torch.from_numpy(model.decision_function(ours)).float()
            # Of two classes scikit-learn gives the logit of the second.
            logits[:, model.classes_] = scores if scores.ndim == 2 else torch.stack([-scores, scores], dim=1)
            return logits
        for column, wanted in enumerate(targets.T):
            if 0 < wanted.sum() < len(wanted):
                model = LogisticRegression(C=1 / strength, max_iter=2000).fit(x, wanted.numpy())
                logits[:, column] = torch.from_numpy(model.decision_function(ours)).float()
    return logits


def standardised(features: Tensor, bank: Tensor) -> tuple[Tensor, Tensor]:
    """Return both sets of features with mean 0 and variance 1 over the training samples `bank`."""
    mean, spread = bank.mean(dim=0), bank.std(dim=0, correction=0)
    spread = torch.where(spread > 0, spread, torch.ones_like(spread))
    return (features - mean) / spread, (bank - mean) / spread
