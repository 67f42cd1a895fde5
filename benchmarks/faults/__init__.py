"""Fault injection campaign: killed processes, full disks, damaged checkpoints, malformed input, endurance run."""
