"""What a RayJob runs for the stage search: python jobs/search.py CONFIG.yaml [--field value ...]."""

import sys

from historay import cli

if __name__ == "__main__":
    sys.argv[1:1] = ["search"]
    cli.main()
