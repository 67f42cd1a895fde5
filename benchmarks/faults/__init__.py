"""Fault injection: killed processes, full disks, damaged files, malformed input."""
