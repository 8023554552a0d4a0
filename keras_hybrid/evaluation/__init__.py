"""Verification protocols, classification and identification reports, figures, HTML reports."""

from keras_hybrid.evaluation.classification import (
    ClassificationResult,
    ClassMetrics,
    Confusion,
    IdentificationResult,
    classification_report,
    evaluate_classifier,
    identify,
)
from keras_hybrid.evaluation.inference import embed, embed_batches, embedding_norms, predict
from keras_hybrid.evaluation.plots import (
    plot_confusion,
    plot_histories,
    plot_history,
    plot_roc,
    plot_roc_over_training,
    plot_scores,
)
from keras_hybrid.evaluation.report import environment, write_report
from keras_hybrid.evaluation.verification import (
    RocCurve,
    VerificationResult,
    best_threshold,
    cosine_scores,
    evaluate_pairs,
    roc_curve,
    verify,
    verify_scores,
)

__all__ = [
    "ClassMetrics",
    "ClassificationResult",
    "Confusion",
    "IdentificationResult",
    "RocCurve",
    "VerificationResult",
    "best_threshold",
    "classification_report",
    "cosine_scores",
    "embed",
    "embed_batches",
    "embedding_norms",
    "environment",
    "evaluate_classifier",
    "evaluate_pairs",
    "identify",
    "plot_confusion",
    "plot_histories",
    "plot_history",
    "plot_roc",
    "plot_roc_over_training",
    "plot_scores",
    "predict",
    "roc_curve",
    "verify",
    "verify_scores",
    "write_report",
]
