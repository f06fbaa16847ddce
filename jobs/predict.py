"""What a RayJob runs for the stage predict: python jobs/predict.py CONFIG.yaml [--field value ...]."""

import sys

from historay import cli

if __name__ == "__main__":
    sys.argv[1:1] = ["predict"]
    cli.main()
