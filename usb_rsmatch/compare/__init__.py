"""From a grid file to trained runs: on this machine, a few at a time, or on a cluster."""
