"""Comparing anything with anything: cells known by their content, run once each, in any number of processes."""
