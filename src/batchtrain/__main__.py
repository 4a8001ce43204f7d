"""`python -m batchtrain`."""

from batchtrain.cli import main

main()
