"""What a RayJob runs for the stage train: python jobs/train.py CONFIG.yaml [--field value ...]."""

import sys

from historay import cli

if __name__ == "__main__":
    sys.argv[1:1] = ["train"]
    cli.main()
