"""Prepare, train, evaluate and export, as a Ray job; README.md has the command."""

from batchtrain.cli.app import run
from batchtrain.cli.job import main_of_job

if __name__ == "__main__":
    main_of_job(run)
