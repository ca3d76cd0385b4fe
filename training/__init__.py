"""One training job: from a resolved configuration to metrics and a checkpoint.

Knows torch; knows nothing of Optuna, MLflow or ``hpo``. Every rank of a job executes
``python -m training.main RUN_DIR``.
"""
