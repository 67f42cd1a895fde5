"""The outlier score of an open-set algorithm, reported as a detector of synthetic images."""

from __future__ import annotations

from typing import Any

from semilearn.core.hooks import Hook

from usb_rsmatch.detection.measure import Measured, measured_indices, publish_report, score_images


class OutlierHook(Hook):
    """Evaluates `algorithm.outlier_score` as a detector of synthetic images on the pool; training never uses it.

    Does nothing without a pool of known provenance (USB's own data sets) and in USB's own training loop.
    """

    def after_train_step(self, algorithm: Any) -> None:
        if self.every_n_iters(algorithm, algorithm.num_eval_iter) or self.is_last_iter(algorithm):
            self.measure(algorithm)

    def measure(self, algorithm: Any) -> None:
        """Score the pool and publish the detection metrics."""
        dataset = algorithm.dataset_dict["train_ulb"]
        pool = getattr(dataset, "set", None)
        if pool is None or not hasattr(algorithm, "averaged_weights"):
            return
        indices = measured_indices(pool, algorithm.args.seed)
        scores = score_images(algorithm, dataset, indices, algorithm.outlier_score)
        publish_report(algorithm, pool, Measured(indices, scores))
