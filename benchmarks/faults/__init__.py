"""Faults caused on purpose: killed processes, full disks, damaged files, hostile input."""
