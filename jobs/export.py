"""Export the bundle of an accepted model, as a Ray job."""

from batchtrain.cli.app import export
from batchtrain.cli.job import main_of_job

if __name__ == "__main__":
    main_of_job(export)
