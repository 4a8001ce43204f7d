"""Search for the best values of a spec, as a Ray job."""

from batchtrain.cli.app import tune
from batchtrain.cli.job import main_of_job

if __name__ == "__main__":
    main_of_job(tune)
