"""JOS, the Jobs Orchestration Service: batch jobs over many files on Ray, that survive anything."""

__version__ = "0.1.0"
