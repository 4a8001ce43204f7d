"""Measure the model of a spec and write its report, as a Ray job."""

from batchtrain.cli.app import evaluate
from batchtrain.cli.job import main_of_job

if __name__ == "__main__":
    main_of_job(evaluate)
