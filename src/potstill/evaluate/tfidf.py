"""What a sceptic tries first: TF-IDF and logistic regression on the same teacher labels."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

from potstill.evaluate.metrics import Array


def fit_tfidf(texts: Sequence[str], labels: Sequence[int], *, seed: int) -> Pipeline:
    """Words and word pairs, sublinear TF-IDF, C = 10: settings that do well on short texts. A pure function."""
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
        LogisticRegression(C=10, max_iter=1000, random_state=seed),
    )
    return model.fit(list(texts), np.array(labels))


def predict(model: Pipeline, texts: Sequence[str], n_choices: int) -> tuple[Array, dict[str, float]]:
    """ln p over the choices (N, C), not normalised to the last bit, and what was measured."""
    start = time.perf_counter()
    p = model.predict_proba(list(texts))
    seconds = time.perf_counter() - start
    p_NC = np.full((len(texts), n_choices), 1e-9)
    p_NC[:, model.classes_] = np.maximum(p, 1e-9)
    p_NC /= p_NC.sum(axis=-1, keepdims=True)
    weights = int(model[-1].coef_.size + model[-1].intercept_.size)  # pyright: ignore[reportAttributeAccessIssue]
    return np.log(p_NC), {"prompts_per_second": len(texts) / seconds, "parameters": float(weights)}
