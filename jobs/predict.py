"""Predict on a table with a bundle, as a Ray job."""

from batchtrain.cli.app import predict
from batchtrain.cli.job import main_of_job

if __name__ == "__main__":
    main_of_job(predict)
