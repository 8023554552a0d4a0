"""Enrol, verify and identify people by their faces, on one's own machine: see README.md."""
